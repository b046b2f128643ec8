"""A table of image paths and labels, such as a .csv, as a source."""

import errno
import os
import re
import stat
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from udkd.data.image_files import BadImage
from udkd.data_prep.sources.fields import (
    DETECT_FIELDS,
    LABEL_OPTION,
    NO_LABEL,
    SPLIT_COLUMN_ADVICE,
    Fields,
    Label,
    LabelAgreement,
    label_of,
    label_of_text,
)
from udkd.data_prep.sources.ground_truth import is_ground_truth
from udkd.data_prep.sources.layout import IMAGE_SUFFIXES, PLAIN_SPLIT, is_image_path
from udkd.data_prep.sources.named_split import LabelFolders, single_split_in
from udkd.data_prep.sources.source import TEST_IMAGES, Categorical, Entry, EntryTable, Listing, SourceSplit
from udkd.data_prep.sources.table_columns import (
    choose_columns,
    is_split_flag,
    is_submission,
    is_val_column,
    label_columns,
    path_columns,
)
from udkd.data_prep.sources.table_rows import PARQUET, SUFFIXES, TableRows, open_table
from udkd.utils.errors import DataError
from udkd.utils.files import read_regular
from udkd.utils.string_column import StringColumnBuilder

IMAGES_OPTION = "--images"
NO_PATH = "rows without a path"
REPEATED = "further rows of an image"
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_PEEKED_ROWS = 100  # that say which folder the paths are relative to
_MAX_SEARCHED = 20_000  # files among which a missing image is looked for
_ROW_BITS = 40
_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_SPLIT_OF_FLAG: dict[str, SourceSplit] = {
    "true": "val",
    "1": "val",
    "1.0": "val",
    "false": "train",
    "0": "train",
    "0.0": "train",
}
_MISSING = {"nan", "none", "null", "na", "n/a", "<na>"}  # as programs write a missing value
_JOINTS = re.compile(r"\s*[|,;]\s*|\s+")  # between several labels in one text


@dataclass(frozen=True)
class Table:
    """A table with a row for each image (.csv, .tsv, .jsonl, .parquet), or a folder with some.

    Splits are those of a column, else of the file names, else of the folders in the paths. fields: columns chosen by the user.
    images: the folder that paths are relative to; None for the table's own. folders: others that they may be relative to.
    """

    path: Path
    fields: Fields = DETECT_FIELDS
    images: Path | None = None
    folders: tuple[Path, ...] = ()

    @staticmethod
    def probe(path: Path) -> "Table | None":
        """A Table if `path` is a file of rows without image bytes, or a folder with one that has paths and labels."""
        if path.is_dir():
            return Table(path) if Table(path).files() else None
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:
            return None
        return Table(path) if path.suffix.lower() != PARQUET or _has_paths_and_labels(path) else None

    def files(self) -> Sequence[Path]:
        """The table, or those of a folder: directly in it, or one level down if they are called metadata."""
        if not self.path.is_dir():
            return [self.path]
        patterns = (each for suffix in SUFFIXES for each in (f"*{suffix}", f"*/metadata{suffix}"))
        files = sorted(file for pattern in patterns for file in self.path.glob(pattern) if file.is_file())
        named = [file for file in files if not (file.name.startswith(".") or is_submission(file.name) or is_ground_truth(file))]
        return [file for file in named if _has_paths_and_labels(file)]

    def list(self) -> Listing:
        """An entry for each image with a label. Ids are by class and name, as for folders.

        Raises DataError for a damaged table, for missing or ambiguous columns, for an image with two labels or splits, and
        if no image exists. If only some are missing, `read` says so.
        """
        files = self.files()
        return _Reader(self, files).listing()

    def read(self, entry: Entry) -> bytes:
        """The bytes of a file. Raises BadImage, with the row, if there is none."""
        try:
            return read_regular(Path(entry.key))
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and (entry.size or error.errno not in _NO_SUCH_FILE):
                raise
            fault = "does not exist" if isinstance(error, OSError) else "is no file"
            table = open_table(self.files()[entry.offset >> _ROW_BITS])
            number = entry.offset & ((1 << _ROW_BITS) - 1)
            raise BadImage(f"{entry.key} {fault} ({table.unit} {number} of {table.path.name})") from None


