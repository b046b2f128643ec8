"""Compares class folders with the tables that lie among them, so that folders of another kind are not taken for classes.

Many data sets hold their images in folders by number or by part (`00/`, `images_part_1/`), and the classes in a table.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from udkd.data_prep.sources.ground_truth import GROUND_TRUTH_NAMES
from udkd.data_prep.sources.layout import IMAGE_SUFFIXES, is_hidden
from udkd.data_prep.sources.source import EntryTable
from udkd.data_prep.sources.table_columns import is_submission, label_columns, path_columns
from udkd.data_prep.sources.table_rows import PARQUET, SUFFIXES, TableRows, open_table
from udkd.utils.errors import DataError

MAX_BYTES = 1 << 26  # of a table in an archive
_MAX_TABLES = 20  # the first by name
_MAX_ROWS = 10_000  # of each table
Data = Callable[[], bytes]
_Row = tuple[str, Sequence[str]]  # a path without its suffix, and the values of the other columns


def is_table_member(name: str, size: int) -> bool:
    """Whether a file may be a table. name: its path. size: bytes; tables in archives are read at once."""
    base = name.rsplit("/", 1)[-1]
    wanted = base.lower().endswith(SUFFIXES) and base not in GROUND_TRUTH_NAMES and not is_submission(base)
    return wanted and size <= MAX_BYTES and not is_hidden(name)


@dataclass(frozen=True)
class TableCheck:
    """Tables of a source by their names in it. data: a file, or what returns the bytes of an archive's member."""

    data: Mapping[str, Path | Data]

    def warnings(self, entries: EntryTable, source: object) -> Sequence[str]:
        """A warning for each table that names images and has no column with their folders. source: for messages.

        Raises DataError if its columns of labels disagree with the folders. A column agrees if each label has one folder, and
        each folder one label.
        """
        found: list[str] = []
        for name in self._names():
            table = self._read(name)
            images = _images(entries, table.rows)
            faults = [_fault([(values[n], *image) for values, image in images]) for n in range(len(table.columns))]
            if not images or not all(faults):
                continue
            if table.has_labels:
                remedy = "choose with --layout table or --layout imagefolder"
                if not isinstance(self.data[name], Path):
                    remedy = "unpack it and name the table, or take the folders with --layout imagefolder"
                raise DataError(
                    f"{source} has class folders and the table {name}, which disagree: {faults[0]}; expected one label for "
                    f"each folder; {remedy}"
                )
            found.append(
                f"{name} of {source} names images, and none of its columns has their folders, such as {images[0][1][1]}: "
                "check that these folders are the classes"
            )
        return found

    def with_images(self, paths: Sequence[str]) -> str:
        """The name of a table with labels of some of these paths; empty if there is none."""
        stems = {_stem(path).rsplit("/", 1)[-1] for path in paths} if self.data else ()
        for name in self._names():
            table = self._read(name)
            if table.has_labels and any(path.rsplit("/", 1)[-1] in stems for path, _ in table.rows):
                return name
        return ""

    def _names(self) -> Sequence[str]:
        return sorted(self.data)[:_MAX_TABLES]

    def _read(self, name: str) -> "_Rows":
        """The first rows of a table of paths; none of another table, or of a damaged one, which is not read anyway."""
        data = self.data[name]
        try:
            if isinstance(data, Path):
                return _rows(open_table(data))
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "table" + os.path.splitext(name)[1])
                path.write_bytes(data())
                return _rows(open_table(path))
        except (DataError, OSError):
            return _Rows()


@dataclass(frozen=True)
class _Rows:
    """Rows of a table. columns: of labels if has_labels, else all that may hold classes."""

    has_labels: bool = False
    columns: Sequence[str] = ()
    rows: Sequence[_Row] = ()


def _rows(table: TableRows) -> _Rows:
    paths = path_columns(table.columns)
    others = [name for name in table.columns if name and name not in paths and not name.startswith("Unnamed:")]
    labels = label_columns(others)
    columns = labels or ([] if table.path.suffix.lower() == PARQUET else others)  # of parquet, others may be large
    if not paths or not columns:
        return _Rows()
    rows = (values for _, values in islice(table.read([paths[0], *columns]), _MAX_ROWS))
    texts = [(_stem(_text(path).replace("\\", "/")), [*map(_text, values)]) for path, *values in rows]
    return _Rows(bool(labels), columns, texts)


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value).strip()


def _stem(path: str) -> str:
    stem, dot, suffix = path.rpartition(".")
    return stem if f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else path


def _images(entries: EntryTable, rows: Sequence[_Row]) -> Sequence[tuple[Sequence[str], tuple[str, str]]]:
    """The values of each row that names one image, with the image's path and class folder. Images of a test split are left out.

    A row names the image whose path ends with its own, or, without folders, the only image of its name.
    """
    by_name: dict[str, list[int]] = {}
    for n, (path, _) in enumerate(rows):
        by_name.setdefault(path.rsplit("/", 1)[-1], []).append(n)
    images: list[list[tuple[str, str]]] = [[] for _ in rows]
    for n in range(len(entries)) if rows else ():
        wanted = by_name.get(_stem(entries.name(n).rsplit("/", 1)[-1]), ())
        entry = entries[n] if wanted else None
        for row in wanted:
            if entry is not None and entry.split != "test" and f"/{_stem(entry.key)}".endswith(f"/{rows[row][0].lstrip('./')}"):
                images[row].append((entry.key, entry.class_name))
    return [(values, found[0]) for (_, values), found in zip(rows, images, strict=True) if len(found) == 1]


def _fault(labelled: Sequence[tuple[str, str, str]]) -> str:
    """Two images of one label in two folders, or with two labels in one; empty if there are none."""
    folders: dict[str, tuple[str, str]] = {}
    labels: dict[str, tuple[str, str]] = {}
    for label, path, folder in labelled:
        if not label:
            continue
        other, first = folders.setdefault(label, (path, folder))
        if first != folder:
            return f"{other} and {path} have the label {label}, and are in the folders {first} and {folder}"
        other, first = labels.setdefault(folder, (path, label))
        if first != label:
            return f"{other} and {path} are in the folder {folder}, and have the labels {first} and {label}"
    return ""
