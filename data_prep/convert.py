"""Converts sources of images into a dataset folder.

Memory: with names as long as ImageNet's, the listing takes 80 bytes per sample and the manifest 120, both as columns. The peak
grows by 250 bytes per sample (complete conversions of 150,000 and 250,000 images: 215 and 239 MiB), which gives about 0.5 GB
for 1.33 million images; with Python objects it was 1,200 bytes per sample. Each worker adds up to 4 tasks of 16 images in
flight, and one decoded image.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from udkd.data.dataset import DatasetFolder, Split
from udkd.data.derived import DERIVED, remove_derived
from udkd.data.header import FILE_NAME as HEADER_NAME
from udkd.data.header import Encoder, Header, SplitHeader, content_digest
from udkd.data.manifest import FILE_NAME as MANIFEST_NAME
from udkd.data.manifest import Columns, write_manifest
from udkd.data_prep.class_names import ClassNames
from udkd.data_prep.formats import (
    WRITERS,
    DatasetSize,
    check_room,
    default_formats,
    derive_formats,
    discard_formats,
    size_texts,
)
from udkd.data_prep.image import PIXEL_LIMIT, PixelSettings
from udkd.data_prep.listing import SPLITS, SampleListing, Samples, list_samples
from udkd.data_prep.pool import Pool, reuse_workers
from udkd.data_prep.prepare import PrepareJob
from udkd.data_prep.report import FILE_NAME as REPORT_NAME
from udkd.data_prep.report import read_settings, write_report
from udkd.data_prep.shards import remove_sidecars, write_shards
from udkd.data_prep.sources import AUTO, Fields, Source, SourceSplit, SplitName, open_sources
from udkd.data_prep.sources.address import Location
from udkd.data_prep.sources.loaded_dataset import LoadedDataset, loaded_datasets
from udkd.data_prep.sources.torch_dataset import TorchDataset
from udkd.utils.errors import ConfigError, DataError, MismatchError
from udkd.utils.files import FolderLock, sha256_file, write_json
from udkd.utils.progress import Observer

if TYPE_CHECKING:  # the command starts without it
    from torch.utils.data import Dataset as MapDataset

UNFINISHED_NAME = "unfinished.json"  # the settings of an unfinished conversion
LOCK_NAME = ".lock"
ITEMS_NAME = "items.tmp"  # the pixels of a dataset's items, until the end
ITEMS_LOCK_NAME = ".items.lock"
SPLIT_FILES = (
    "samples-*.tar",
    "samples-*.idx",
    "samples-*.rows.json",
    MANIFEST_NAME,
    "*.tmp",
)
MAX_LISTED_IMAGES = 10
MAX_SIDE = 65500  # libjpeg's limit


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """All settings of a conversion.

    on_bad: fail leaves no usable folder; skip excludes bad images; fix repairs images if possible and excludes the others.
    image_field, label_field: the column, extension or field to read if a source has several; None to detect it.
    images: the folder that the paths in tables are relative to; None for the table's own. class_names: given by the user; None
    for the source's own. hold_out_percent: percent of the images to validate on, 100 for a test set, which has no train split;
    None for the source's own val split. val: "test" to validate on the source's test split.
    formats: derived formats to write, too; None for `default_formats`. shard_samples: rows per shard.
    """

    side: int = 512
    fit: Literal["pad", "squash"] = "pad"
    layout: str = AUTO
    image_field: str | None = None
    label_field: str | None = None
    images: Path | None = None
    classes: str = "all"
    class_names: ClassNames | None = None
    on_bad: Literal["fix", "skip", "fail"] = "fail"
    exif: Literal["ignore", "apply"] = "ignore"
    max_pixels: int = PIXEL_LIMIT
    hold_out_percent: float | None = None
    val: Literal["test"] | None = None
    quality: int = 95
    subsampling: Literal["4:4:4", "4:2:0"] = "4:4:4"
    formats: tuple[str, ...] | None = None
    workers: int = 1
    overwrite: bool = False
    shard_samples: int = 1000

    def __post_init__(self) -> None:
        """Raise ConfigError for a value out of range."""
        ranges: tuple[tuple[str, float | None, float, float], ...] = (
            ("--side", self.side, 1, MAX_SIDE),
            ("--quality", self.quality, 1, 100),
            ("--max-pixels", self.max_pixels, 1, 2**31),
            ("--workers", self.workers, 1, 4096),
            ("--hold-out", self.hold_out_percent, 0, 100),
        )
        for name, value, low, high in ranges:
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name} is {value:g}; expected {low:g} to {high:,g}; change it")

    @property
    def pixels(self) -> PixelSettings:
        """The settings that determine the stored bytes of an image."""
        return PixelSettings(
            side=self.side,
            fit=self.fit,
            quality=self.quality,
            subsampling=self.subsampling,
            exif=self.exif,
            pixel_limit=self.max_pixels,
            repair=self.on_bad == "fix",
        )

    def output_options(self) -> dict[str, object]:
        """The settings that a resumed conversion must share with the interrupted one, by option name."""
        named = {} if self.class_names is None else {"--class-names": f"sha256 {self.class_names.digest[:16]}"}
        return {
            "--side": self.side,
            "--fit": self.fit,
            "--layout": self.layout,
            "--image-field": self.image_field,
            "--label-field": self.label_field,
            "--classes": self.classes,
            "--hold-out": self.hold_out_percent,
            "--val": self.val,
            "--quality": self.quality,
            "--subsampling": self.subsampling,
            "--exif": self.exif,
            "--max-pixels": self.max_pixels,
            "shard_samples": self.shard_samples,
            **({} if self.images is None else {"--images": str(self.images)}),
            **named,
        }


def convert(sources: Sequence[Location], folder: Path, settings: ConvertSettings, observer: Observer) -> DatasetFolder:
    """Convert paths and addresses into `folder`. After an interruption, the same call resumes at the first unfinished shard.

    The folder has a dataset.json only if it is complete. Raises DataError (unusable sources, bad images with on_bad = "fail"),
    MismatchError (an unfinished conversion with other settings), BusyError, ConfigError and OSError.
    """
    fields = Fields(image=settings.image_field, label=settings.label_field)
    opened = open_sources(sources, settings.layout, fields, settings.images, observer)
    _check_separate([source for source in sources if isinstance(source, Path)], folder)
    return _convert(opened, folder, settings, observer)


def convert_datasets(
    datasets: Mapping[SourceSplit | None, "MapDataset[Any]"], folder: Path, settings: ConvertSettings, observer: Observer
) -> DatasetFolder:
    """Convert datasets by split (None: without splits), as `convert` does. Their own class names are the default.

    They are map-style datasets of PyTorch, or all of them are of Hugging Face's `datasets`.
    """
    items = folder / ITEMS_NAME
    if all(map(loaded_datasets, datasets.values())):
        fields = Fields(image=settings.image_field, label=settings.label_field)
        source: LoadedDataset | TorchDataset = LoadedDataset(items, datasets, fields, observer)
    else:
        source = TorchDataset(items, datasets, exif_transpose=settings.exif == "apply", observer=observer)
    if settings.class_names is None:
        settings = replace(settings, class_names=source.class_names())
    _check_target(folder, settings)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FolderLock(folder, ITEMS_LOCK_NAME), name_folder(folder):
            try:
                return _convert([source], folder, settings, observer)
            finally:
                source.path.unlink(missing_ok=True)
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


@reuse_workers()
def _convert(opened: Sequence[Source], folder: Path, settings: ConvertSettings, observer: Observer) -> DatasetFolder:
    for name in settings.formats or ():
        WRITERS[name].require()
    finished = _check_target(folder, settings)
    listing = list_samples(
        opened,
        classes=settings.classes,
        hold_out_percent=settings.hold_out_percent,
        test_validates=settings.val == "test",
        class_names=settings.class_names,
    )
    if finished:
        return _finished_already(folder, listing, settings, observer)
    for line in listing.warnings:
        observer.note(f"warning: {line}")
    formats = default_formats(settings.fit, settings.side) if settings.formats is None else settings.formats
    dataset_size = DatasetSize(samples=sum(map(len, listing.samples.values())), side=settings.side, stored=None)
    announced = size_texts(formats, dataset_size)
    for line in announced.values():
        observer.note(line)
    check_room(formats, dataset_size, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder), name_folder(folder):
        if _check_target(folder, settings):  # another process finished it in the meantime
            return _finished_already(folder, listing, settings, observer)
        if settings.overwrite and not _is_resumed(folder, settings):
            _clear(folder)
        write_json(folder / UNFINISHED_NAME, settings.output_options())
        (folder / HEADER_NAME).unlink(missing_ok=True)
        columns = _write_splits(listing, PrepareJob(opened, settings.pixels), folder, settings, observer)
        warnings = listing.warnings + _check_images(columns, folder, listing, settings, observer)
        header = _write_manifests(columns, folder, listing, settings)
        del columns  # they are read back from the manifests and checked
        shards = DatasetFolder.load(folder, header)
        discard_formats(shards, DERIVED)  # left by an attempt with other formats or another source
        for name, line in size_texts(formats, DatasetSize.of(shards)).items():
            if name not in announced:
                observer.note(line)
        derive_formats(shards, formats, workers=settings.workers, observer=observer)
        write_report(
            folder,
            shards.splits,
            digest=header.digest,
            on_bad=settings.on_bad,
            warnings=warnings,
            skipped=listing.skipped.reasons,
            settings=settings.output_options(),
        )
        header.write(folder)
        _remove_temporaries(folder)
    return DatasetFolder.open(folder)


@contextlib.contextmanager
def name_folder(folder: Path) -> Iterator[None]:
    """Add the folder's name to an OSError without a file name, such as that of a write to an open file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(folder)
        raise


