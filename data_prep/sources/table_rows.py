"""The columns and rows of a table in text (.csv, .tsv, .jsonl) or parquet."""

import codecs
import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from udkd.utils.errors import DataError
from udkd.utils.parsing import parse_json

JSON_SUFFIXES, TEXT_SUFFIXES, PARQUET = (".jsonl", ".ndjson"), (".csv", ".tsv"), ".parquet"
SUFFIXES = (*TEXT_SUFFIXES, *JSON_SUFFIXES, PARQUET)
_DELIMITERS = ",;\t|"
_PEEKED_ROWS = 100  # in which a .jsonl must show its keys
_MAX_LISTED = 300  # characters of a list of columns
Row = tuple[int, Sequence[object]]


@dataclass(frozen=True, kw_only=True)
class TableRows:
    """A table. columns: their names. unit: `line` (from 1) or `row` (from 0), which rows are counted in.

    read: yields the number of each row and its values of the named columns. Both raise DataError for a damaged table.
    """

    path: Path
    columns: Sequence[str]
    unit: str
    read: Callable[[Sequence[str]], Iterator[Row]]

    def listed(self) -> str:
        """The names of the columns, for messages."""
        text = ", ".join(self.columns)
        return text if len(text) <= _MAX_LISTED else f"{text[:_MAX_LISTED]}…"


def open_table(path: Path) -> TableRows:
    """Open a table. Raises DataError if it is damaged, empty or not in UTF-8 (UTF-16 with a byte order mark is read, too)."""
    suffix = path.suffix.lower()
    if suffix == PARQUET:
        return _open_parquet(path)
    return _open_json(path) if suffix in JSON_SUFFIXES else _open_text(path)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text, with their ends."""
    with open(path, "rb") as binary:
        is_utf16 = binary.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    with open(path, encoding="utf-16" if is_utf16 else "utf-8-sig", newline="") as file:
        try:
            yield from file
        except UnicodeDecodeError as error:
            found = f"is not in UTF-8 (byte {error.object[error.start]:#04x})"
            remedy = f"convert it, such as with: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8{path.suffix}"
            raise DataError(f"{path} {found}; expected a table in UTF-8; {remedy}") from None


def _open_text(path: Path) -> TableRows:
    header = next((line for line in _lines(path) if line.strip()), "")
    delimiter = max("\t" + _DELIMITERS if path.suffix.lower() == ".tsv" else _DELIMITERS, key=header.count)
    columns = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), ())]
    if not any(columns):
        raise DataError(f"{path} is empty; expected a line with the names of its columns; check the path")

    def read(names: Sequence[str]) -> Iterator[Row]:
        indices = [columns.index(name) for name in names]
        reader = csv.reader(_lines(path), delimiter=delimiter)
        try:
            rows = (row for row in reader if any(map(str.strip, row)))
            next(rows)
            for row in rows:
                if len(row) != len(columns):
                    found = f"has {len(row)} values in line {reader.line_num} and {len(columns)} columns"
                    raise DataError(f"{path} {found}; expected as many; quote values that hold the separator {delimiter!r}")
                yield reader.line_num, [row[index] for index in indices]
        except csv.Error as error:
            raise DataError(f"{path} is damaged at line {reader.line_num} ({error}); expected a table; correct it") from None

    return TableRows(path=path, columns=columns, unit="line", read=read)


def _open_json(path: Path) -> TableRows:
    def objects() -> Iterator[tuple[int, Mapping[str, object]]]:
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                continue
            try:
                value = parse_json(line)
            except ValueError as error:
                raise DataError(f"{path} is damaged at line {number} ({error}); expected a JSON object; correct it") from None
            if not isinstance(value, dict):
                raise DataError(f"{path} holds a {type(value).__name__} in line {number}; expected a JSON object; correct it")
            yield number, value

    columns = list(dict.fromkeys(name for _, value in islice(objects(), _PEEKED_ROWS) for name in value))
    if not columns:
        raise DataError(f"{path} is empty; expected a JSON object in each line; check the path")

    def read(names: Sequence[str]) -> Iterator[Row]:
        return ((number, [value.get(name) for name in names]) for number, value in objects())

    return TableRows(path=path, columns=columns, unit="line", read=read)


def _open_parquet(path: Path) -> TableRows:
    from udkd.data_prep.sources.parquet_rows import iter_values, path_columns  # imports pyarrow

    return TableRows(path=path, columns=path_columns(path), unit="row", read=lambda names: enumerate(iter_values(path, names)))