class _Reader:
    """Collects the rows of all tables of a source, then builds the listing."""

    def __init__(self, source: Table, files: Sequence[Path]) -> None:
        self._source, self._files = source, files
        self._listing, self._agreement = Listing(), LabelAgreement()
        self._paths, self._tables, self._numbers, self._hashes = StringColumnBuilder(), array("i"), array("q"), array("q")
        self._labels: Categorical[tuple[str, Label]] = Categorical("i")
        self._splits: Categorical[tuple[str, str]] = Categorical("i")  # the split's column, empty for none, and its value
        self._warnings: list[str] = []
        self._units: list[str] = []

    def listing(self) -> Listing:
        """See Table.list."""
        for index, file in enumerate(self._files):
            self._collect(index, open_table(file))
        self._agreement.finish(self._source.path)
        repeated = self._repeated(splits := self._split_of_rows())
        class_names = self._class_names()
        finders = [_Finder(self._root(index, file)) for index, file in enumerate(self._files)]
        rows, hashes = array("q"), array("q")
        for n in range(len(self._paths)):
            path, split, class_name = self._paths[n], splits[n], class_names[self._labels.codes[n]]
            if class_name is None or n in repeated:
                reason = REPEATED if n in repeated else TEST_IMAGES if split == "test" else NO_LABEL
                self._listing.skipped.append(path, reason)
                continue
            key, size, stamp = finders[self._tables[n]].find(path, self._where(n))
            name = _name(key, finders[self._tables[n]].root, (class_name, self._labels[n][0]))
            row = self._tables[n] << _ROW_BITS | self._numbers[n]
            self._listing.entries.append(Entry(split, class_name, name, key, row, size, stamp))
            rows.append(n)
            hashes.append(hash(key))
        entries = self._without_same_files(self._listing.entries, rows, hashes)
        return replace(self._listing, entries=entries, warnings=tuple(self._warnings))

    def _collect(self, index: int, table: TableRows) -> None:
        may_lack_labels = _split_of_file(table.path) == "test"
        path_column, in_order, split_column = choose_columns(table, self._source.fields, may_lack_labels)
        if len(in_order) > 1:
            others = ", ".join(in_order[1:])
            self._warnings.append(f"{table.path}: {in_order[0]} is read, not {others} ({LABEL_OPTION} chooses)")
        flag = next((name for name in table.columns if not split_column and is_split_flag(name)), None)
        if flag is not None and not _split_of_file(table.path):
            self._warnings.append(
                f"{table.path} has a column {flag}, which may name the splits, but is not read: write them as a column `split`"
            )
        self._units.append(table.unit)
        for number, values in table.read([path_column, *in_order, *filter(None, [split_column])]):
            path = _path(values[0])
            where = f"{table.path}, {table.unit} {number}"
            if not path:
                self._listing.skipped.append(where, NO_PATH)
                continue
            if _ADDRESS.match(path):
                raise DataError(f"{where} holds the address {path[:80]}; expected the path of a file; fetch the images first")
            raw = values[1 : 1 + len(in_order)]
            labels = [_label(value, where) for value in raw]
            label = self._agreement.take(dict(zip(in_order, labels, strict=True)), where)
            text = next((str(each).strip() for each, parsed in zip(raw, labels, strict=True) if parsed is not None), "")
            self._paths.append(path)
            self._tables.append(index)
            self._numbers.append(number)
            self._hashes.append(hash((str(table.path.parent), path)))
            self._labels.append((text, label))
            split_text = "" if not split_column or values[-1] is None else str(values[-1]).strip()
            self._splits.append((f"{index} {split_column}" if split_column else "", split_text))

    def _where(self, n: int) -> str:
        return f"{self._files[self._tables[n]]}, {self._units[self._tables[n]]} {self._numbers[n]}"

    def _class_names(self) -> Sequence[str | None]:
        """The class of each distinct label. Labels are numbers only if all of them are."""
        folders = LabelFolders(self._source.path)
        labels = self._labels.values
        if all(isinstance(label, int) for _, label in labels if label is not None):
            return [None if label is None else self._listing.class_of_label(int(label)) for _, label in labels]
        self._warn_of_odd_labels()
        return [None if label is None else folders.folder(text) for text, label in labels]

    def _warn_of_odd_labels(self) -> None:
        """Warn of numbers among names, which may name the same classes, and of texts that join several labels."""
        number, name = (
            next((text for text, label in self._labels.values if isinstance(label, kind)), None) for kind in (int, str)
        )
        if number and name:
            self._warnings.append(
                f"{self._source.path} has numbers and names as labels, such as {number} and {name}; each is a class of its own"
            )
        texts = {text for text, label in self._labels.values if label is not None}
        if missing := next((text for text in sorted(texts) if text.lower() in _MISSING), None):
            self._warnings.append(
                f"{self._source.path} has the label {missing!r}, which often stands for no label; it is a class of its own"
            )
        joint = next((text for text in sorted(texts) if len(parts := set(_JOINTS.split(text))) > 1 and parts <= texts), None)
        if joint:
            self._warnings.append(
                f"{self._source.path} has the label {joint!r}, which joins labels of other images; it is a class of its own"
            )

    def _split_of_rows(self) -> Sequence[SourceSplit | None]:
        """The split of each row. Raises DataError if a column of splits has other values, too."""
        of_file = [_split_of_file(file) for file in self._files]
        by_column: dict[str, dict[str, SourceSplit | None]] = {}
        for column, text in self._splits.values:
            if column:
                by_column.setdefault(column, {})[text] = _split_of_text(column.partition(" ")[2], text)
        for column, splits in by_column.items():
            index, _, name = column.partition(" ")
            other = next((text for text, split in splits.items() if split is None), None)
            if other is not None and not any(splits.values()):
                advice = SPLIT_COLUMN_ADVICE.format(file=self._files[int(index)], name=name)
                self._listing = replace(self._listing, val_advice=advice)
            elif other is not None:
                file = self._files[int(index)]
                expected = "True or False" if is_val_column(name) else "train, val or test"
                raise DataError(f"{file} has {other!r} in its column {name}; expected {expected}; correct the row")
        in_column = [by_column.get(column, {}).get(text) for column, text in self._splits.values]
        found = [in_column[self._splits.codes[n]] or of_file[self._tables[n]] for n in range(len(self._paths))]
        if not any(found):
            in_path = [_split_in_path(self._paths[n]) for n in range(len(self._paths))]
            return in_path if all(in_path) else found
        return found

    def _repeated(self, splits: Sequence[SourceSplit | None]) -> set[int]:
        """The rows of an image that an earlier row describes. Raises DataError if they disagree."""
        hashes = np.frombuffer(self._hashes, dtype=np.int64)
        order = np.argsort(hashes, kind="stable")
        repeated: set[int] = set()
        for at in np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]).tolist():
            first, second = int(order[at]), int(order[at + 1])
            if self._paths[first] != self._paths[second]:
                continue  # only their hashes are equal
            self._require_same(self._paths[second], first, second, (splits[first], splits[second]))
            repeated.add(second)
        return repeated

    def _without_same_files(self, entries: EntryTable, rows: Sequence[int], hashes: "array[int]") -> EntryTable:
        """The entries without further ones of a file, which may have several paths. Raises DataError if they disagree."""
        values = np.frombuffer(hashes, dtype=np.int64)
        order = np.argsort(values, kind="stable")
        repeated: set[int] = set()
        for at in np.flatnonzero(values[order[1:]] == values[order[:-1]]).tolist():
            first, second = int(order[at]), int(order[at + 1])
            if entries[first].key != entries[second].key:
                continue  # only their hashes are equal
            self._require_same(entries[second].key, rows[first], rows[second], (entries[first].split, entries[second].split))
            self._listing.skipped.append(self._paths[rows[second]], REPEATED)
            repeated.add(second)
        return EntryTable(entry for n, entry in enumerate(entries) if n not in repeated) if repeated else entries

    def _require_same(self, image: str, first: int, second: int, splits: tuple[object, object]) -> None:
        """Raise DataError if two rows of an image have different labels or splits."""
        for what, one, other in (("labels", self._labels[first][0], self._labels[second][0]), ("splits", *splits)):
            if one != other:
                raise DataError(
                    f"{image} has two {what}, {one} in {self._where(first)} and {other} in {self._where(second)}; expected "
                    "one; remove a row"
                )

    def _root(self, index: int, file: Path) -> Path:
        """The folder that the paths of a table are relative to. Raises DataError if it is none or not clear."""
        rows = islice((n for n in range(len(self._paths)) if self._tables[n] == index), _PEEKED_ROWS)
        paths = [self._paths[n] for n in rows]
        folders = list(dict.fromkeys([self._source.images] if self._source.images else [file.parent, *self._source.folders]))
        found = [folder for folder in folders if any(_Finder(folder).exists(path) for path in paths)]
        if len(found) > 1:
            raise DataError(
                f"the paths of {file}, such as {paths[0]}, exist in {' and in '.join(map(str, found))}; expected one folder; "
                f"give {IMAGES_OPTION} FOLDER"
            )
        if not found and paths:
            where = _search(file.parent, paths[0])
            option = (
                f"give {IMAGES_OPTION} {where}"
                if where
                else f"give {IMAGES_OPTION} FOLDER, the folder that they are relative to"
            )
            if where and not _Finder(where).exists(paths[-1]):  # as HAM10000, in two parts
                option = f"they are in several folders ({paths[0]} is in {where}): write the folders into the paths"
            raise DataError(
                f"the images of {file}, such as {paths[0]}, are not in {' or '.join(map(str, folders))}; expected paths of "
                f"files; {option}"
            )
        return found[0] if found else folders[0]


