"""A folder of images (ImageFolder)."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from udkd.data.image_files import BadImage
from udkd.data_prep.sources.ground_truth import GROUND_TRUTH_NAMES, GroundTruth, open_ground_truth
from udkd.data_prep.sources.image_folder import ListingBuilder
from udkd.data_prep.sources.layout import is_hidden, is_image_path, parse_paths
from udkd.data_prep.sources.source import Entry, Listing, SourceSplit
from udkd.data_prep.sources.table_check import is_table_member
from udkd.utils.errors import DataError

MAX_LISTED_PAIRS = 3  # in warnings
BROKEN_LINKS = "links that lead nowhere"


@dataclass(frozen=True)
class Tree:
    """A folder with one folder per class, in train/ and val/ or without splits.

    splits: False if all folders are classes. ground_truth: of a flat val/; None to look for it inside.
    trusted: True if the user chose this layout, so that the folders are classes whatever a table says.
    """

    path: Path
    splits: bool = True
    ground_truth: GroundTruth | None = None
    trusted: bool = False

    @staticmethod
    def probe(path: Path) -> "Tree | None":
        """A Tree if `path` is a folder."""
        return Tree(path) if path.is_dir() else None

    def list(self) -> Listing:
        """All image files. Links are followed, as by torchvision's ImageFolder. Raises DataError: see `parse_paths`."""
        names = ListingBuilder(
            self.path,
            self.path.resolve().name,
            splits=self.splits,
            ground_truth=self.ground_truth,
            trusted=self.trusted,
        )
        linked: list[tuple[str, str]] = []
        for file in _walk(self.path, linked):
            name = os.path.relpath(file.path, self.path)
            if is_image_path(name) and _is_there(file):
                status = file.stat()
                names.add(name, offset=0, size=status.st_size, stamp=status.st_mtime_ns)
            elif is_image_path(name) and file.is_symlink():
                names.add(name, offset=0, size=0, stamp=0)
            elif not _is_there(file) and file.is_symlink():
                names.skip(name, BROKEN_LINKS)
            elif file.name in GROUND_TRUTH_NAMES and not is_hidden(name):
                names.add_ground_truth(open_ground_truth(Path(file.path)), name)
            elif is_table_member(name, 0):
                names.add_table(name, Path(file.path))
            else:
                names.skip(name)
        for first, second in sorted(linked)[:MAX_LISTED_PAIRS]:
            names.warn(f"{first} and {second} are one folder by links; its images are read under both names")
        return names.listing()

    def files(self) -> Iterator[str]:
        """The relative path of every file."""
        return (os.path.relpath(file.path, self.path) for file in _walk(self.path))

    def peek_splits(self) -> set[SourceSplit | None]:
        """The splits of the class folders, judged by one image per folder; None for folders without a split."""
        placed = self._peek()
        return {None} if placed is None else {split for split, _ in placed}

    def peek_classes(self) -> set[str]:
        """The class folders, judged by one image per folder; empty if they are ambiguous."""
        return {class_name for _, class_name in self._peek() or ()}

    def _peek(self) -> set[tuple[SourceSplit | None, str]] | None:
        first_image: dict[str, str] = {}
        for name in self.files():
            if is_image_path(name):
                first_image.setdefault(name.rpartition("/")[0], name)
        try:
            placements = list(
                parse_paths(list(first_image.values()), self.path.resolve().name, source=str(self.path)).placements
            )
        except DataError:  # raised again when the images are listed
            return None
        return {placement[:2] for placement in placements if not isinstance(placement, str)}

    def read(self, entry: Entry) -> bytes:
        """The bytes of a file. Raises BadImage for a broken link."""
        path = self.path / entry.key
        if not entry.size and path.is_symlink() and not path.is_file():
            raise BadImage("a link that leads nowhere")
        return path.read_bytes()


def _is_there(file: os.DirEntry[str]) -> bool:
    """Whether an entry is a file or a link to one; False for a link to itself."""
    try:
        return file.is_file()
    except OSError:
        return False


def _walk(root: Path, linked: list[tuple[str, str]] | None = None) -> Iterator[os.DirEntry[str]]:
    """Yield every file below `root`. A link to one of its own parent folders is not followed.

    Unreadable folders of the operating system (lost+found) are yielded like files. linked: receives pairs of paths that lead to
    the same folder through links.
    """
    paths: dict[tuple[int, int], str] = {}
    stack: list[tuple[str, os.DirEntry[str] | None, frozenset[tuple[int, int]]]] = [(str(root), None, frozenset())]
    while stack:
        folder, entry, above = stack.pop()
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        if linked is not None and paths.setdefault(identity, folder) != folder:
            first, second = sorted((folder, paths[identity]))
            linked.append((first, second))
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
