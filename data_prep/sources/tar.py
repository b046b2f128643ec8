"""A tar file of an image folder, read by name in memory."""

from array import array
from dataclasses import dataclass
from pathlib import Path

from data_prep.sources.layout import is_image_path, place
from data_prep.sources.members import is_tar, members, read_at
from data_prep.sources.source import Entry, EntryTable, Listing, PassedOver
from udkd.words.texts import TextsBuilder


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
        names, offsets, sizes = TextsBuilder(), array("q"), array("q")
        ignored, entries = PassedOver(), EntryTable()
        for member in members(self.path):
            if is_image_path(member.name):
                names.append(member.name)
                offsets.append(member.offset)
                sizes.append(member.size)
            else:
                ignored.append(member.name)
        stamp = self.path.stat().st_mtime_ns
        paths = names.finish()
        placed = place(paths, self.path.name.removesuffix(".tar"))
        for name, offset, size, found in zip(paths, offsets, sizes, placed, strict=True):
            if found is None:
                ignored.append(name)
            else:
                entries.append(Entry(*found, key=name, offset=offset, size=size, stamp=stamp))
        return Listing(entries=entries, ignored=ignored)

    def read(self, entry: Entry) -> bytes:
        """The member's bytes, by offset."""
        return read_at(self.path, entry.offset, entry.size)
