"""A folder of images (ImageFolder)."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.sources.ground_truth import GROUND_TRUTH_NAMES, GroundTruth, open_ground_truth
from data_prep.sources.image_folder import ListingBuilder
from data_prep.sources.layout import is_hidden, is_image_path, parse_paths
from data_prep.sources.source import Entry, Listing, SourceSplit
from udkd.data.image_files import BadImage
from udkd.utils.errors import DataError

MAX_LISTED_PAIRS = 3  # pairs in warnings
NOWHERE = "links that lead nowhere"


@dataclass(frozen=True)
class Tree:
    """A folder with one folder per class, below train/ and val/ or alone.

    splits: False where no folder's name tells of a split. truth: the classes of a flat val/, None to look for them inside.
    """

    path: Path
    splits: bool = True
    truth: GroundTruth | None = None

    @staticmethod
    def probe(path: Path) -> "Tree | None":
        """A Tree where `path` is a folder."""
        return Tree(path) if path.is_dir() else None

    def list(self) -> Listing:
        """All image files, links followed, as torchvision's ImageFolder does. Raises DataError: see `parse_paths`."""
        names = ListingBuilder(self.path, self.path.resolve().name, splits=self.splits, truth=self.truth)
        twice: list[tuple[str, str]] = []
        for file in _walk(self.path, twice):
            name = os.path.relpath(file.path, self.path)
            if is_image_path(name) and _is_there(file):
                status = file.stat()
                names.add(name, offset=0, size=status.st_size, stamp=status.st_mtime_ns)
            elif is_image_path(name) and file.is_symlink():
                names.add(name, offset=0, size=0, stamp=0)
            elif not _is_there(file) and file.is_symlink():
                names.skip(name, NOWHERE)
            elif file.name in GROUND_TRUTH_NAMES and not is_hidden(name):
                names.add_ground_truth(open_ground_truth(Path(file.path)), name)
            else:
                names.skip(name)
        for one, other in sorted(twice)[:MAX_LISTED_PAIRS]:
            names.warning(f"{one} and {other} are one folder by links; its images are read under both names")
        return names.listing()

    def files(self) -> Iterator[str]:
        """Every file in it, by its path inside."""
        return (os.path.relpath(file.path, self.path) for file in _walk(self.path))

    def peek_splits(self) -> set[SourceSplit | None]:
        """Which splits class folders are in, None for those in none, by one image of each folder; empty without any."""
        seen: dict[str, str] = {}
        for name in self.files():
            if is_image_path(name):
                seen.setdefault(name.rpartition("/")[0], name)
        try:
            placements = list(parse_paths(list(seen.values()), self.path.resolve().name, source=str(self.path)).placements)
        except DataError:  # it will be said when they are read
            return {None}
        return {place[0] for place in placements if not isinstance(place, str)}

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


def _walk(root: Path, twice: list[tuple[str, str]] | None = None) -> Iterator[os.DirEntry[str]]:
    """Every file below `root`; a folder that links make reachable from within itself is entered once.

    Folders of the operating system that cannot be read (lost+found) come as the files that they are not. twice: takes the
    pairs of paths by which links lead to one folder.
    """
    paths: dict[tuple[int, int], str] = {}
    stack: list[tuple[str, os.DirEntry[str] | None, frozenset[tuple[int, int]]]] = [(str(root), None, frozenset())]
    while stack:
        folder, entry, above = stack.pop()
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        if twice is not None and paths.setdefault(identity, folder) != folder:
            one, other = sorted((folder, paths[identity]))
            twice.append((one, other))
        try:
            with os.scandir(folder) as scan:
                for each in scan:
                    if _is_folder(each):
                        stack.append((each.path, each, above | {identity}))
                    else:
                        yield each
        except OSError as error:
            if entry is None or not is_hidden(entry.name):
                raise DataError(f"{folder} cannot be listed ({error.strerror}); expected a readable folder; check it") from None
            yield entry


def _is_folder(file: os.DirEntry[str]) -> bool:
    try:
        return file.is_dir()
    except OSError:  # a link to itself
        return False
