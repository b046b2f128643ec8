"""report.json: what a conversion fixed, excluded and passed over, so that nothing happens silently."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from data_prep.classes import escape_name
from udkd.data.dataset import DatasetFolder
from udkd.data.manifest import Columns
from udkd.utils.files import json_bytes, read_regular, write_json
from udkd.utils.parsing import parse_json

FILE_NAME = "report.json"


class _Reason(BaseModel, strict=True, extra="forbid"):
    files: int
    first: str


class _PassedOver(BaseModel, strict=True):
    passed_over: dict[str, _Reason] = {}  # reports of earlier versions have none


def write_report(
    folder: Path,
    columns: Mapping[str, Columns],
    *,
    digest: str | None,
    on_bad: str,
    warnings: Sequence[str],
    skipped: Mapping[str, tuple[int, str]],
    settings: Mapping[str, object],
) -> None:
    """Write FOLDER/report.json. digest: of the dataset folder that came of it; None where none did, for the bad images.

    settings: the conversion's, by option name. `bad` names every image that cannot be used, `fixed` counts what was done to
    the others, by split; `passed_over` counts the files that are not in the folder at all, by reason, and names the first;
    `sha256` is of the report without it.
    """
    report = {
        "usable": digest is not None,
        "dataset_digest": digest,
        "on_bad": on_bad,
        "settings": dict(settings),
        "images": {split: group.num_samples for split, group in columns.items()},
        "bad": [
            {"split": split, "id": n, "source": group.source[n], "reason": group.note[n]}
            for split, group in columns.items()
            for n in np.flatnonzero(group.excluded).tolist()
        ],
        "fixed": {split: fixed_counts(group) for split, group in columns.items()},
        "passed_over": {
            reason: {"files": count, "first": escape_name(name)} for reason, (count, name) in sorted(skipped.items())
        },
        "warnings": list(warnings),
    }
    write_json(folder / FILE_NAME, report | {"sha256": _checksum(report)})


def read_settings(folder: Path) -> dict[str, object]:
    """The settings of the conversion that made a folder, --on-bad among them; none where its report does not tell them."""
    try:
        report = parse_json((folder / FILE_NAME).read_bytes())
        return {"--on-bad": report["on_bad"], **report["settings"]}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def fixed_counts(columns: Columns) -> dict[str, int]:
    """How often each fix was made to the images that are kept."""
    notes = (note for note, excluded in zip(columns.note, columns.excluded, strict=True) if note and not excluded)
    return dict(sorted(Counter(notes).items()))


def skipped_lines(folder: Path) -> Iterator[str]:
    """What the report says was passed over, for people: a line in all, and one for each reason. Nothing without a report."""
    try:
        reasons = _PassedOver.model_validate(parse_json(read_regular(folder / FILE_NAME))).passed_over
    except (OSError, ValueError):
        return
    if reasons:
        yield f"{sum(each.files for each in reasons.values()):,} files passed over:"
    for reason, each in sorted(reasons.items(), key=lambda item: -item[1].files):
        yield f"  {each.files:,} {reason}, such as {each.first}"


def report_problems(dataset: DatasetFolder) -> Iterator[str]:
    """What is wrong with a folder's report, a line each: damaged, or of another folder."""
    path = dataset.path / FILE_NAME
    try:
        data = read_regular(path)
        report = parse_json(data)
        checksum = report.pop("sha256")
    except (OSError, ValueError, AttributeError, KeyError):
        yield f"{path} is missing or damaged; expected the conversion's report; restore it or convert again"
        return
    if checksum != _checksum(report) or data != json_bytes(report | {"sha256": checksum}):
        yield f"{path} does not match its own checksum; expected it to; restore it or convert again"
    elif report.get("dataset_digest") != dataset.digest:
        yield f"{path} is the report of another conversion; expected digest {dataset.digest[:16]}…; restore it or convert again"


def _checksum(report: Mapping[str, object]) -> str:
    return hashlib.sha256(json_bytes(dict(report))).hexdigest()
