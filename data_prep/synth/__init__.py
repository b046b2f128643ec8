"""Generates the synthetic dataset: an ImageFolder tree of ImageNet-like images, to try udkd without real data."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from udkd.data_prep.pool import Pool
from udkd.data_prep.synth.classes import synth_class
from udkd.data_prep.synth.rng import Rng
from udkd.data_prep.synth.scene import encode_jpeg, render_scene
from udkd.utils.errors import DataError
from udkd.utils.files import fsync_folder
from udkd.utils.progress import Observer, Silent

SPLITS = ("train", "val")
IMAGES_PER_TASK = 8  # about 0.2 s, so that the progress bar moves


@dataclass(frozen=True)
class DrawTask:
    """Images `first` to `last` (exclusive) of one class in one split, numbered within the class."""

    split: int
    label: int
    first: int
    last: int


@dataclass(frozen=True)
class DrawJob:
    """Draws the images of a task and writes their files. Returns the number of images."""

    folder: Path
    seed: int

    def __call__(self, task: DrawTask) -> int:
        for index in range(task.first, task.last):
            data = synthetic_jpeg(self.seed, task.split, task.label, index)
            path = self.folder / SPLITS[task.split] / synth_class(task.label).name / f"{index:06d}.jpg"
            path.write_bytes(data)
        return task.last - task.first


def synthetic_jpeg(seed: int, split: int, label: int, index: int) -> bytes:
    """The JPEG bytes of an image, a pure function of the arguments. split: 0 train, 1 val. index: within class and split."""
    rng = Rng(seed, split, label, index)
    pixels, grey = render_scene(synth_class(label), rng)
    return encode_jpeg(pixels, grey, rng)


def synth(
    folder: Path,
    *,
    classes: int,
    images: int,
    val_images: int,
    seed: int,
    observer: Observer = Silent(),  # noqa: B008 (it has no state)
    workers: int = 1,
) -> None:
    """Write folder/train/<class>/*.jpg and folder/val/<class>/*.jpg: `images` and `val_images` in total, spread evenly.

    Classes 2k and 2k+1 differ in one trait of varying strength, sometimes barely visible; other classes are easy to
    distinguish. The bytes are a pure function of the arguments except `workers`; with more images, the first ones are the same.
    `folder` appears only when it is complete. Raises DataError for invalid arguments and for a folder that is not empty.
    """
    _check(folder, classes=classes, images=images, val_images=val_images, seed=seed, workers=workers)
    counts = (images, val_images)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    try:
        for split in SPLITS:
            for label in range(classes):
                (unfinished / split / synth_class(label).name).mkdir(parents=True)
        observer.start("draw images", sum(counts), "images")
        with Pool[DrawTask, int](DrawJob(unfinished, seed), workers) as pool:
            for done in pool.ordered(_tasks(counts, classes)):
                observer.advance(done)
        observer.finish()
        unfinished.replace(folder)
        fsync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _check(folder: Path, *, classes: int, images: int, val_images: int, seed: int, workers: int) -> None:
    def refuse(problem: str, expected: str, remedy: str) -> None:
        raise DataError(f"{problem}; expected {expected}; {remedy}")

    if classes < 2:
        refuse(f"{classes} classes", "2 or more", "give --classes 10")
    for name, count in (("training", images), ("validation", val_images)):
        if count < classes:
            refuse(
                f"{count} {name} images for {classes} classes", "one or more for each", "ask for more images or fewer classes"
            )
    if not 0 <= seed < 2**63:
        refuse(f"seed {seed}", "0 to 2^63 - 1", "give another one")
    if workers < 1:
        refuse(f"{workers} workers", "1 or more", "give --workers 2")
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        refuse(f"{folder} exists already", "a new or an empty folder", "give another name or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)


def _tasks(counts: tuple[int, ...], classes: int) -> Iterator[DrawTask]:
    for split, count in enumerate(counts):
        for label in range(classes):
            in_class = count // classes + (label < count % classes)
            for first in range(0, in_class, IMAGES_PER_TASK):
                yield DrawTask(split, label, first, min(in_class, first + IMAGES_PER_TASK))