class _Finder:
    """Finds the files of paths below a folder, with or without their suffix."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.abspath(root)
        self._by_stem: dict[str, dict[str, list[str]]] = {}

    def find(self, path: str, where: str) -> tuple[str, int, int]:
        """The absolute path, the size and the modification time of a file; size and time are 0 if it is missing."""
        key = os.path.normpath(os.path.join(self.root, path))
        try:
            status = os.stat(key)
            if stat.S_ISREG(status.st_mode):
                return key, status.st_size, status.st_mtime_ns
        except (OSError, ValueError):  # a character that no path has
            pass
        names = [] if is_image_path(path) else self._suffixed(key)
        if len(names) > 1:
            raise DataError(
                f"{where} has the path {path}, which may be {' or '.join(names[:3])}; expected one; write the suffix"
            )
        if not names:
            return key, 0, 0
        key = os.path.join(os.path.dirname(key), names[0])
        status = os.stat(key)
        return key, status.st_size, status.st_mtime_ns

    def exists(self, path: str) -> bool:
        """Whether a file has this path."""
        key = os.path.join(self.root, path)
        if os.path.isfile(key):  # False, too, for a text that is no path, such as a long one
            return True
        return not is_image_path(path) and any(os.path.isfile(key + suffix) for suffix in _ANY_CASE)

    def _suffixed(self, key: str) -> Sequence[str]:
        folder, stem = os.path.split(key)
        if folder not in self._by_stem:
            by_stem: dict[str, list[str]] = {}
            for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
                if is_image_path(name):
                    by_stem.setdefault(name.rpartition(".")[0], []).append(name)
            self._by_stem[folder] = by_stem
        return self._by_stem[folder].get(stem, ())


_ANY_CASE = (*IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES))


def _search(folder: Path, path: str) -> Path | None:
    """The only folder below `folder` in which a path exists; None if there are none or several."""
    found, seen = [], 0
    for where, _, names in os.walk(folder):
        seen += len(names)
        if seen > _MAX_SEARCHED:
            break
        if _Finder(Path(where)).exists(path):
            found.append(Path(where))
    return found[0] if len(found) == 1 else None


def _has_paths_and_labels(file: Path) -> bool:
    """Whether a table has columns of both; False for a damaged one."""
    try:
        columns = open_table(file).columns
    except (DataError, OSError):
        return False
    return bool(path_columns(columns) and label_columns(columns))


def _path(value: object) -> str:
    """A path from a table's cell, with `/` as separator; empty for none."""
    path = "" if value is None or value != value else str(value).strip()
    if isinstance(value, float) and value.is_integer():
        path = str(int(value))
    path = path.replace("\\", "/") if "\\" in path and "/" not in path else path
    return os.path.normpath(path) if path and not _ADDRESS.match(path) else path  # ./a.jpg and a.jpg are one image


