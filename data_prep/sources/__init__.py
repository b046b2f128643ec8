"""Where images come from: each kind of source is one file, opened by looking at it or by the name of its layout."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.sources.beton import Beton
from data_prep.sources.class_tars import ClassTars, class_tars
from data_prep.sources.fields import DETECT_FIELDS, IMAGE_OPTION, LABEL_OPTION, Fields
from data_prep.sources.ground_truth import is_ground_truth, open_ground_truth, read_ground_truth
from data_prep.sources.ilsvrc import Ilsvrc
from data_prep.sources.layout import ARCHIVES, UNREAD, is_image_path, looks_like_val, skip_reason
from data_prep.sources.named_split import find_files, single_split_in
from data_prep.sources.parquet import Parquet
from data_prep.sources.source import (
    OTHER_FILES,
    TEST_IMAGES,
    Entry,
    EntryTable,
    Listing,
    Skipped,
    Source,
    SourceSplit,
    SplitName,
)
from data_prep.sources.tar import Tar
from data_prep.sources.tree import Tree
from data_prep.sources.unread_kinds import identify_unread
from data_prep.sources.webdataset import WebDataset
from udkd.utils.errors import ConfigError, DataError

__all__ = [
    "ARCHIVES",
    "AUTO",
    "LAYOUTS",
    "OTHER_FILES",
    "TEST_IMAGES",
    "UNREAD",
    "Entry",
    "EntryTable",
    "Fields",
    "Listing",
    "Skipped",
    "Source",
    "SourceSplit",
    "SplitName",
    "identify_unread",
    "open_sources",
    "single_split_in",
]

AUTO = "auto"
BESIDE_FILES = "images beside the files that are read"


def _image_folder(path: Path) -> Source | None:
    return Tree.probe(path) or Tar.probe(path)


def _class_folders(path: Path) -> Source | None:
    found = Tree.probe(path) or Tar.probe(path)
    return None if found is None else replace(found, splits=False)


# Each probe looks at a path and opens it, or says that it is not of its kind; `auto` asks them in this order, so what takes
# anything comes last. A new kind of source is one line here.
LAYOUTS: dict[str, Callable[[Path], Source | None]] = {
    "ilsvrc": lambda path: Ilsvrc.probe(path) or ClassTars.probe(path),
    "webdataset": WebDataset.probe,
    "beton": Beton.probe,
    "parquet": Parquet.probe,
    "imagefolder": _image_folder,
    "classfolders": _class_folders,
}


@dataclass(frozen=True)
class _SourceInFolder:
    """A source in a folder where other files lie, too. read_files: those that the source reads. remark: see Listing."""

    source: Source
    read_files: frozenset[Path]
    warning: str = ""

    @property
    def path(self) -> Path:
        return self.source.path

    def list(self) -> Listing:
        """The source's, with the other files as passed over."""
        listing, val_advice = self.source.list(), ""
        with contextlib.suppress(DataError):  # a folder that cannot be listed is no matter to this source
            for file in Tree(self.path).files() if self.read_files else ():
                if self.path / file not in self.read_files:
                    listing.skipped.append(file, skip_reason(file) if not is_image_path(file) else BESIDE_FILES)
                    val_advice = min(filter(None, (val_advice, file))) if looks_like_val(file) else val_advice
        if val_advice:
            val_advice += " is not read: name it, too, if it holds validation images, or give --hold-out PERCENT if it does not"
        warnings = (*listing.warnings, self.warning) if self.warning else listing.warnings
        return replace(listing, warnings=warnings, val_advice=listing.val_advice or val_advice)

    def read(self, entry: Entry) -> bytes:
        """See Source."""
        return self.source.read(entry)


def _read_files(source: Source) -> frozenset[Path]:
    """The files that a source in a folder is made of; none where all files of the folder are its own business."""
    path = source.path
    if not path.is_dir() or isinstance(source, Tree) or (path / "dataset.json").is_file():
        return frozenset()
    files: Iterable[Path | None] = ()
    match source:
        case Ilsvrc():
            files = (source.train, source.val, source.truth)
        case ClassTars():
            files = class_tars(path)
        case WebDataset():
            files = find_files(path, ".tar")
        case Parquet():
            files = find_files(path, ".parquet")
        case Beton():
            files = path.glob("*.beton")
    return frozenset(file for file in files if file is not None)


