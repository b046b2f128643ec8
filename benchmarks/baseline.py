"""The paper's training as a plain script against ours, on the same images, side by side."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib.figure import Figure

from benchmarks.common.baseline_script import loader, train_steps
from benchmarks.common.figures import Palette, bars, draw, speed_span
from benchmarks.common.harness import canvases, make_step, paper_recipe
from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.synthetic_images import image_folder
from benchmarks.common.timing import Variant, side_by_side
from udkd.data.backends.resident import ResidentBackend
from udkd.data.batch import Batch
from udkd.data.dataset import DatasetFolder
from udkd.utils.environment import choose_device
from udkd.utils.operating_system import available_cores
from udkd.utils.progress import SILENT
from udkd.utils.terminal import DeviceOption

EXPECTATION = """Pillow's decoding, crop, flip and jitter give the plain script about 260 images/s a core at 224 px, so 16
cores feed about 4,000 images/s and ours is 2.5 times faster with its mixed precision on and 5 times without on an H200,
which ours keeps busy from its own memory. On two CPU cores the networks dominate: ours saves the teacher's forward pass and the
decoding, 1.4 to 2.5 times at 64 px, where decoding a 500 x 375 JPEG costs as much as a step."""

PLAIN, AMP, OURS, LIVE = "plain script", "plain script, mixed precision", "ours, cached teacher", "ours, live teacher"
LOADER_ONLY = "plain script's images alone"
PREFETCH_FACTOR = 2  # batches that each DataLoader worker prepares ahead, by default
UNTIMED_BATCHES, TIMED_BATCHES = 3, 2  # per worker; the untimed ones fill the queue as in a long run
PILLOW_PER_S = 260  # images per core


def main(
    batch: Annotated[int, typer.Option("--batch", min=0, help="0: 256 on a GPU, else 16.")] = 0,
    px: Annotated[int, typer.Option("--px", min=0, help="Side of the views; 0: 224 on a GPU, else 64.")] = 0,
    side: Annotated[int, typer.Option("--side", min=32, help="Canvas side of our dataset folder.")] = 256,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Of the plain script; 0: one per core.")] = 0,
    rounds: RoundsOption = 5,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Train ResNet-18 and MobileNetV2 from ResNet-50 with the plain script and with ours; also time its DataLoader alone."""
    dev = choose_device(device)
    gpu = dev.type == "cuda"
    batch, px = batch or (256 if gpu else 16), px or (224 if gpu else 64)
    workers = workers or available_cores()
    count = max(batch, min(8 * batch, 512))  # 20 ms to write each; the plain script samples them with replacement
    images = f"{count} synthetic JPEGs of 500 x 375"
    run_settings = {"batch": batch, "px": px, "side": side, "workers": workers, "images": images}
    result = BenchmarkResult.begin("baseline", EXPECTATION, dev, run_settings)
    with tempfile.TemporaryDirectory() as scratch:
        tree = image_folder(Path(scratch) / "images", count)
        samples = resident_samples(tree, Path(scratch) / "data", side, dev)
        options = {"px": px, "batch": batch, "workers": workers, "classes": 100, "device": dev}
        scripts = {name: train_steps(tree, amp=name == AMP, **options) for name in (PLAIN, AMP)}  # type: ignore[arg-type]
        ours = make_step(paper_recipe(dev, px=px, batch=batch), samples, dev)
        live = make_step(paper_recipe(dev, 'teacher.source="live"', "teacher.views=1", px=px, batch=batch), samples, dev)
        untimed, timed = UNTIMED_BATCHES * workers, max(8, TIMED_BATCHES * workers)
        streams = scripts | {LOADER_ONLY: endless_batches(tree, px, batch, workers, dev)}
        baselines = [
            Variant(
                name,
                take_batches(stream, timed),
                items=timed * batch,
                prepare=call_all(let_queues_fill(batch), take_batches(stream, untimed)),
            )
            for name, stream in streams.items()
            if gpu or name != AMP
        ]
        variants = [
            *baselines,
            Variant(OURS, repeat_step(ours.run), items=8 * batch, prepare=let_queues_fill(batch)),
            Variant(LIVE, repeat_step(live.run), items=8 * batch, prepare=let_queues_fill(batch)),
        ]
        result.add(side_by_side(variants, dev, rounds=rounds, warmup=1), baseline=PLAIN, px=px, batch=batch)
    result.add_fact("what bounds the plain script", bottleneck(result))
    result.write(results)
    draw(results, f"baseline-{result.slug}", lambda figure, palette: _plot(result, figure, palette), height=2.4)


def resident_samples(tree: Path, folder: Path, side: int, device: torch.device) -> Batch:
    """The converted tree as the resident backend loads it; synthetic canvases where the converter cannot run."""
    try:
        from udkd.data_prep.convert import ConvertSettings, convert
    except ModuleNotFoundError:  # a GPU machine without the converter's packages
        return canvases(sum(1 for _ in (tree / "train").rglob("*.jpg")), side, device)
    settings = ConvertSettings(side=side, fit="squash", formats=("resident",))
    dataset: DatasetFolder = convert([tree], folder, settings, SILENT)
    backend = ResidentBackend(dataset.split("train"), device)
    samples = backend.full_batch()
    backend.close()
    return samples


def endless_batches(tree: Path, px: int, batch: int, workers: int, device: torch.device) -> Iterator[int]:
    """The sizes of the plain script's batches, loaded but not trained on."""
    data = loader(tree, px, batch, workers, device)
    while True:
        for _, labels in data:
            yield len(labels)


def take_batches(stream: Iterator[int], count: int):  # type: ignore[no-untyped-def]
    """A function that takes `count` batches.

    First, batches prefetched while other variants were timed are taken, untimed, so the measured speed is that of a long run.
    """
    return lambda: list(itertools.islice(stream, count))


def let_queues_fill(batch: int):  # type: ignore[no-untyped-def]
    """A function that waits until the other variants' workers have filled their queues and leave the cores idle."""
    return lambda: time.sleep(PREFETCH_FACTOR * batch / PILLOW_PER_S)


def call_all(*calls: Callable[[], object]) -> Callable[[], object]:
    """A function that makes all `calls` in turn."""
    return lambda: [call() for call in calls]


def repeat_step(run, count: int = 8):  # type: ignore[no-untyped-def]
    """A function that runs `count` of our steps."""
    return lambda: [run() for _ in range(count)]


def bottleneck(result: BenchmarkResult) -> str:
    """Whether loading or the networks limit the plain script."""
    speed = {row["variant"]: row["items_per_s"] for row in result.rows}
    ratio = speed[PLAIN] / speed[LOADER_ONLY]
    limit = "its images" if ratio > 0.8 else "its networks, with the images beside them" if ratio > 0.4 else "its networks"
    return f"{limit}: it trains at {ratio:.0%} of the speed at which its workers deliver ({np.round(speed[PLAIN])} images/s)"


def _plot(result: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    axes = figure.add_subplot()
    names = [row["variant"] for row in result.rows]
    speeds, spans = [row["items_per_s"] for row in result.rows], [speed_span(row) for row in result.rows]
    bars(axes, palette, names, speeds, unit="images/s", value_format="{:,.0f}", spans=spans)
    axes.set_title(f"Two students at {result.settings['px']} px, batch {result.settings['batch']}")
