"""Formats that are written from the shards: each is one file here and one line in DERIVED_FORMATS.

What they are called, and which files belong to each, is in udkd.data.derived, for their readers.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from data_prep.formats.ffcv import FFCV
from data_prep.formats.resident import RESIDENT
from data_prep.formats.tfrecord import TFRECORD
from data_prep.formats.writer import DatasetSize, FormatWriter
from data_prep.pool import reuse_workers
from udkd.data.dataset import DatasetFolder
from udkd.data.derived import DERIVED, derived_files, discard
from udkd.data.header import Fit
from udkd.utils.errors import ConfigError, DataError
from udkd.utils.progress import Observer

__all__ = [
    "DERIVED_FORMATS",
    "DatasetSize",
    "FormatWriter",
    "check_room",
    "default_formats",
    "derive_formats",
    "discard_formats",
    "parse_formats",
    "size_lines",
]

AUTO = "auto"
NONE = "none"

# How each is written.
WRITERS: dict[str, FormatWriter] = {"resident": RESIDENT, "ffcv": FFCV, "dali": TFRECORD}
assert set(WRITERS) <= set(DERIVED)


def parse_formats(text: str) -> tuple[str, ...] | None:
    """The formats that a comma-separated list names, in the order of DERIVED_FORMATS; None for `auto`, () for `none`.

    Raises ConfigError for an unknown name, and where `auto` or `none` stands beside others.
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
    """Resident, except for padded canvases over 256 px, which are mostly zeros (130,000 images at 512 px: 102 GB)."""
    return () if fit == "pad" and side > 256 else ("resident",)


def size_texts(names: Iterable[str], dataset_size: DatasetSize) -> dict[str, str]:
    """What each format whose size is known will take, in words."""
    return {
        name: found.size_line(dataset_size) for name in names if (found := WRITERS[name]).size_bytes(dataset_size) is not None
    }


def check_room(names: Iterable[str], dataset_size: DatasetSize, folder: Path, *, freed_bytes: int = 0) -> None:
    """Raise DataError where the disk of `folder`, which need not exist yet, has less room than the formats take.

    given_back: bytes that will be free before they are written.
    """
    sizes = {name: size for name in names if (size := WRITERS[name].size_bytes(dataset_size)) is not None}
    need = sum(sizes.values())
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free + freed_bytes
    if need > free:
        what = f"the {next(iter(sizes))} format takes" if len(sizes) == 1 else f"the formats {', '.join(sizes)} take"
        raise DataError(
            f"{what} {need / 1e9:,.2f} GB, the disk of {folder} has {free / 1e9:,.2f} GB free; "
            "expected room for it; free some or choose other --formats (none for the shards alone)"
        )


def discard_formats(dataset: DatasetFolder, names: Iterable[str]) -> None:
    """Remove formats, finished or not: an old one must not take the room that the new one needs."""
    for split in dataset.splits.values():
        for name in names:
            discard(split.path, name)


@reuse_workers()
def derive_formats(dataset: DatasetFolder, names: Iterable[str], *, workers: int, observer: Observer) -> None:
    """Write formats anew, one after the other. Raises ConfigError (a package is missing), DataError and OSError."""
    names = tuple(names)
    for name in names:
        WRITERS[name].require()
    old = [path for split in dataset.splits.values() for name in names for path in derived_files(split.path, name)]
    check_room(names, DatasetSize.of(dataset), dataset.path, freed_bytes=sum(path.stat().st_size for path in old))
    if old:
        _read_everything(dataset)
    discard_formats(dataset, names)
    for name in names:
        try:
            WRITERS[name].derive(dataset, workers, observer)
        except BaseException:
            discard_formats(dataset, [name])
            raise


def _read_everything(dataset: DatasetFolder) -> None:
    """Raise DataError for a damaged sample now: after a format is gone it would be too late, as nothing could write it anew."""
    for split in dataset.splits.values():
        for _ in split.read_some(split.ids):
            pass
