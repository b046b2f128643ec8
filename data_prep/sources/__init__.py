"""Sources of images, one module per kind. The layout of a source is detected, or named by the user."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from udkd.data_prep.sources.address import Address, Location, expand
from udkd.data_prep.sources.beton import Beton
from udkd.data_prep.sources.class_tars import ClassTars, class_tars
from udkd.data_prep.sources.fields import DETECT_FIELDS, IMAGE_OPTION, LABEL_OPTION, Fields
from udkd.data_prep.sources.ground_truth import is_ground_truth, open_ground_truth, read_ground_truth
from udkd.data_prep.sources.ilsvrc import Ilsvrc
from udkd.data_prep.sources.layout import ARCHIVES, UNREAD, is_image_path, looks_like_val, skip_reason
from udkd.data_prep.sources.named_split import find_files, single_split_in
from udkd.data_prep.sources.parquet import Parquet
from udkd.data_prep.sources.saved_dataset import SavedDataset
from udkd.data_prep.sources.source import (
    OTHER_FILES,
    TEST_IMAGES,
    Entry,
    EntryTable,
    Listing,
    Skipped,
    Source,
    SourceSplit,
    SplitName,
    StreamSource,
)
from udkd.data_prep.sources.streamed_parquet import StreamedParquet
from udkd.data_prep.sources.streamed_tar import StreamedTar, is_compressed_tar, open_stream
from udkd.data_prep.sources.table import IMAGES_OPTION, Table
from udkd.data_prep.sources.tar import Tar
from udkd.data_prep.sources.tree import Tree
from udkd.data_prep.sources.unread_kinds import identify_unread
from udkd.data_prep.sources.webdataset import WebDataset
from udkd.data_prep.sources.zip import Zip
from udkd.utils.errors import ConfigError, DataError
from udkd.utils.progress import SILENT, Observer

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
    "StreamSource",
    "identify_unread",
    "open_sources",
    "single_split_in",
]

AUTO = "auto"
BESIDE_FILES = "images beside the files that are read"


def _image_folder(path: Path) -> Tree | Tar | Zip | None:
    return Tree.probe(path) or Tar.probe(path) or Zip.probe(path)


def _class_folders(path: Path) -> Source | None:
    source = _image_folder(path)
    return None if source is None else replace(source, splits=False)


# Each probe opens a path, or returns None if it is of another kind. `auto` tries them in this order: the least specific ones
# come last. A new kind of source needs one line here.
LAYOUTS: dict[str, Callable[[Path], Source | None]] = {
    "ilsvrc": lambda path: Ilsvrc.probe(path) or ClassTars.probe(path),
    "webdataset": WebDataset.probe,
    "beton": Beton.probe,
    "arrow": SavedDataset.probe,
    "table": Table.probe,
    "parquet": Parquet.probe,
    "imagefolder": _image_folder,
    "classfolders": _class_folders,
}


@dataclass(frozen=True)
class _SourceInFolder:
    """A source in a folder that has other files, too. read_files: the files that it reads. warning: added to its listing."""

    source: Source
    read_files: frozenset[Path]
    warning: str = ""

    @property
    def path(self) -> Path:
        return _local(self.source)

    def list(self) -> Listing:
        """The source's listing, with the folder's other files as skipped files."""
        listing, val_advice = self.source.list(), ""
        with contextlib.suppress(DataError):  # a subfolder that cannot be listed does not affect this source
            for file in Tree(self.path).files() if self.read_files else ():
                if self.path / file not in self.read_files:
                    listing.skipped.append(file, skip_reason(file) if not is_image_path(file) else BESIDE_FILES)
                    val_advice = min(filter(None, (val_advice, file))) if looks_like_val(file) else val_advice
        if val_advice:
            val_advice += " is not read: name it too if it holds validation images, or give --hold-out PERCENT if it does not"
        warnings = (*listing.warnings, self.warning) if self.warning else listing.warnings
        return replace(listing, warnings=warnings, val_advice=listing.val_advice or val_advice)

    def read(self, entry: Entry) -> bytes:
        """See Source."""
        return self.source.read(entry)


def _local(source: Source) -> Path:
    """The path of a source that is not an address."""
    assert isinstance(source.path, Path)
    return source.path


def _read_files(source: Source) -> frozenset[Path]:
    """The files of a folder that its source reads; empty if the source handles all files of the folder."""
    path = _local(source)
    if not path.is_dir() or isinstance(source, Tree) or (path / "dataset.json").is_file():
        return frozenset()
    files: Iterable[Path | None] = ()
    match source:
        case Ilsvrc():
            files = (source.train, source.val, source.ground_truth)
        case ClassTars():
            files = class_tars(path)
        case WebDataset():
            files = find_files(path, ".tar")
        case Parquet():
            files = find_files(path, ".parquet")
        case SavedDataset():
            files = source.described()
        case Beton():
            files = path.glob("*.beton")
    return frozenset(file for file in files if file is not None)


def open_sources(
    locations: Sequence[Location],
    layout: str = AUTO,
    fields: Fields = DETECT_FIELDS,
    images: Path | None = None,
    observer: Observer = SILENT,
) -> list[Source]:
    """Open sources with the named layout, or detect it. A ground truth among them labels a val/ without class folders.

    images: the folder that the paths in tables are relative to. A folder of images without class folders, named beside a table,
    may be that folder, too. Raises ConfigError for an unknown layout and for fields or images of sources that have none. Raises
    DataError for a path that does not exist or that cannot be read with the layout, and for a ground truth that is invalid or
    has no validation images.
    """
    if layout not in (AUTO, *LAYOUTS):
        raise ConfigError(f"the layout {layout!r} is unknown; expected {AUTO}, {', '.join(LAYOUTS)}; change --layout")
    paths = [location for location in locations if isinstance(location, Path)]
    for path in paths:
        if not path.exists():
            fault = "is a broken link" if path.is_symlink() else "does not exist"
            raise DataError(f"{path} {fault}; expected a folder or a file of images; check the path")
    ground_truths = [path for path in paths if is_ground_truth(path)]
    for path in ground_truths:
        read_ground_truth(path)
    if len(ground_truths) > 1:
        raise DataError(f"{ground_truths[0]} and {ground_truths[1]} both label the validation images; expected one; remove one")
    ground_truth = ground_truths[0] if ground_truths else None
    opened: list[Source] = []
    for location in locations:
        if isinstance(location, Address):
            opened += [_open_stream(each, layout, ground_truth, observer) for each in expand(location)]
        elif location not in ground_truths:
            stream = is_compressed_tar(location)
            opened.append(
                _open_stream(location, layout, ground_truth, observer) if stream else _open(location, layout, ground_truth)
            )
    bare = map(_bare, opened)
    if ground_truths and not any(
        isinstance(source, Tree | Tar | Zip | StreamedTar) or (isinstance(source, Ilsvrc) and source.val) for source in bare
    ):
        raise DataError(f"{ground_truths[0]} labels validation images, which no source holds; expected their tar; name it too")
    return _with_fields(_with_images(opened, images), fields)


def _with_images(sources: list[Source], images: Path | None) -> list[Source]:
    """The sources with the folders of the images of tables. Raises ConfigError if there is no table, DataError if no folder."""
    tables = [each for each in sources if isinstance(_bare(each), Table)]
    if images is not None and not tables:
        raise ConfigError(f"{IMAGES_OPTION} is the folder of the paths in a table, and no source is one; remove it")
    if images is not None and not images.is_dir():
        do = "unpack the archive" if images.is_file() else f"check {IMAGES_OPTION}"
        raise DataError(f"{images} is no folder; expected that of the images in the table; {do}")
    flat = [each for each in sources if _is_flat(_bare(each))] if tables else []
    folders = tuple(each.path for each in flat)
    return [_replaced(each, images=images, folders=folders) if each in tables else each for each in sources if each not in flat]


def _bare(source: Source) -> Source:
    return source.source if isinstance(source, _SourceInFolder) else source


def _replaced(source: Source, **changes: object) -> Source:
    """A source with other values of its fields."""
    if isinstance(source, _SourceInFolder):
        return replace(source, source=_replaced(source.source, **changes))
    replaced: Source = replace(source, **changes)  # type: ignore[type-var]
    return replaced


def _is_flat(source: Source) -> bool:
    return isinstance(source, Tree) and not source.peek_classes()


def _with_fields(sources: list[Source], fields: Fields) -> list[Source]:
    """The sources with the fields that the user chose. Raises ConfigError if no source has fields."""
    if fields == DETECT_FIELDS:
        return sources
    changed = [_with_source_fields(source, fields) for source in sources]
    if changed == sources:
        where = ", ".join(str(source.path) for source in sources)
        raise ConfigError(
            f"{IMAGE_OPTION} and {LABEL_OPTION} choose among the fields of WebDatasets, parquet and arrow files, tables and "
            f".betons; {where} has no fields; remove the options"
        )
    return changed


def _with_source_fields(source: Source, fields: Fields) -> Source:
    match _bare(source):
        case (
            WebDataset() | SavedDataset() | Parquet() | Beton() | Table() | StreamedParquet() | StreamedTar(is_webdataset=True)
        ):
            return _replaced(source, fields=fields)
    return source


def _open_stream(location: Location, layout: str, ground_truth: Path | None, observer: Observer) -> Source:
    given = None if ground_truth is None else open_ground_truth(ground_truth)
    return open_stream(location, None if layout == AUTO else layout, ground_truth=given, observer=observer)


def _open(path: Path, layout: str, ground_truth: Path | None) -> Source:
    if layout != AUTO:
        source = LAYOUTS[layout](path) or (WebDataset.probe(path, texts=True) if layout == "webdataset" else None)
        if source is None:
            raise DataError(f"{path} does not have the layout {layout}; expected one that does; check --layout or remove it")
        source = replace(source, trusted=True) if isinstance(source, Tree | Tar | Zip) else source
        return _SourceInFolder(_with_ground_truth(source, ground_truth), _read_files(source))
    readings = {
        name: source for name, probe in LAYOUTS.items() if name != "classfolders" and (source := probe(path)) is not None
    }
    if list(readings) == ["imagefolder"] and (samples := WebDataset.probe(path, texts=True)):
        tree = readings["imagefolder"]
        readings = readings if isinstance(tree, Tree) and tree.peek_splits() else {"webdataset": samples, **readings}
    if readings:
        return _choose_reading(path, {name: _with_ground_truth(source, ground_truth) for name, source in readings.items()})
    what = identify_unread(path)
    if what is not None:
        raise DataError(f"{path} is of an unsupported kind ({what[0]}); expected a folder, tar or zip of images; {what[1]}")
    raise DataError(
        f"{path} is of an unknown kind; expected a folder, tar or zip of images, a table of paths, parquet files or a .beton; "
        "check the path"
    )


def _with_ground_truth(source: Source, ground_truth: Path | None) -> Source:
    if ground_truth is None:
        return source
    if isinstance(source, Ilsvrc):
        return replace(source, ground_truth=ground_truth)
    return replace(source, ground_truth=open_ground_truth(ground_truth)) if isinstance(source, Tree | Tar | Zip) else source


def _choose_reading(path: Path, readings: dict[str, Source]) -> Source:
    """The source to use if a path can be read as several kinds. Raises DataError if the user must choose."""
    (first, source), *others = readings.items()
    tree = readings.get("imagefolder")
    if not others or not isinstance(tree, Tree) or (path / "dataset.json").is_file():
        return source  # a dataset folder of udkd is read from its shards
    table, parquet = readings.pop("table", None), readings.get("parquet")
    if isinstance(parquet, Parquet) and (table or tree.peek_splits()) and not parquet.has_images():
        del readings["parquet"]
    if table is not None and list(readings) == ["imagefolder"]:
        if len(tree.peek_classes()) <= 1:
            return table
        return _SourceInFolder(tree, frozenset(), f"{path} holds class folders and tables of paths; the folders are read")
    if len(readings) < len(others) + 1:
        return _choose_reading(path, readings)
    splits = tree.peek_splits()
    also = [_DESCRIPTIONS[name] for name, _ in others if name != "imagefolder" or splits]
    complete = isinstance(source, Ilsvrc) and source.train is not None and source.val is not None
    if first == "ilsvrc" and not complete and {"train", "val"} <= splits:  # as torchvision leaves it
        return _SourceInFolder(tree, frozenset(), f"{path} holds class folders and tars of ILSVRC2012; the folders are read")
    if splits and not complete and ("train" in splits or "val" in splits or "beton" in readings or first == "ilsvrc"):
        choices = " or ".join(f"--layout {name}" for name in readings)
        raise DataError(
            f"{path} holds {_DESCRIPTIONS[first]} and {' and '.join(also)}; expected one of them; name the folders and files "
            f"to read as sources, or choose with {choices}"
        )
    warning = (
        f"{path} holds {_DESCRIPTIONS[first]} and {' and '.join(also)}; only {_DESCRIPTIONS[first]} are read" if also else ""
    )
    return _SourceInFolder(source, _read_files(source), warning)


_DESCRIPTIONS = {
    "ilsvrc": "tars of ILSVRC2012",
    "webdataset": "shards of a WebDataset",
    "beton": ".beton files",
    "arrow": "arrow files",
    "table": "tables of image paths",
    "parquet": "parquet files",
    "imagefolder": "class folders of images",
}
