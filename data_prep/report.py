"""report.json: what a conversion fixed, excluded and passed over, so that nothing happens silently."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from udkd.formats.dataset import Row
from udkd.words.files import write_json

FILE_NAME = "report.json"


def write_report(folder: Path, rows: Mapping[str, Sequence[Row]], *, usable: bool, warnings: Sequence[str]) -> None:
    """Write FOLDER/report.json. usable: whether a dataset folder came of it; `bad` names every image that cannot be used."""
    write_json(
        folder / FILE_NAME,
        {
            "usable": usable,
            "images": {split: len(group) for split, group in rows.items()},
            "bad": [
                {"split": split, "id": n, "source": row.source, "reason": row.note}
                for split, group in rows.items()
                for n, row in enumerate(group)
                if row.excluded
            ],
            "fixed": {split: fixed_counts(group) for split, group in rows.items()},
            "warnings": list(warnings),
        },
    )


def fixed_counts(rows: Sequence[Row]) -> dict[str, int]:
    """How often each fix was made."""
    return dict(sorted(Counter(row.note for row in rows if row.note and not row.excluded).items()))