def _label(value: object, where: str) -> Label:
    try:
        return label_of_text(value) if isinstance(value, str) else label_of(value)
    except ValueError as error:
        raise DataError(
            f"{where} {error}; expected one class number or name; choose another column with {LABEL_OPTION}"
        ) from None


def _split_of_text(column: str, text: str) -> SourceSplit | None:
    return _SPLIT_OF_FLAG.get(text.lower()) if is_val_column(column) else single_split_in(text)


def _split_of_file(file: Path) -> SourceSplit | None:
    """The split in a table's name, or in that of the folder of a metadata.csv."""
    return single_split_in(file.name) or (single_split_in(file.absolute().parent.name) if file.stem == "metadata" else None)


def _split_in_path(path: str) -> SourceSplit | None:
    return next((single_split_in(part) for part in path.split("/")[:-1] if PLAIN_SPLIT.fullmatch(part)), None)


def _name(key: str, root: str, classes: Iterable[str]) -> str:
    """The path inside the class folder, if it is in one of that name, else the path inside the root."""
    start = f"{root}/"
    parts = (key.removeprefix(start) if key.startswith(start) else os.path.relpath(key, root)).split("/")
    folders = [n for n, part in enumerate(parts[:-1]) if part in classes]
    return "/".join(part for part in parts[folders[-1] + 1 if folders else 0 :] if part != "..")
