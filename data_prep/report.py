"""Writes and reads report.json, which lists what a conversion fixed, excluded and skipped."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from udkd.data.dataset import DatasetFolder
from udkd.data.manifest import Columns
from udkd.data_prep.classes import escape_name
from udkd.utils.files import json_bytes, read_regular, write_json
from udkd.utils.parsing import parse_json

FILE_NAME = "report.json"


class _Reason(BaseModel, strict=True, extra="forbid"):
    files: int
    first: str


class _SkippedFiles(BaseModel, strict=True):
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
    """Write FOLDER/report.json.

    digest: of the finished dataset folder; None if bad images prevented it. skipped: number of files and first name by reason.
    settings: of the conversion, by option name. In the report, `bad` lists the images that cannot be used; `fixed` counts the
    fixes in each split; `passed_over` counts the skipped files by reason; `sha256` is the checksum of the other fields.
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
    """The settings of the conversion that wrote a folder, including --on-bad; empty if its report lacks them."""
    try:
        report = parse_json((folder / FILE_NAME).read_bytes())
        return {"--on-bad": report["on_bad"], **report["settings"]}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def fixed_counts(columns: Columns) -> dict[str, int]:
    """The number of images with each fix, without the excluded ones."""
    notes = (note for note, excluded in zip(columns.note, columns.excluded, strict=True) if note and not excluded)
    return dict(sorted(Counter(notes).items()))


def skipped_files(folder: Path) -> list[dict[str, Any]]:
    """The skipped files in a report, by reason, the most frequent first: reason, files, first. Empty if there is no report."""
    try:
        reasons = _SkippedFiles.model_validate(parse_json(read_regular(folder / FILE_NAME))).passed_over
    except (OSError, ValueError):
        return []
    ordered = sorted(reasons.items(), key=lambda item: -item[1].files)
    return [{"reason": reason, "files": each.files, "first": each.first} for reason, each in ordered]


def report_problems(dataset: DatasetFolder) -> Iterator[str]:
    """Yield a line if a folder's report is missing, damaged or that of another conversion."""
    path = dataset.path / FILE_NAME
    try:
        data = read_regular(path)
    except (OSError, ValueError):
        data = b""
    yield from report_faults(data, path, dataset.digest)


def report_faults(data: bytes, path: object, digest: str) -> Iterator[str]:
    """Yield a line if these bytes are not the report of the dataset with this digest. path: of the file, for the line."""
    try:
        report = parse_json(data)
        checksum = report.pop("sha256")
    except (ValueError, AttributeError, KeyError):
        yield f"{path} is missing or damaged; expected the conversion's report; restore it or convert again"
        return
    if checksum != _checksum(report) or data != json_bytes(report | {"sha256": checksum}):
        yield f"{path} does not match its own checksum; expected it to; restore it or convert again"
    elif report.get("dataset_digest") != digest:
        yield f"{path} is the report of another conversion; expected digest {digest[:16]}…; restore it or convert again"


def _checksum(report: Mapping[str, object]) -> str:
    return hashlib.sha256(json_bytes(dict(report))).hexdigest()
