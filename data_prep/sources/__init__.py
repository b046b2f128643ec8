"""Where images come from: each kind of source is one file, opened by looking at it."""

from collections.abc import Callable
from pathlib import Path

from data_prep.sources.source import Entry, Listing, Source, SplitName
from data_prep.sources.tar import Tar
from data_prep.sources.tree import Tree
from udkd.words.errors import DataError

__all__ = ["Entry", "Listing", "Source", "SplitName", "open_source"]

# Each probe looks at a path and opens it, or says that it is not of its kind. A new kind of source is one line here.
PROBES: tuple[Callable[[Path], Source | None], ...] = (Tree.probe, Tar.probe)


def open_source(path: Path) -> Source:
    """Open a source by looking at it. Raises DataError: nothing there, or of no known kind."""
    if not path.exists():
        raise DataError(f"{path} does not exist; expected a folder or a tar file of images; check the path")
    for probe in PROBES:
        source = probe(path)
        if source is not None:
            return source
    raise DataError(f"{path} is of no known kind; expected a folder or a tar file of images; check the path")