def open_sources(paths: Sequence[Path], layout: str = AUTO, fields: Fields = DETECT_FIELDS) -> list[Source]:
    """Open sources by looking at them, or as a named layout. A ground truth among them goes to a val without class folders.

    Raises ConfigError and DataError: nothing there, of no known kind or not of the named one, of two kinds at once, a ground
    truth that is none, or without images that it could be for.
    """
    if layout not in (AUTO, *LAYOUTS):
        raise ConfigError(f"the layout {layout!r} is unknown; expected {AUTO}, {', '.join(LAYOUTS)}; change --layout")
    for path in paths:
        if not path.exists():
            fault = "is a link that leads nowhere" if path.is_symlink() else "does not exist"
            raise DataError(f"{path} {fault}; expected a folder or a file of images; check the path")
    truths = [path for path in paths if is_ground_truth(path)]
    for path in truths:
        read_ground_truth(path)
    if len(truths) > 1:
        raise DataError(
            f"{truths[0]} and {truths[1]} both say which classes validation images have; expected one; leave one away"
        )
    opened = [_open(path, layout, truths[0] if truths else None) for path in paths if path not in truths]
    bare = [source.source if isinstance(source, _SourceInFolder) else source for source in opened]
    if truths and not any(isinstance(source, Tree | Tar) or (isinstance(source, Ilsvrc) and source.val) for source in bare):
        raise DataError(f"{truths[0]} says which classes validation images have; expected their tar beside it; name it too")
    return _with_fields(opened, fields)


def _with_fields(sources: list[Source], fields: Fields) -> list[Source]:
    """The sources told which of their fields the user chose. Raises ConfigError where none has fields."""
    if fields == DETECT_FIELDS:
        return sources
    told = [_with_source_fields(source, fields) for source in sources]
    if told == sources:
        where = ", ".join(str(source.path) for source in sources)
        raise ConfigError(
            f"{IMAGE_OPTION} and {LABEL_OPTION} choose among the fields of WebDatasets, parquet files and .betons; "
            f"{where} is none; leave them away"
        )
    return told


def _with_source_fields(source: Source, fields: Fields) -> Source:
    if isinstance(source, _SourceInFolder):
        return replace(source, source=_with_source_fields(source.source, fields))
    return replace(source, fields=fields) if isinstance(source, WebDataset | Parquet | Beton) else source


def _open(path: Path, layout: str, truth: Path | None) -> Source:
    if layout != AUTO:
        source = LAYOUTS[layout](path) or (WebDataset.probe(path, texts=True) if layout == "webdataset" else None)
        if source is None:
            raise DataError(f"{path} is not of the layout {layout}; expected one; check --layout or leave it away")
        return _SourceInFolder(_with_ground_truth(source, truth), _read_files(source))
    found = {name: source for name, probe in LAYOUTS.items() if name != "classfolders" and (source := probe(path)) is not None}
    if list(found) == ["imagefolder"] and (samples := WebDataset.probe(path, texts=True)):
        tree = found["imagefolder"]
        found = found if isinstance(tree, Tree) and tree.peek_splits() else {"webdataset": samples, **found}
    if found:
        return _choose_reading(path, {name: _with_ground_truth(source, truth) for name, source in found.items()})
    what = identify_unread(path)
    if what is not None:
        raise DataError(f"{path} is of a kind that is not read ({what[0]}); expected a folder or a tar of images; {what[1]}")
    raise DataError(
        f"{path} is of no known kind; expected a folder or a tar file of images, parquet files or a .beton; check the path"
    )


def _with_ground_truth(source: Source, truth: Path | None) -> Source:
    if truth is None:
        return source
    if isinstance(source, Ilsvrc):
        return replace(source, truth=truth)
    return replace(source, truth=open_ground_truth(truth)) if isinstance(source, Tree | Tar) else source


def _choose_reading(path: Path, found: dict[str, Source]) -> Source:
    """The source that counts where one path can be read as several. Raises DataError where that is for the user to say."""
    (first, source), *others = found.items()
    tree = found.get("imagefolder")
    if not others or not isinstance(tree, Tree) or (path / "dataset.json").is_file():  # a dataset folder of ours is shards
        return source
    splits, table = tree.peek_splits(), found.get("parquet")
    if splits and isinstance(table, Parquet) and not table.has_images():
        return _choose_reading(path, {name: each for name, each in found.items() if name != "parquet"})
    also = [_DESCRIPTIONS[name] for name, _ in others if name != "imagefolder" or splits]
    whole = isinstance(source, Ilsvrc) and source.train is not None and source.val is not None
    if first == "ilsvrc" and not whole and {"train", "val"} <= splits:  # as torchvision leaves it
        return _SourceInFolder(tree, frozenset(), f"{path} holds class folders and tars of ILSVRC2012; the folders are read")
    if splits and not whole and ("train" in splits or "val" in splits or "beton" in found or first == "ilsvrc"):
        choices = " or ".join(f"--layout {name}" for name in found)
        raise DataError(
            f"{path} holds {_DESCRIPTIONS[first]} and {' and '.join(also)}; expected one of them; name the folders and files "
            f"that you want as sources, or say which to read with {choices}"
        )
    warning = (
        f"{path} holds {_DESCRIPTIONS[first]} and {' and '.join(also)}; only {_DESCRIPTIONS[first]} are read" if also else ""
    )
    return _SourceInFolder(source, _read_files(source), warning)


_DESCRIPTIONS = {
    "ilsvrc": "tars of ILSVRC2012",
    "webdataset": "shards of a WebDataset",
    "beton": ".beton files",
    "parquet": "parquet files",
    "imagefolder": "class folders of images",
}
