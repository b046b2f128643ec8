"""Parquet files like those on the Hugging Face Hub: a column of {bytes, path} structs and a column of labels."""

from dataclasses import dataclass
from pathlib import Path

from udkd.data_prep.sources.fields import DETECT_FIELDS, Fields
from udkd.data_prep.sources.named_split import find_files
from udkd.data_prep.sources.source import Entry, Listing


@dataclass(frozen=True)
class Parquet:
    """A .parquet file, or a folder with some, directly or one level down. File names determine the splits.

    fields: columns chosen by the user.
    """

    path: Path
    fields: Fields = DETECT_FIELDS

    @staticmethod
    def probe(path: Path) -> "Parquet | None":
        """A Parquet if `path` is such a file, or a folder with one."""
        return Parquet(path) if find_files(path, ".parquet") else None

    def has_images(self) -> bool:
        """Whether any file has a column of images, or cannot be read. Tables that only describe image files have none."""
        from udkd.data_prep.sources.parquet_rows import has_images

        return has_images(find_files(self.path, ".parquet"))

    def list(self) -> Listing:
        """All rows, in the order of the files. Ids keep this order, as the images of a row group are read together.

        Raises DataError for a damaged file, for missing columns of images or labels, and if the user must choose a column.
        """
        from udkd.data_prep.sources.parquet_rows import list_rows  # imports pyarrow, which workers of other sources do not need

        return list_rows(self.path, find_files(self.path, ".parquet"), self.fields)

    def read(self, entry: Entry) -> bytes:
        """The image's bytes."""
        from udkd.data_prep.sources.parquet_rows import read_row

        return read_row(self.path / entry.key if entry.key else self.path, entry.offset, self.fields)
