"""A tar file of class folders, read without unpacking it."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from udkd.data_prep.sources.ground_truth import GroundTruth
from udkd.data_prep.sources.image_folder import ListingBuilder
from udkd.data_prep.sources.source import Entry, Listing
from udkd.data_prep.sources.tar_members import is_tar, iter_members, read_at


@dataclass(frozen=True)
class Tar:
    """An uncompressed tar with one folder per class, in train/ and val/ or without splits, below any prefix.

    splits: False if all folders are classes. ground_truth: of a flat val/; None to look in the tar and in its folder.
    trusted: True if the user chose this layout, so that the folders are classes whatever a table says.
    """

    path: Path
    splits: bool = True
    ground_truth: GroundTruth | None = None
    trusted: bool = False

    @staticmethod
    def probe(path: Path) -> "Tar | None":
        """A Tar if `path` is a tar file."""
        return Tar(path) if is_tar(path) else None

    def list(self) -> Listing:
        """All image members. Raises DataError: see `iter_members` and `parse_paths`."""
        names = ListingBuilder(
            self.path,
            self.path.name.removesuffix(".tar"),
            splits=self.splits,
            ground_truth=self.ground_truth,
            trusted=self.trusted,
        )
        stamp = self.path.stat().st_mtime_ns
        for member in iter_members(self.path):
            read = partial(read_at, self.path, member.offset, member.size)
            names.add_member(member.name, offset=member.offset, size=member.size, stamp=stamp, read=read)
        names.add_ground_truth_beside()
        return names.listing()

    def read(self, entry: Entry) -> bytes:
        """The member's bytes, by offset."""
        return read_at(self.path, entry.offset, entry.size)
