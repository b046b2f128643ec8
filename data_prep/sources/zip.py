"""A zip of class folders, as Kaggle's, read without unpacking it."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from udkd.data.image_files import BadImage
from udkd.data_prep.sources.ground_truth import GroundTruth, is_ground_truth_member
from udkd.data_prep.sources.image_folder import ListingBuilder
from udkd.data_prep.sources.layout import is_image_path
from udkd.data_prep.sources.source import Entry, Listing
from udkd.data_prep.sources.zip_members import ZipMember, is_zip, iter_members, read_member
from udkd.utils.errors import DataError


@dataclass(frozen=True)
class Zip:
    """A zip with one folder per class, in train/ and val/ or without splits, below any prefix. Images are stored or deflated.

    splits: False if all folders are classes. ground_truth: of a flat val/; None to look in the zip and in its folder.
    trusted: True if the user chose this layout, so that the folders are classes whatever a table says.
    """

    path: Path
    splits: bool = True
    ground_truth: GroundTruth | None = None
    trusted: bool = False

    @staticmethod
    def probe(path: Path) -> "Zip | None":
        """A Zip if `path` is a zip file."""
        return Zip(path) if is_zip(path) else None

    def list(self) -> Listing:
        """All image members; their CRC-32 is the stamp. Raises DataError: see `iter_members` and `parse_paths`."""
        root = self.path.stem if self.path.suffix.lower() == ".zip" else self.path.name
        names = ListingBuilder(self.path, root, splits=self.splits, ground_truth=self.ground_truth, trusted=self.trusted)
        for member in iter_members(self.path):
            if is_image_path(member.name) or is_ground_truth_member(member.name, member.size):
                member.check(self.path)
            read = partial(_content, self.path, member)
            names.add_member(member.name, offset=member.offset, size=member.size, stamp=member.crc32, read=read)
        names.add_ground_truth_beside()
        return names.listing()

    def read(self, entry: Entry) -> bytes:
        """The member's content, by offset. Raises BadImage for a damaged one."""
        return read_member(self.path, entry.offset, entry.size, entry.stamp)


def _content(path: Path, member: ZipMember) -> bytes:
    try:
        return read_member(path, member.offset, member.size, member.crc32)
    except BadImage as error:
        raise DataError(f"{member.name} of {path} is {error}; expected an intact zip; fetch it again") from None
