"""A folder of images (ImageFolder)."""

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.sources.layout import is_image_path, place
from data_prep.sources.source import Entry, EntryTable, Listing, PassedOver
from udkd.operations.pictures import BadImage
from udkd.words.errors import DataError
from udkd.words.texts import TextsBuilder


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
        names, sizes, stamps = TextsBuilder(), array("q"), array("q")
        ignored, entries = PassedOver(), EntryTable()
        for file in _walk(self.path):
            name = os.path.relpath(file.path, self.path)
            if is_image_path(name) and _is_there(file):
                status = file.stat()
                names.append(name)
                sizes.append(status.st_size)
                stamps.append(status.st_mtime_ns)
            elif is_image_path(name) and file.is_symlink():
                names.append(name)
                sizes.append(0)
                stamps.append(0)
            else:
                ignored.append(name)
        paths = names.finish()
        placed = place(paths, self.path.resolve().name)
        for name, size, stamp, found in zip(paths, sizes, stamps, placed, strict=True):
            if found is None:
                ignored.append(name)
            else:
                entries.append(Entry(*found, key=name, offset=0, size=size, stamp=stamp))
        return Listing(entries=entries, ignored=ignored)

    def read(self, entry: Entry) -> bytes:
        """The file's bytes. Raises BadImage for a link that leads nowhere."""
        path = self.path / entry.key
        if not entry.size and path.is_symlink() and not path.is_file():
            raise BadImage("a link that leads nowhere")
        return path.read_bytes()


def _is_there(file: os.DirEntry[str]) -> bool:
    """Whether it is a file, or a link to one; a link to itself is none."""
    try:
        return file.is_file()
    except OSError:
        return False


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
                    if _is_folder(entry):
                        stack.append((entry.path, above | {identity}))
                    else:
                        yield entry
        except OSError as error:
            raise DataError(f"{folder} cannot be listed ({error.strerror}); expected a readable folder; check it") from None


def _is_folder(file: os.DirEntry[str]) -> bool:
    try:
        return file.is_dir()
    except OSError:  # a link to itself
        return False
