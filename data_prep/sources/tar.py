"""A tar file of an image folder, read by name in memory."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.sources.layout import is_image_path, place
from data_prep.sources.members import is_tar, members, read_at
from data_prep.sources.source import Entry, Listing


@dataclass(frozen=True)
class Tar:
    """An uncompressed tar with one folder per class, below train/ and val/ or alone, after any prefix."""

    path: Path

    @staticmethod
    def probe(path: Path) -> "Tar | None":
        """A Tar where `path` is a tar file. Raises DataError for a compressed one."""
        return Tar(path) if is_tar(path) else None

    def list(self) -> Listing:
        """All image members. Errors: see `members`."""
        found = []
        ignored: list[str] = []
        for member in members(self.path):
            if is_image_path(member.name):
                found.append(member)
            else:
                ignored.append(member.name)
        stamp = self.path.stat().st_mtime_ns
        entries: list[Entry] = []
        root = self.path.name.removesuffix(".tar")
        for member, placed in zip(found, place([member.name for member in found], root), strict=True):
            if placed is None:
                ignored.append(member.name)
            else:
                entries.append(Entry(*placed, key=member.name, offset=member.offset, size=member.size, stamp=stamp))
        return Listing(entries=entries, ignored=ignored)

    def read(self, entry: Entry) -> bytes:
        """The member's bytes, by offset."""
        return read_at(self.path, entry.offset, entry.size)
