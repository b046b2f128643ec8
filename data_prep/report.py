"""report.json: what a conversion fixed, excluded and passed over, so that nothing happens silently."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from udkd.formats.dataset import Columns, DatasetFolder
from udkd.words.files import json_bytes, write_json
from udkd.words.parsing import parse_json

FILE_NAME = "report.json"


def write_report(
    folder: Path,
    columns: Mapping[str, Columns],
    *,
    digest: str | None,
    on_bad: str,
    warnings: Sequence[str],
    settings: Mapping[str, object],
) -> None:
    """Write FOLDER/report.json. digest: of the dataset folder that came of it; None where none did, for the bad images.

    settings: the conversion's, by option name. `bad` names every image that cannot be used, `fixed` counts what was done to
    the others, by split; `sha256` is of the report without it.
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
        "warnings": list(warnings),
    }
    write_json(folder / FILE_NAME, report | {"sha256": _checksum(report)})


def settings_of(folder: Path) -> dict[str, object]:
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


def report_problems(dataset: DatasetFolder) -> Iterator[str]:
    """What is wrong with a folder's report, a line each: damaged, or of another folder."""
    path = dataset.path / FILE_NAME
    try:
        data = path.read_bytes()
        report = json.loads(data)
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
