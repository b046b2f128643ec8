"""Parquet shards as the Hugging Face Hub serves image sets: a column of {bytes, path} structs, a column of labels."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.sources.fields import DETECT_FIELDS, Fields
from data_prep.sources.named_split import find_files
from data_prep.sources.source import Entry, Listing


@dataclass(frozen=True)
class Parquet:
    """A .parquet file, or a folder that holds any, in it or in its folders. Splits are told by the files' names.

    fields: the columns that the user chose.
    """

    path: Path
    fields: Fields = DETECT_FIELDS

    @staticmethod
    def probe(path: Path) -> "Parquet | None":
        """A Parquet where `path` is one such file, or a folder with one."""
        return Parquet(path) if find_files(path, ".parquet") else None

    def has_images(self) -> bool:
        """Whether a file has a column of images, or cannot be looked into; a table that describes other images has none."""
        from data_prep.sources.parquet_rows import has_images

        return has_images(find_files(self.path, ".parquet"))

    def list(self) -> Listing:
        """All rows, in the order of files and rows: images of one row group are read together, so ids follow that order.

        Raises DataError for a damaged file, columns that hold no images or no labels, and several to choose from.
        """
        from data_prep.sources.parquet_rows import list_rows  # pyarrow, which workers on other sources need not load

        return list_rows(self.path, find_files(self.path, ".parquet"), self.fields)

    def read(self, entry: Entry) -> bytes:
        """The image's bytes."""
        from data_prep.sources.parquet_rows import read_row

        return read_row(self.path / entry.key if entry.key else self.path, entry.offset, self.fields)
