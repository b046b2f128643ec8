"""The teacher cache: what each policy costs to build, when it pays against a live teacher, and what a lookup costs."""

import contextlib
import itertools
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib.figure import Figure

from benchmarks.common.figures import Palette, bars, draw
from benchmarks.common.record import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.timing import Variant, side_by_side
from udkd.augment.apply import apply
from udkd.augment.view_table import EpochViews
from udkd.augment.views import ViewSpec
from udkd.config.recipe import Recipe, load_recipe
from udkd.data.backends.registry import open_backend
from udkd.data.batch import Batch
from udkd.data.dataset import DatasetFolder
from udkd.losses.storage import Storage
from udkd.models.build import build
from udkd.teacher.cache.build import build_cache
from udkd.teacher.cache.key import CacheKey
from udkd.teacher.cache.reader import Cache
from udkd.teacher.cache.tables import TargetTable
from udkd.teacher.cache.writer import CacheWriter
from udkd.teacher.ensemble import TeacherEnsemble
from udkd.teacher.folder import TeacherFolder, write_teacher
from udkd.teacher.sources import CachedTargets, LiveTargets
from udkd.teacher.targets import pack
from udkd.training.compile import eager_loss
from udkd.training.student import make_students
from udkd.utils.environment import choose_device, set_threads
from udkd.utils.launcher import module_command, module_environment
from udkd.utils.terminal import DeviceOption

EXPECTATION = """A build costs one teacher forward pass a sample and view, and what it is decoded and augmented for:
within a tenth of the live teacher's time an epoch, so a cache of evaluation views pays before its second epoch, K views
before epoch K + 1, and from epoch K on a cached epoch is the students' alone. At 100 classes a target costs 204.x bytes.
A lookup of 64 rows takes 20 to 60 microseconds on a CPU, over 1 M rows/s, under 0.1 % of a CPU step and under 2 % of a
GPU step; the table holds no memory of its own for each sample: below 5 MB at 1.28 M samples."""

VIEWS = (1, 5, 10)
ROWS, BIG_ROWS, CLASSES = 130_000, 1_281_167, 100


