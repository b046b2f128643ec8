"""The teacher cache: build time by policy, the epoch from which it is cheaper than a live teacher, and lookup time."""

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
from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.timing import Variant, side_by_side
from udkd.augment.apply import apply
from udkd.augment.view_table import EpochViews
from udkd.augment.views import ViewSpec
from udkd.config.loading import load_recipe
from udkd.config.recipe import Recipe
from udkd.data.backends.registry import open_backend
from udkd.data.batch import Batch
from udkd.data.dataset import DatasetFolder
from udkd.losses.distill import constant_weights_3N, distill_with
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
from udkd.training.student import make_students
from udkd.utils.environment import choose_device, set_threads
from udkd.utils.launcher import module_command, module_environment
from udkd.utils.terminal import DeviceOption

EXPECTATION = """A build costs one teacher forward pass per sample and view, plus decoding and augmentation:
within a tenth of the live teacher's time an epoch, so a cache of evaluation views pays before its second epoch, K views
before epoch K + 1, and from epoch K on a cached epoch is the students' alone. At 100 classes a target costs 204.x bytes.
A lookup of 64 rows takes 20 to 60 microseconds on a CPU, over 1 M rows/s, under 0.1 % of a CPU step and under 2 % of a
GPU step; the table holds no memory of its own for each sample: below 5 MB at 1.28 M samples."""

VIEWS = (1, 5, 10)
ROWS, BIG_ROWS, CLASSES = 130_000, 1_281_167, 100


