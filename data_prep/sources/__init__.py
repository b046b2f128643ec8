"""Where images come from: each kind of source is one file, opened by looking at it or by the name of its layout."""

from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep.sources.beton import Beton
from data_prep.sources.ilsvrc import Ilsvrc
from data_prep.sources.parquet import Parquet
from data_prep.sources.source import Entry, EntryTable, Listing, PassedOver, Source, SplitName
from data_prep.sources.tar import Tar
from data_prep.sources.tree import Tree
from data_prep.sources.truth import is_truth
from data_prep.sources.webdataset import WebDataset
from udkd.words.errors import ConfigError, DataError

__all__ = ["AUTO", "LAYOUTS", "Entry", "EntryTable", "Listing", "PassedOver", "Source", "SplitName", "open_sources"]

AUTO = "auto"


def _image_folder(path: Path) -> Source | None:
    return Tree.probe(path) or Tar.probe(path)


# Each probe looks at a path and opens it, or says that it is not of its kind; `auto` asks them in this order, so what takes
# anything comes last. A new kind of source is one line here.
LAYOUTS: dict[str, Callable[[Path], Source | None]] = {
    "ilsvrc": Ilsvrc.probe,
    "webdataset": WebDataset.probe,
    "beton": Beton.probe,
    "parquet": Parquet.probe,
    "imagefolder": _image_folder,
}


def open_sources(paths: Sequence[Path], layout: str = AUTO) -> list[Source]:
    """Open sources by looking at them, or as a named layout. A ground truth of ILSVRC2012 among them goes to its val tar.

    Raises ConfigError and DataError: nothing there, of no known kind or not of the named one, a ground truth without a val tar.
    """
    if layout not in (AUTO, *LAYOUTS):
        raise ConfigError(f"the layout {layout!r} is unknown; expected {AUTO}, {', '.join(LAYOUTS)}; change --layout")
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist; expected a folder or a file of images; check the path")
    truths = [path for path in paths if is_truth(path)]
    opened = [_open(path, layout, truths[0] if truths else None) for path in paths if path not in truths]
    if truths and not any(isinstance(source, Ilsvrc) and source.val for source in opened):
        raise DataError(f"{truths[0]} says which classes validation images have; expected their tar beside it; name it too")
    return opened


def _open(path: Path, layout: str, truth: Path | None) -> Source:
    for name, probe in LAYOUTS.items():
        if layout not in (AUTO, name):
            continue
        source = Ilsvrc.probe(path, truth) if name == "ilsvrc" else probe(path)
        if source is not None:
            return source
    if layout != AUTO:
        raise DataError(f"{path} is not of the layout {layout}; expected one; check --layout or leave it away")
    raise DataError(
        f"{path} is of no known kind; expected a folder or a tar file of images, parquet files or a .beton; check the path"
    )
