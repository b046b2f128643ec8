"""A tar file of an image folder, read by name in memory."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

from data_prep.sources.ground_truth import LIMIT_BYTES, NAMES, Truth, find_truth, truth_at
from data_prep.sources.image_folder import Names
from data_prep.sources.layout import is_hidden, is_image_path
from data_prep.sources.source import Entry, Listing
from data_prep.sources.tar_members import Member, is_tar, members, read_at


@dataclass(frozen=True)
class Tar:
    """An uncompressed tar with one folder per class, below train/ and val/ or alone, after any prefix.

    splits: False where no folder's name tells of a split. truth: the classes of a flat val/, None to look for them in the
    tar and beside it.
    """

    path: Path
    splits: bool = True
    truth: Truth | None = None

    @staticmethod
    def probe(path: Path) -> "Tar | None":
        """A Tar where `path` is a tar file. Raises DataError for a compressed one."""
        return Tar(path) if is_tar(path) else None

    def list(self) -> Listing:
        """All image members. Errors: see `members` and `arrange`."""
        names = Names(self.path, self.path.name.removesuffix(".tar"), splits=self.splits, truth=self.truth)
        stamp = self.path.stat().st_mtime_ns
        for member in members(self.path):
            if is_image_path(member.name):
                names.add(member.name, offset=member.offset, size=member.size, stamp=stamp)
            elif _is_truth(member):
                where = f"{self.path}, {member.name}"
                truth = Truth(PurePath(member.name).name, where, partial(read_at, self.path, member.offset, member.size))
                names.add_truth(truth, member.name)
            else:
                names.pass_over(member.name)
        beside = find_truth(self.path.parent)
        if beside is not None:
            names.add_truth(truth_at(beside))
        return names.listing()

    def read(self, entry: Entry) -> bytes:
        """The member's bytes, by offset."""
        return read_at(self.path, entry.offset, entry.size)


def _is_truth(member: Member) -> bool:
    return PurePath(member.name).name in NAMES and not is_hidden(member.name) and member.size <= LIMIT_BYTES