def main(
    images: Annotated[int, typer.Option(min=64, help="Made-up images to build from.")] = 1024,
    side: Annotated[int, typer.Option(min=32, help="Side of the views, pixels.")] = 224,
    teacher: Annotated[str, typer.Option(help="torchvision's name; its weights are drawn, which costs the same.")] = "resnet50",
    batch: Annotated[int, typer.Option(min=2, help="Of the students and of the teacher.")] = 64,
    rounds: RoundsOption = 5,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Build caches by every policy, then look targets up: the evaluation view, and 1, 5 and 10 views."""
    where = choose_device(device)
    settings = {"images": images, "side": side, "teacher": teacher, "batch": batch, "views": VIEWS, "rows": ROWS}
    record = BenchmarkResult.begin("cache", EXPECTATION, where, settings)
    with tempfile.TemporaryDirectory(prefix="udkd-cache-") as folder:
        place = Path(folder)
        recipe = _recipe(side, batch)
        set_threads(recipe.train.threads)
        dataset = _dataset(place, images, side)
        asked = _teacher(place / "teacher", teacher, dataset, side)
        built = _build_all(place, dataset, asked, recipe, where, record)
        _per_step(built, dataset, asked, recipe, where, record, rounds)
        _lookups(place, where, record, rounds)
        _memory(place, record)
    record.write(results)
    draw(results, f"cache-{record.slug}", lambda figure, palette: _picture(record, figure, palette))


def _recipe(side: int, batch: int, **teacher: object) -> Recipe:
    settings = [f"views.size_px={side}", f"views.resize_px={side * 8 // 7}", f"evaluation.resize_px={side * 8 // 7}"]
    settings += [
        f"train.batch_size={batch}",
        f"teacher.batch_size={batch}",
        *(f"teacher.{name}={value}" for name, value in teacher.items()),
    ]
    return load_recipe("imagenet100-paper", settings)


def _dataset(place: Path, images: int, side: int) -> DatasetFolder:
    """The embedded data set, drawn and converted by the commands a user has."""
    for words in (
        ("synth", place / "images", "--classes", 16, "--images", images, "--val-images", 16, "--seed", 0),
        ("convert", place / "images", place / "data", "--side", side * 8 // 7, "--fit", "squash", "--formats", "resident"),
    ):
        command = module_command("data_prep", words)
        subprocess.run(command, env=module_environment(), check=True, stdout=subprocess.DEVNULL)
    return DatasetFolder.open(place / "data")


def _teacher(folder: Path, architecture: str, dataset: DatasetFolder, side: int) -> TeacherFolder:
    classes = tuple(entry.wnid for entry in dataset.classes)
    weights = build(architecture, len(classes), image_px=side, seed=0).state_dict()
    described = {"image_px": side, "resize_px": side * 8 // 7, "scheme": "centre_squash", "accuracy": {}, "made": {}}
    return write_teacher(folder, weights, architecture=architecture, classes=classes, **described)


def _build_all(
    place: Path, dataset: DatasetFolder, teacher: TeacherFolder, recipe: Recipe, device: torch.device, record: BenchmarkResult
) -> dict[str, Cache]:
    """Canonical, then 1, 5 and 10 views, each added to those before."""
    caches, seconds = {}, 0.0
    for name, views in (("evaluation view", "eval"), *((f"{count} views", count) for count in VIEWS)):
        how = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"views": views})})
        folder = place / ("eval" if views == "eval" else "views")
        built = build_cache(folder, dataset=dataset, teacher=teacher, recipe=how, device=device)
        seconds = built.seconds if views in ("eval", 1) else seconds + built.seconds
        caches[name] = built.cache
        targets = built.summary.num_targets
        record.put(f"build {name}", {"seconds": seconds, "bytes": built.cache.num_bytes, "images_per_s": targets / seconds})
    return caches


def _per_step(
    caches: dict[str, Cache],
    dataset: DatasetFolder,
    teacher: TeacherFolder,
    recipe: Recipe,
    device: torch.device,
    record: BenchmarkResult,
    rounds: int,
) -> None:
    """A step of the paper's two students, and what the teacher's word adds to it: cached or live, by policy."""
    split, batch = dataset.split("train"), recipe.train.batch_size
    with contextlib.closing(open_backend("auto", split, device)) as backend:
        first = next(iter(backend.epoch(split.ids[:batch], batch)))
    views = EpochViews(recipe.views.spec, recipe.views.seed, split, device)
    x_BCHW = apply(first.canvas, views.table(0).gather(first.ids), recipe.views.spec)
    panel = TeacherEnsemble.load([teacher], recipe, dataset, device)
    cached = CachedTargets(caches["evaluation view"], device)
    live_eval = LiveTargets(panel, EpochViews(recipe.evaluation_spec, 0, split, device))
    live_views = LiveTargets(panel, None)
    variants = [
        Variant("students' step", _step(recipe, len(dataset.classes), device, x_BCHW, first, cached), batch),
        Variant("cached lookup", lambda: cached(first, x_BCHW, 0), batch),
        Variant("live teacher, evaluation view", lambda: live_eval(first, x_BCHW, 0), batch),
        Variant("live teacher, students' views", lambda: live_views(first, x_BCHW, 0), batch),
    ]
    timed = side_by_side(variants, device, rounds=rounds, warmup=1)
    record.add(timed, baseline="students' step", part="step")
    median = {one.name: one.median_s / batch for one in timed}
    record.put("lookup share of a step", median["cached lookup"] / median["students' step"])
    for name in caches:
        live = median["live teacher, evaluation view" if name == "evaluation view" else "live teacher, students' views"]
        an_epoch = (live - median["cached lookup"]) * len(split.ids)
        record.facts[f"build {name}"]["break_even_epoch"] = record.facts[f"build {name}"]["seconds"] / an_epoch
        record.put(f"break-even epoch, {name}", round(record.facts[f"build {name}"]["break_even_epoch"], 2))


def _step(
    recipe: Recipe, num_classes: int, device: torch.device, x_BCHW: torch.Tensor, batch: Batch, lessons: CachedTargets
) -> Callable[[], None]:
    students = make_students(recipe, num_classes, device)
    loss = eager_loss(recipe.loss.settings)
    weights_3N = recipe.loss.settings.weights_3N(len(students), x_BCHW)

    def run() -> None:
        lesson = lessons(batch, x_BCHW, 0)
        logits = [student.model(x_BCHW) for student in students]
        loss(logits, batch.labels, lesson.logits, lesson.weight, weights_3N).total.backward()  # type: ignore[no-untyped-call]
        for student in students:
            student.optimizer.step()
            student.optimizer.zero_grad(set_to_none=True)

    return run


def _lookups(place: Path, device: torch.device, record: BenchmarkResult, rounds: int) -> None:
    """Random rows of 130,000 targets in the page cache, or on the device."""
    for name, storage, classes in (
        ("float16, 100 classes", Storage(), CLASSES),
        ("float32, 100 classes", Storage(dtype="float32"), CLASSES),
        ("float16 top-32, 1,000 classes", Storage(top_k=32), 1000),
    ):
        cache = _made_up(place / name.replace(" ", "-"), ROWS, classes, storage)
        table = cache.lookup_table(0, device)
        record.put(f"bytes a target, {name}", cache.num_bytes / ROWS)
        for size in (64, 256, 1024):
            ids = torch.from_numpy(np.random.default_rng(0).integers(0, ROWS, (64, size))).to(device)
            variant = Variant(name, _in_turn(table, ids), size)
            record.add(side_by_side([variant], device, rounds=rounds, warmup=64), part="lookup", batch=size)


def _in_turn(table: TargetTable, batches: torch.Tensor) -> Callable[[], None]:
    turn = itertools.cycle(range(len(batches)))

    def run() -> None:
        table.lookup(batches[next(turn)])

    return run


def _made_up(folder: Path, rows: int, classes: int, storage: Storage) -> Cache:
    """A finished view of made-up targets, one block's over and over."""
    key = CacheKey(
        dataset_digest="0" * 64,
        split="train",
        pixel_class="none",
        policy="canonical",
        views=asdict(ViewSpec(scheme="centre", size_px=224)),
        views_version=1,
        seed=None,
        augment_version=1,
        normalisation={},
        num_classes=classes,
        teacher="none",
        teacher_sha256="0" * 64,
        precision="float32",
        device="cpu",
        threads=1,
        channels_last=True,
        teacher_batch=64,
        block_rows=256,
        storage=storage.text,
    )
    block = pack(torch.randn(256, classes, generator=torch.Generator().manual_seed(0)) * 4, storage)
    with CacheWriter(folder, key, np.zeros(rows, np.bool_)) as writer, writer.view(0) as view:
        dtypes = {spec.name: spec.dtype for spec in view.header.arrays}
        arrays = [array.numpy().astype(dtypes[name]) for name, array in block.arrays.items()]
        for number in list(view.unfinished):
            count = len(view.ids(number))
            view.write(number, *(array[:count] for array in arrays))
        view.finish()
    return Cache.open(folder)


def _memory(place: Path, record: BenchmarkResult) -> None:
    """What a worker's table of 1.28 M samples takes for itself; the file's pages are the kernel's, and shared."""
    cache = _made_up(place / "big", BIG_ROWS, CLASSES, Storage())
    ids = torch.from_numpy(np.random.default_rng(0).permutation(BIG_ROWS))
    table = cache.lookup_table(0, torch.device("cpu"))
    table.lookup(ids[:1024])  # what PyTorch's kernels take is not the table's
    before = _private_kb()
    table = cache.lookup_table(0, torch.device("cpu"))
    for start in range(0, BIG_ROWS, 1024):
        table.lookup(ids[start : start + 1024])
    after = _private_kb()
    record.put("private MB of a table of 1.28 M samples after an epoch", (after - before) / 1024)
    record.put("bytes a target, 1.28 M samples", cache.num_bytes / BIG_ROWS)


def _private_kb() -> int:
    """Memory that only this process can have: dirty or without a file, from the kernel's own books."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def _picture(record: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    names = ["evaluation view", *(f"{count} views" for count in VIEWS)]
    left, right = figure.subplots(1, 2)
    images = record.settings["images"]
    seconds: list[float | None] = [1e3 * record.facts[f"build {name}"]["seconds"] / images for name in names]
    epochs: list[float | None] = [record.facts[f"build {name}"]["break_even_epoch"] for name in names]
    bars(left, palette, names, seconds, unit="ms an image to build")
    bars(right, palette, names, epochs, unit="epochs until it has paid against a live teacher")
