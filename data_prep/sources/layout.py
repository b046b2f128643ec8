"""Reads split, class and name out of image paths: `[prefix/]train/<class>/<name>`, or `[prefix/]<class>/<name>`."""

import re
import sys
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
    parts = [path.split("/") for path in paths]
    if any(_split_at(each) is not None for each in parts):
        for each in parts:
            at = _split_at(each)
            yield None if at is None else (_split_named(each[at]), sys.intern(each[at + 1]), "/".join(each[at + 2 :]))
        return
    split = _split_named(root)
    prefix = _common_prefix([each for each in parts if len(each) > 1])
    for each in parts:
        inside = each[prefix:]
        yield (split, sys.intern(inside[0]), "/".join(inside[1:])) if len(inside) > 1 else None


def _split_at(parts: list[str]) -> int | None:
    """Index of the first split folder that has a class folder and a file below it."""
    return next((n for n, part in enumerate(parts[:-2]) if _split_named(part)), None)


def _split_named(folder: str) -> SplitName | None:
    found = SPLIT_FOLDER.fullmatch(folder)
    return None if found is None else "train" if found[1] else "val"


def _common_prefix(paths: list[list[str]]) -> int:
    """How many leading folders all paths share, less what is needed to keep a class folder before every name."""
    if not paths:
        return 0
    first, last = min(paths), max(paths)
    shared = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(shared, min(map(len, paths)) - 2)
