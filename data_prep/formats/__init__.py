"""Writers of the formats that are derived from the shards.

A new format needs one entry in udkd.data.derived.DERIVED, with its name and files, and one module here with its writer.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from udkd.data.dataset import DatasetFolder
from udkd.data.derived import derived_files, remove_derived
from udkd.data.header import Fit
from udkd.data_prep.formats import ffcv, resident, tfrecord
from udkd.data_prep.formats.writer import DatasetSize, FormatWriter
from udkd.data_prep.pool import reuse_workers
from udkd.utils.errors import ConfigError, DataError
from udkd.utils.progress import Observer

__all__ = [
    "WRITERS",
    "DatasetSize",
    "FormatWriter",
    "check_room",
    "default_formats",
    "derive_formats",
    "discard_formats",
    "format_bytes",
    "parse_formats",
    "require_free",
    "size_texts",
]

AUTO = "auto"
NONE = "none"

WRITERS: dict[str, FormatWriter] = {module.NAME: module.WRITER for module in (resident, ffcv, tfrecord)}


def parse_formats(text: str) -> tuple[str, ...] | None:
    """The formats in a comma-separated list, in the order of WRITERS; None for `auto`, () for `none`.

    Raises ConfigError for an unknown name, and for `auto` or `none` together with others.
    """
    names = {name.strip() for name in text.split(",")}
    if names == {AUTO}:
        return None
    if names == {NONE}:
        return ()
    if not names <= set(WRITERS):
        known = ", ".join(WRITERS)
        raise ConfigError(f"--formats is {text!r}; expected a comma-separated list of {known}, or {NONE} or {AUTO}; change it")
    return tuple(name for name in WRITERS if name in names)


def default_formats(fit: Fit, side: int) -> tuple[str, ...]:
    """The formats of `auto`: resident, or none for padded canvases over 256 px (130,000 images at 512 px take 102 GB)."""
    return () if fit == "pad" and side > 256 else ("resident",)


def size_texts(names: Iterable[str], dataset_size: DatasetSize) -> dict[str, str]:
    """Lines about the sizes of formats, by format. Formats of unknown size are left out."""
    return {
        name: f"{name} format: {WRITERS[name].size_text(dataset_size)} {size / 1e9:,.2f} GB"
        for name, size in _known_sizes(names, dataset_size).items()
    }


def _known_sizes(names: Iterable[str], dataset_size: DatasetSize) -> dict[str, int]:
    return {name: size for name in names if (size := WRITERS[name].size_bytes(dataset_size)) is not None}


def check_room(names: Iterable[str], dataset_size: DatasetSize, folder: Path, *, freed_bytes: int = 0) -> None:
    """Raise DataError if the disk of `folder` has too little free space for the formats. The folder need not exist yet.

    freed_bytes: bytes that will be freed before the formats are written.
    """
    sizes = _known_sizes(names, dataset_size)
    what = f"the {next(iter(sizes))} format takes" if len(sizes) == 1 else f"the formats {', '.join(sizes)} take"
    remedy = "free some or choose other --formats (none for the shards alone)"
    require_free(what, sum(sizes.values()), folder, remedy, freed_bytes=freed_bytes)


def format_bytes(names: Iterable[str], dataset_size: DatasetSize) -> int:
    """The size of formats together, in bytes. Formats of unknown size are left out."""
    return sum(_known_sizes(names, dataset_size).values())


def require_free(what: str, need_bytes: int, folder: Path, remedy: str, *, freed_bytes: int = 0) -> None:
    """Raise DataError if the disk of `folder`, which need not exist yet, has too little free space. what: takes the bytes."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free + freed_bytes
    if need_bytes > free:
        raise DataError(
            f"{what} {need_bytes / 1e9:,.2f} GB, the disk of {folder} has {free / 1e9:,.2f} GB free; "
            f"expected enough free space; {remedy}"
        )


def discard_formats(dataset: DatasetFolder, names: Iterable[str]) -> None:
    """Remove formats, finished or not, so that old files do not take the space that new ones need."""
    for split in dataset.splits.values():
        for name in names:
            remove_derived(split.path, name)


@reuse_workers()
def derive_formats(dataset: DatasetFolder, names: Iterable[str], *, workers: int, observer: Observer) -> None:
    """Write formats again, one after the other. Raises ConfigError (a missing package), DataError and OSError."""
    names = tuple(names)
    for name in names:
        WRITERS[name].require()
    old = [path for split in dataset.splits.values() for name in names for path in derived_files(split.path, name)]
    check_room(names, DatasetSize.of(dataset), dataset.path, freed_bytes=sum(path.stat().st_size for path in old))
    if old:
        _check_samples(dataset)
    discard_formats(dataset, names)
    for name in names:
        try:
            WRITERS[name].derive(dataset, workers, observer)
        except BaseException:
            discard_formats(dataset, [name])
            raise


def _check_samples(dataset: DatasetFolder) -> None:
    """Raise DataError for a damaged sample before any format is removed: it could not be written again."""
    for split in dataset.splits.values():
        for _ in split.read_many(split.ids):
            pass
