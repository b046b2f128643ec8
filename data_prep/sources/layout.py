"""Reads split, class and name out of image paths: `[prefix/]train/<class>/<name>`, or `[prefix/]<class>/<name>`."""

import re
from collections.abc import Iterator, Sequence

from data_prep.sources.source import SplitName

# Kaggle's ImageNet-100 calls them train.X1 … train.X4 and val.X.
SPLIT_FOLDER = re.compile(r"(?:(train)|val(?:idation)?)(?:\.x\d*)?", re.IGNORECASE)
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def is_image_path(path: str) -> bool:
    """Whether a path is taken for an image; hidden files and folders (macOS writes `._name.JPEG`) are not."""
    parts = path.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and parts[-1].lower().endswith(IMAGE_ENDINGS)


def place(paths: Sequence[str], root: str) -> Iterator[tuple[SplitName | None, str, str] | None]:
    """Split, class and name of each path, in order; None for a path that lies outside all class folders.

    paths: relative, `/` between parts. root: the source's own name; a folder called `train` or `val` is a split itself.
    Where any path has a split folder with a class folder in it, only such paths count. Otherwise what all paths have in
    common is a prefix, and the class folder follows it.
    """
    if any(_split_at(path.split("/")) is not None for path in paths):
        for path in paths:
            parts = path.split("/")
            at = _split_at(parts)
            yield None if at is None else (_split_named(parts[at]), parts[at + 1], "/".join(parts[at + 2 :]))
        return
    split = _split_named(root)
    prefix = _common_prefix(parts for path in paths if len(parts := path.split("/")) > 1)
    for path in paths:
        inside = path.split("/")[prefix:]
        yield (split, inside[0], "/".join(inside[1:])) if len(inside) > 1 else None


def _split_at(parts: list[str]) -> int | None:
    """Index of the first split folder that has a class folder and a file below it."""
    return next((n for n, part in enumerate(parts[:-2]) if _split_named(part)), None)


def _split_named(folder: str) -> SplitName | None:
    found = SPLIT_FOLDER.fullmatch(folder)
    return None if found is None else "train" if found[1] else "val"


def _common_prefix(paths: Iterator[list[str]]) -> int:
    """How many leading folders all paths share, less what is needed to keep a class folder before every name."""
    first = next(paths, None)
    if first is None:
        return 0
    shared, shortest = len(first), len(first)
    for parts in paths:
        if parts[:shared] != first[:shared]:
            shared = next((n for n, (a, b) in enumerate(zip(parts, first, strict=False)) if a != b), len(parts))
        shortest = min(shortest, len(parts))
    return min(shared, shortest - 2)