def main(
    images: Annotated[int, typer.Option(min=64, help="Synthetic images to build from.")] = 1024,
    side: Annotated[int, typer.Option(min=32, help="Side of the views, pixels.")] = 224,
    teacher: Annotated[str, typer.Option(help="torchvision model; with random weights, which cost the same.")] = "resnet50",
    batch: Annotated[int, typer.Option(min=2, help="Batch size of students and teacher.")] = 64,
    rounds: RoundsOption = 5,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Build caches of the evaluation view and of 1, 5 and 10 views, then time lookups."""
    dev = choose_device(device)
    settings = {"images": images, "side": side, "teacher": teacher, "batch": batch, "views": VIEWS, "rows": ROWS}
    result = BenchmarkResult.begin("cache", EXPECTATION, dev, settings)
    with tempfile.TemporaryDirectory(prefix="udkd-cache-") as temporary:
        folder = Path(temporary)
        recipe = _recipe(side, batch)
        set_threads(recipe.train.threads)
        dataset = _dataset(folder, images, side)
        teacher_folder = _teacher(folder / "teacher", teacher, dataset, side)
        built = _build_all(folder, dataset, teacher_folder, recipe, dev, result)
        _per_step(built, dataset, teacher_folder, recipe, dev, result, rounds)
        _lookups(folder, dev, result, rounds)
        _memory(folder, result)
    result.write(results)
    draw(results, f"cache-{result.slug}", lambda figure, palette: _plot(result, figure, palette))


def _recipe(side: int, batch: int) -> Recipe:
    settings = [f"views.size_px={side}", f"views.resize_px={side * 8 // 7}", f"evaluation.resize_px={side * 8 // 7}"]
    return load_recipe("imagenet100-paper", [*settings, f"train.batch_size={batch}", f"teacher.batch_size={batch}"])


def _dataset(folder: Path, images: int, side: int) -> DatasetFolder:
    """The synthetic data set, made and converted with the command-line programs."""
    side_options = ("--side", side * 8 // 7, "--fit", "squash")
    for args in (
        ("synth", "--out", folder / "images", "--classes", 16, "--images", images, "--val-images", 16, "--seed", 0),
        ("convert", folder / "images", "--out", folder / "data", *side_options, "--formats", "resident"),
    ):
        command = module_command("udkd.data_prep", args)
        subprocess.run(command, env=module_environment(), check=True, stdout=subprocess.DEVNULL)
    return DatasetFolder.open(folder / "data")


def _teacher(folder: Path, architecture: str, dataset: DatasetFolder, side: int) -> TeacherFolder:
    classes = tuple(entry.wnid for entry in dataset.classes)
    weights = build(architecture, len(classes), image_px=side, seed=0).state_dict()
    description = {"image_px": side, "resize_px": side * 8 // 7, "scheme": "centre_squash", "accuracy": {}, "made": {}}
    return write_teacher(folder, weights, architecture=architecture, classes=classes, **description)


def _build_all(
    folder: Path, dataset: DatasetFolder, teacher: TeacherFolder, recipe: Recipe, device: torch.device, result: BenchmarkResult
) -> dict[str, Cache]:
    """The evaluation view, then 1, 5 and 10 views, each extending the cache before it."""
    caches, seconds = {}, 0.0
    for name, views in (("evaluation view", "eval"), *((f"{count} views", count) for count in VIEWS)):
        policy_recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"views": views})})
        cache_folder = folder / ("eval" if views == "eval" else "views")
        built = build_cache(cache_folder, dataset=dataset, teacher=teacher, recipe=policy_recipe, device=device)
        seconds = built.seconds if views in ("eval", 1) else seconds + built.seconds
        caches[name] = built.cache
        targets = built.summary.num_targets
        facts = {"seconds": seconds, "bytes": built.cache.num_bytes, "images_per_s": targets / seconds}
        result.add_fact(f"build {name}", facts)
    return caches


def _per_step(
    caches: dict[str, Cache],
    dataset: DatasetFolder,
    teacher: TeacherFolder,
    recipe: Recipe,
    device: torch.device,
    result: BenchmarkResult,
    rounds: int,
) -> None:
    """Time a step of the paper's two students, and teacher targets for its batch: cached or live, by policy."""
    split, batch = dataset.split("train"), recipe.train.batch_size
    with contextlib.closing(open_backend("auto", split, device)) as backend:
        first = next(iter(backend.epoch(split.ids[:batch], batch)))
    views = EpochViews(recipe.views.spec, recipe.views.seed, split, device)
    x_BCHW = apply(first.canvas, views.table(0).gather(first.ids), recipe.views.spec)
    ensemble = TeacherEnsemble.load([teacher], recipe, dataset, device)
    cached = CachedTargets(caches["evaluation view"], device)
    live_eval = LiveTargets(ensemble, EpochViews(recipe.evaluation_spec, 0, split, device))
    live_views = LiveTargets(ensemble, None)
    variants = [
        Variant("students' step", _step(recipe, len(dataset.classes), device, x_BCHW, first, cached), batch),
        Variant("cached lookup", lambda: cached(first, x_BCHW, 0), batch),
        Variant("live teacher, evaluation view", lambda: live_eval(first, x_BCHW, 0), batch),
        Variant("live teacher, students' views", lambda: live_views(first, x_BCHW, 0), batch),
    ]
    timed = side_by_side(variants, device, rounds=rounds, warmup=1)
    result.add(timed, baseline="students' step", part="step")
    median = {one.name: one.median_s / batch for one in timed}
    result.add_fact("lookup share of a step", median["cached lookup"] / median["students' step"])
    for name in caches:
        live = median["live teacher, evaluation view" if name == "evaluation view" else "live teacher, students' views"]
        saved_per_epoch_s = (live - median["cached lookup"]) * len(split.ids)
        result.facts[f"build {name}"]["break_even_epoch"] = result.facts[f"build {name}"]["seconds"] / saved_per_epoch_s
        result.add_fact(f"break-even epoch, {name}", round(result.facts[f"build {name}"]["break_even_epoch"], 2))


def _step(
    recipe: Recipe, num_classes: int, device: torch.device, x_BCHW: torch.Tensor, batch: Batch, targets: CachedTargets
) -> Callable[[], None]:
    students = make_students(recipe, num_classes, device)
    loss = distill_with(recipe.loss.settings)
    weights_3N = constant_weights_3N(recipe.loss.settings, len(students), x_BCHW)

    def run() -> None:
        target = targets(batch, x_BCHW, 0)
        logits = [student.model(x_BCHW) for student in students]
        loss(logits, batch.labels, target.logits, target.weight, weights_3N).total.backward()  # type: ignore[no-untyped-call]
        for student in students:
            student.optimizer.step()
            student.optimizer.zero_grad(set_to_none=True)

    return run


def _lookups(folder: Path, device: torch.device, result: BenchmarkResult, rounds: int) -> None:
    """Time lookups of random rows among 130,000 targets, in the page cache or on the device."""
    for name, storage, classes in (
        ("float16, 100 classes", Storage(), CLASSES),
        ("float32, 100 classes", Storage(dtype="float32"), CLASSES),
        ("float16 top-32, 1,000 classes", Storage(top_k=32), 1000),
    ):
        cache = _synthetic_cache(folder / name.replace(" ", "-"), ROWS, classes, storage)
        table = cache.lookup_table(0, device)
        result.add_fact(f"bytes a target, {name}", cache.num_bytes / ROWS)
        for size in (64, 256, 1024):
            ids = torch.from_numpy(np.random.default_rng(0).integers(0, ROWS, (64, size))).to(device)
            variant = Variant(name, _cycle_lookups(table, ids), size)
            result.add(side_by_side([variant], device, rounds=rounds, warmup=64), part="lookup", batch=size)


def _cycle_lookups(table: TargetTable, batches: torch.Tensor) -> Callable[[], None]:
    batch_indices = itertools.cycle(range(len(batches)))

    def run() -> None:
        table.lookup(batches[next(batch_indices)])

    return run


def _synthetic_cache(folder: Path, num_samples: int, classes: int, storage: Storage) -> Cache:
    """A finished cache of one view that repeats one block of random targets."""
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
    with CacheWriter(folder, key, np.zeros(num_samples, np.bool_)) as writer, writer.view(0) as view:
        dtypes = {spec.name: spec.dtype for spec in view.header.arrays}
        arrays = [array.numpy().astype(dtypes[name]) for name, array in block.arrays.items()]
        for number in list(view.unfinished):
            count = len(view.ids(number))
            view.write(number, *(array[:count] for array in arrays))
        view.finish()
    return Cache.open(folder)


def _memory(folder: Path, result: BenchmarkResult) -> None:
    """Measure the private memory of a worker's table of 1.28 M samples; the file's pages are in the shared page cache."""
    cache = _synthetic_cache(folder / "big", BIG_ROWS, CLASSES, Storage())
    ids = torch.from_numpy(np.random.default_rng(0).permutation(BIG_ROWS))
    table = cache.lookup_table(0, torch.device("cpu"))
    table.lookup(ids[:1024])  # so that PyTorch's first allocations do not count
    before = _private_kb()
    table = cache.lookup_table(0, torch.device("cpu"))
    for start in range(0, BIG_ROWS, 1024):
        table.lookup(ids[start : start + 1024])
    after = _private_kb()
    result.add_fact("private MB of a table of 1.28 M samples after an epoch", (after - before) / 1024)
    result.add_fact("bytes a target, 1.28 M samples", cache.num_bytes / BIG_ROWS)


def _private_kb() -> int:
    """KiB of dirty pages that only this process has, as the kernel counts them."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def _plot(result: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    names = ["evaluation view", *(f"{count} views" for count in VIEWS)]
    left, right = figure.subplots(1, 2)
    images = result.settings["images"]
    seconds: list[float | None] = [1e3 * result.facts[f"build {name}"]["seconds"] / images for name in names]
    epochs: list[float | None] = [result.facts[f"build {name}"]["break_even_epoch"] for name in names]
    bars(left, palette, names, seconds, unit="ms an image to build")
    bars(right, palette, names, epochs, unit="epochs until it pays off against a live teacher")
