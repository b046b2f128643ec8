"""Small inputs of a cache: a data set with excluded samples, a teacher of its classes, a recipe, and a build of them."""

import hashlib
import io
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.distributed import HashStore

from tests.factories import write_small_teacher
from tests.timeouts import scaled
from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder
from udkd.data.header import ClassName, Encoder, Header, SplitHeader, content_digest
from udkd.data.manifest import ManifestRow, read_manifest, rows_to_columns, write_manifest
from udkd.data.shards import ShardWriter
from udkd.models.build import build
from udkd.teacher.cache.build import build_cache
from udkd.teacher.cache.reader import Cache
from udkd.teacher.folder import TeacherFolder
from udkd.utils.crc32c import crc32c
from udkd.utils.errors import UserError
from udkd.utils.files import sha256_file
from udkd.utils.workers import WorkerGroup

SIDE = 40
CPU = torch.device("cpu")
CLASSES = tuple(ClassName(wnid=f"n{n:02d}", name=f"class {n}") for n in range(7))
SAMPLES = 83
EXCLUDED = {0, 5, *range(32, 48)}  # single ids, and with a batch of 8 a block without any row

RECIPE = {
    "data": {"backend": "folder", "workers": 1},
    "views": {"size_px": 32, "resize_px": 36, "seed": 3},
    "evaluation": {"resize_px": 36},
    "teacher": {"batch_size": 8},
    "train": {"batch_size": 8, "threads": 1},
}


def recipe(views: str | int = "eval", **teacher: object) -> Recipe:
    return Recipe.from_dict(RECIPE | {"teacher": {"batch_size": 8, "views": views} | teacher}, "test")


TEACHER = "shufflenet_v2_x0_5"  # with batch norm and a head named fc, and a third of a ResNet-18's time


def make_teacher(folder: Path, seed: int = 0, classes: tuple[ClassName, ...] = CLASSES) -> TeacherFolder:
    """A teacher with confident predictions: activations that do not fade from layer to layer, and a steep head."""
    model, drawn = build(TEACHER, len(classes), image_px=32, seed=seed), torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, generator=drawn)
    torch.nn.init.normal_(model.fc.weight, std=0.1, generator=drawn)
    return write_small_teacher(folder, model.state_dict(), TEACHER, [entry.wnid for entry in classes])


def make_dataset(folder: Path) -> DatasetFolder:
    """One split, images of odd sizes, some excluded."""
    rng = np.random.default_rng(0)
    split = folder / "train"
    split.mkdir(parents=True)
    rows = []
    with ShardWriter(split, 0) as shard:
        for n in range(SAMPLES):
            label = n % len(CLASSES)
            if n in EXCLUDED:
                rows.append(ManifestRow(label=label, source=f"c/{n}.jpg", excluded=True, note="truncated"))
                continue
            height, width = rng.integers(9, SIDE + 1, 2).tolist()
            buffer = io.BytesIO()
            small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            data = buffer.getvalue()
            offset = shard.add(n, data, label)
            sizes = {"source_height": height, "source_width": width, "height": height, "width": width}
            sums: dict[str, Any] = {"sha256": hashlib.sha256(data).digest(), "crc32c": crc32c(data)}
            rows.append(ManifestRow(label=label, source=f"c/{n}.jpg", shard=0, offset=offset, size=len(data), **sizes, **sums))
    path = split / "manifest.parquet"
    write_manifest(path, rows_to_columns(rows))
    size_bytes, sha256 = path.stat().st_size, sha256_file(path)
    columns = {"train": read_manifest(path, samples=SAMPLES, size_bytes=size_bytes, sha256=sha256)}
    header = SplitHeader(samples=SAMPLES, excluded=len(EXCLUDED), manifest_bytes=size_bytes, manifest_sha256=sha256)
    encoder = Encoder(quality=90, subsampling="4:2:0")
    digest_hex = content_digest(side=SIDE, fit="pad", encoder=encoder, classes=CLASSES, splits=columns)
    Header(side=SIDE, fit="pad", encoder=encoder, classes=CLASSES, splits={"train": header}, digest=digest_hex).write(folder)
    return DatasetFolder.open(folder)


def views_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("view-*"))}


def run(folder: Path, dataset: DatasetFolder, teacher: TeacherFolder, views: str | int = "eval", **options: object) -> Cache:
    return build_cache(folder, dataset=dataset, teacher=teacher, recipe=recipe(views, **options), device=CPU).cache


def run_in_threads(
    size: int, folder: Path, dataset: DatasetFolder, teacher: TeacherFolder, views: int = 2, **options: object
) -> list[object]:
    """A group of threads with torch's HashStore: what each returned or raised."""
    store, results = HashStore(), [None] * size
    store.set_timeout(timedelta(seconds=scaled(60)))

    def build(rank: int) -> None:
        group = WorkerGroup(rank=rank, size=size, store=store)
        try:
            given = {"dataset": dataset, "teacher": teacher, "recipe": recipe(views), "device": CPU} | options
            results[rank] = build_cache(folder, **given, group=group)  # type: ignore[arg-type]
        except UserError as error:
            results[rank] = error
            if not group.is_main:
                group.set("failed", str(error))

    threads = [threading.Thread(target=build, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(scaled(120))
    return results