def _check_separate(sources: Sequence[Path], folder: Path) -> None:
    """Raise DataError if a source is inside the target folder: its files would be removed, or read while being written."""
    target = folder.resolve()
    for source in sources:
        path = source.resolve()
        if path == target or target in path.parents:
            raise DataError(f"the source {source} is inside {folder}; expected a separate target folder; give another path")


def _check_target(folder: Path, settings: ConvertSettings) -> bool:
    """Whether the folder was finished with these settings. Raises DataError or MismatchError if it must not be written to."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder to write to; give another path")
    if settings.overwrite and _is_conversion(folder):
        return False
    unfinished = folder / UNFINISHED_NAME
    if (folder / HEADER_NAME).exists() and not unfinished.exists():
        if read_settings(folder) != settings.output_options() | {"--on-bad": settings.on_bad}:
            raise _other_dataset_error(folder)
        return True
    if not unfinished.exists():
        if not _is_conversion(folder):
            raise DataError(f"{folder} holds other files; expected a new or empty folder; give another path")
        return False
    differences = _differences(unfinished, settings)
    if differences:
        raise MismatchError(
            f"the unfinished conversion in {folder}",
            differences,
            "give the same options to resume it, or --overwrite to start over",
        )
    return False


def _other_dataset_error(folder: Path) -> DataError:
    return DataError(
        f"{folder} holds a finished dataset; expected a new folder; give another path, or --overwrite to replace it"
    )


def _finished_already(folder: Path, listing: SampleListing, settings: ConvertSettings, observer: Observer) -> DatasetFolder:
    """Open a finished folder that this command would have written. Raises DataError for other sources or formats."""
    dataset = DatasetFolder.open(folder)
    formats = default_formats(settings.fit, settings.side) if settings.formats is None else settings.formats
    listed = dataset.splits.keys() == listing.samples.keys() and all(
        _has_samples(dataset.split(name), samples) for name, samples in listing.samples.items()
    )
    if not listed or dataset.classes != listing.classes or not set(formats) <= set(dataset.formats):
        raise _other_dataset_error(folder)
    observer.note(f"{folder} is already finished: there is nothing to do")
    return dataset


def _has_samples(split: Split, samples: Samples) -> bool:
    """Whether a split has these names and labels, in id order."""
    if split.num_samples != len(samples):
        return False
    pairs = zip(samples, split.source, split.labels.tolist(), strict=True)
    return all((sample.source, sample.label) == (source, label) for sample, source, label in pairs)


def _is_resumed(folder: Path, settings: ConvertSettings) -> bool:
    """Whether the folder holds an unfinished conversion with these settings, so that --overwrite has already cleared it."""
    unfinished = folder / UNFINISHED_NAME
    return unfinished.exists() and not _differences(unfinished, settings)


def _differences(unfinished: Path, settings: ConvertSettings) -> list[tuple[str, object, object]]:
    """The settings in which an unfinished conversion differs: name, stored value and requested value of each."""
    try:
        stored = json.loads(unfinished.read_bytes())
    except ValueError:
        stored = {}
    return [(name, stored.get(name), value) for name, value in settings.output_options().items() if stored.get(name) != value]


def _is_conversion(folder: Path) -> bool:
    """Whether the folder holds only files of a conversion."""
    allowed = {HEADER_NAME, UNFINISHED_NAME, REPORT_NAME, LOCK_NAME, ITEMS_NAME.removesuffix(".tmp"), ITEMS_LOCK_NAME, *SPLITS}
    names = {path.name.removesuffix(".tmp") for path in folder.iterdir()}
    if {HEADER_NAME, UNFINISHED_NAME} & names:
        return True
    return names <= allowed - set(SPLITS)


def _clear(folder: Path) -> None:
    """Remove the files of an earlier conversion, and no others, beginning with dataset.json, which marks it as valid."""
    for name in (HEADER_NAME, UNFINISHED_NAME, REPORT_NAME):
        (folder / name).unlink(missing_ok=True)
    for split in SPLITS:
        for name in DERIVED:
            remove_derived(folder / split, name)
        for pattern in SPLIT_FILES:
            for path in (folder / split).glob(pattern):
                path.unlink()


def _write_splits(
    listing: SampleListing, job: PrepareJob, folder: Path, settings: ConvertSettings, observer: Observer
) -> dict[str, Columns]:
    observer.start("convert", sum(map(len, listing.samples.values())), "images")
    columns: dict[str, Columns] = {}
    with Pool(job, settings.workers) as pool:
        for name in [name for name in SPLITS if name in listing.samples]:
            samples = listing.samples.pop(name)  # frees memory for the columns of the manifest
            (folder / name).mkdir(exist_ok=True)
            columns[name] = write_shards(
                folder / name, samples, shard_samples=settings.shard_samples, job=job, pool=pool, observer=observer
            )
    observer.finish()
    return columns


def _check_images(
    columns: Mapping[str, Columns], folder: Path, listing: SampleListing, settings: ConvertSettings, observer: Observer
) -> list[str]:
    """Warnings about bad images. Raises DataError, after writing the report, if they make the folder unusable."""
    bad = [(split, n) for split, group in columns.items() for n in np.flatnonzero(group.excluded).tolist()]
    for split, n in bad[:MAX_LISTED_IMAGES]:
        observer.note(f"bad image: {split}/{columns[split].source[n]}: {columns[split].note[n]}")
    if len(bad) > MAX_LISTED_IMAGES:
        observer.note(f"and {len(bad) - MAX_LISTED_IMAGES:,} more bad images")
    fault = None
    if bad and settings.on_bad == "fail":
        fault = "expected none; repair or remove them, or give --on-bad skip to leave them out, or fix to repair where possible"
    empty = [split for split, group in columns.items() if group.excluded.all()]
    if empty and fault is None:
        fault = f"{empty[0]} has no image left; expected at least one; check the source"
    if fault is not None:
        write_report(
            folder,
            columns,
            digest=None,
            on_bad=settings.on_bad,
            warnings=listing.warnings,
            skipped=listing.skipped.reasons,
            settings=settings.output_options(),
        )
        total = sum(group.num_samples for group in columns.values())
        raise DataError(f"{len(bad):,} of {total:,} images cannot be used, see {folder / REPORT_NAME}; {fault}")
    if "train" not in columns:
        return []
    kept = set(columns["train"].labels[~columns["train"].excluded].tolist())
    lost = {int(columns[split].labels[n]) for split, n in bad} - kept
    warnings = [f"all training images of class {listing.classes[label].wnid} are excluded" for label in sorted(lost)]
    for line in warnings:
        observer.note(f"warning: {line}")
    return warnings


def _write_manifests(columns: Mapping[str, Columns], folder: Path, listing: SampleListing, settings: ConvertSettings) -> Header:
    parts: dict[SplitName, SplitHeader] = {}
    for name in [name for name in SPLITS if name in columns]:
        path = folder / name / MANIFEST_NAME
        write_manifest(path, columns[name])
        parts[name] = SplitHeader(
            samples=columns[name].num_samples,
            excluded=int(columns[name].excluded.sum()),
            manifest_bytes=path.stat().st_size,
            manifest_sha256=sha256_file(path),
        )
    encoder = Encoder(quality=settings.quality, subsampling=settings.subsampling)
    digest = content_digest(side=settings.side, fit=settings.fit, encoder=encoder, classes=listing.classes, splits=columns)
    return Header(side=settings.side, fit=settings.fit, encoder=encoder, classes=listing.classes, splits=parts, digest=digest)


def _remove_temporaries(folder: Path) -> None:
    """Remove the files of an unfinished conversion, so that two conversions of one source leave the same bytes.

    unfinished.json is removed last, so that the same command recovers if it is killed here.
    """
    for split in SPLITS:
        remove_sidecars(folder / split)
        for path in (folder / split).glob("*.tmp"):
            path.unlink()
    (folder / ITEMS_NAME).unlink(missing_ok=True)
    (folder / UNFINISHED_NAME).unlink()
