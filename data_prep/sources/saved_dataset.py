"""A dataset of Hugging Face's `datasets` as arrow files: a folder of `save_to_disk`, or files of its cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udkd.data_prep.sources.fields import DETECT_FIELDS, Fields
from udkd.data_prep.sources.named_split import single_split_in
from udkd.data_prep.sources.source import Entry, Listing
from udkd.utils.errors import DataError
from udkd.utils.files import read_regular
from udkd.utils.parsing import parse_json

DICT_NAME, STATE_NAME, INFO_NAME = "dataset_dict.json", "state.json", "dataset_info.json"
SUFFIX = ".arrow"
_LIMIT_BYTES = 1 << 26  # of a JSON file


@dataclass(frozen=True)
class SavedDataset:
    """A saved Dataset or DatasetDict, or .arrow files. Splits are those of a DatasetDict, else of the file names.

    fields: columns chosen by the user.
    """

    path: Path
    fields: Fields = DETECT_FIELDS

    @staticmethod
    def probe(path: Path) -> "SavedDataset | None":
        """A SavedDataset if `path` is an .arrow file, or a folder with some, or with those of a DatasetDict."""
        if path.is_file():
            return SavedDataset(path) if path.suffix.lower() == SUFFIX else None
        return SavedDataset(path) if (path / DICT_NAME).is_file() or _cached(path) else None

    def files(self) -> Sequence[Path]:
        """The .arrow files, in the order of their rows. Raises DataError if one is missing, or a JSON file is damaged."""
        if self.path.is_file():
            return [self.path]
        if not (self.path / DICT_NAME).is_file():
            return _data_files(self.path)
        splits = _json(self.path / DICT_NAME).get("splits")
        if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
            raise DataError(f"{self.path / DICT_NAME} names no splits; expected a folder of save_to_disk; save it again")
        return [file for name in splits for file in _data_files(self.path / name)]

    def described(self) -> frozenset[Path]:
        """The .arrow files and the JSON files that belong to them."""
        folders = {file.parent for file in self.files()}
        return frozenset(self.files()) | {each / name for each in (self.path, *folders) for name in _NAMES}

    def list(self) -> Listing:
        """All rows, in the order of the files, which ids keep.

        Raises DataError for a damaged file, for missing columns of images or labels, and if the user must choose a column.
        """
        from dataclasses import replace

        from udkd.data_prep.sources.parquet_rows import list_rows  # imports pyarrow, which workers of other sources do not need

        listing = list_rows(self.path, self.files(), self.fields)
        state = _json(self.path / STATE_NAME) if (self.path / STATE_NAME).is_file() else {}
        own = single_split_in(str(state.get("_split") or ""))
        return replace(listing, split_hint=single_split_in(self.path.resolve().name) or own)

    def read(self, entry: Entry) -> bytes:
        """The image's bytes, or those of the file that its row names. Raises BadImage if that is missing."""
        from udkd.data_prep.sources.parquet_rows import read_row

        return read_row(self.path / entry.key if entry.key else self.path, entry.offset, self.fields)


_NAMES = (DICT_NAME, STATE_NAME, INFO_NAME)


def _cached(folder: Path) -> Sequence[Path]:
    """The .arrow files of a folder, without those in which `datasets` caches the results of map and filter."""
    return sorted(file for file in folder.glob(f"*{SUFFIX}") if not file.name.startswith((".", "cache-", "tmp")))


def _data_files(folder: Path) -> Sequence[Path]:
    """The files of one split, in order."""
    state = _json(folder / STATE_NAME) if (folder / STATE_NAME).is_file() else {}
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"{folder} holds a selection of rows by indices; expected all rows; call flatten_indices() and save_to_disk again"
        )
    named = state.get("_data_files") or []
    files = [folder / str(each.get("filename")) for each in named if isinstance(each, dict)] or _cached(folder)
    missing = next((file for file in files if not file.is_file()), folder if not files else None)
    if missing is not None:
        raise DataError(f"{missing} is missing or holds no .arrow file; expected a folder of save_to_disk; save it again")
    return files


def _json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(read_regular(path, _LIMIT_BYTES))
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({error}); expected a folder of save_to_disk; save it again") from None
    return value if isinstance(value, dict) else {}
