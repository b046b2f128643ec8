"""A folder of images (ImageFolder)."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.sources.layout import is_image_path, place
from data_prep.sources.source import Entry, Listing
from udkd.words.errors import DataError


@dataclass(frozen=True)
class Tree:
    """A folder with one folder per class, below train/ and val/ or alone."""

    path: Path

    @staticmethod
    def probe(path: Path) -> "Tree | None":
        """A Tree where `path` is a folder."""
        return Tree(path) if path.is_dir() else None

    def list(self) -> Listing:
        """All image files, links followed, as torchvision's ImageFolder does."""
        found: list[tuple[str, os.stat_result]] = []
        ignored: list[str] = []
        for file in _walk(self.path):
            name = os.path.relpath(file.path, self.path)
            if is_image_path(name) and file.is_file():
                found.append((name, file.stat()))
            else:
                ignored.append(name)
        entries: list[Entry] = []
        root = self.path.resolve().name
        for (name, stat), placed in zip(found, place([name for name, _ in found], root), strict=True):
            if placed is None:
                ignored.append(name)
            else:
                entries.append(Entry(*placed, key=name, offset=0, size=stat.st_size, stamp=stat.st_mtime_ns))
        return Listing(entries=entries, ignored=ignored)

    def read(self, entry: Entry) -> bytes:
        """The file's bytes."""
        return (self.path / entry.key).read_bytes()


def _walk(root: Path) -> Iterator[os.DirEntry[str]]:
    """Every file below `root`; a folder that links make reachable from within itself is entered once."""
    stack = [(str(root), frozenset[tuple[int, int]]())]
    while stack:
        folder, above = stack.pop()
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        try:
            with os.scandir(folder) as scan:
                for entry in scan:
                    if entry.is_dir():
                        stack.append((entry.path, above | {identity}))
                    else:
                        yield entry
        except OSError as error:
            raise DataError(f"{folder} cannot be listed ({error.strerror}); expected a readable folder; check it") from None
