"""The paper's job as a straight script, then ours, on the same images side by side."""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib.figure import Figure

from benchmarks.common.baseline_script import loader, steps
from benchmarks.common.figures import Palette, bars, draw, speed_span
from benchmarks.common.harness import canvases, make, paper_recipe
from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.synthetic_images import image_folder
from benchmarks.common.timing import Variant, side_by_side
from udkd.data.backends.resident import ResidentBackend
from udkd.data.batch import Batch
from udkd.data.dataset import DatasetFolder
from udkd.utils.environment import choose_device
from udkd.utils.progress import SILENT
from udkd.utils.terminal import DeviceOption

EXPECTATION = """Pillow's decoding, crop, flip and jitter give the plain script about 260 images/s a core at 224 px, so 16
cores feed about 4,000 images/s and ours is 2.5 times faster with its mixed precision on and 5 times without on an H200,
which ours keeps busy from its own memory. On two CPU cores the networks dominate: ours gains the teacher's answer and the
decoding, 1.4 to 2.5 times at 64 px, where decoding a 500 x 375 JPEG costs as much as a step."""

PLAIN, AMP, OURS, LIVE = "plain script", "plain script, mixed precision", "ours, cached teacher", "ours, live teacher"
ALONE = "plain script's images alone"
AHEAD = 2  # batches that a DataLoader's worker makes ahead, by default
DRAINED, TIMED = 3, 2  # batches a worker: taken untimed until the queue is at a long run's level, then timed
PILLOW_PER_S = 260


def main(
    batch: Annotated[int, typer.Option("--batch", min=0, help="0: 256 on a GPU, else 16.")] = 0,
    px: Annotated[int, typer.Option("--px", min=0, help="Side of the views; 0: 224 on a GPU, else 64.")] = 0,
    side: Annotated[int, typer.Option("--side", min=32, help="Canvas side of our dataset folder.")] = 256,
    workers: Annotated[int, typer.Option("--workers", min=0, help="The plain script's; 0: one per core.")] = 0,
    rounds: RoundsOption = 5,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Train ResNet-18 and MobileNetV2 from ResNet-50, plainly and our way; also the plain script's pipeline alone."""
    where = choose_device(device)
    gpu = where.type == "cuda"
    batch, px = batch or (256 if gpu else 16), px or (224 if gpu else 64)
    workers = workers or len(os.sched_getaffinity(0))
    count = max(batch, min(8 * batch, 512))  # made in 20 ms each; the plain script draws them again
    asked = {"batch": batch, "px": px, "side": side, "workers": workers, "images": f"{count} made-up JPEGs of 500 x 375"}
    record = BenchmarkResult.begin("plain", EXPECTATION, where, asked)
    with tempfile.TemporaryDirectory() as scratch:
        tree = image_folder(Path(scratch) / "images", count)
        rows = resident_rows(tree, Path(scratch) / "data", side, where)
        options = {"px": px, "batch": batch, "workers": workers, "classes": 100, "device": where}
        scripts = {name: steps(tree, amp=name == AMP, **options) for name in (PLAIN, AMP)}  # type: ignore[arg-type]
        ours = make(paper_recipe(where, px=px, batch=batch), rows, where)
        live = make(paper_recipe(where, 'teacher.source="live"', "teacher.views=1", px=px, batch=batch), rows, where)
        drained, turn = DRAINED * workers, max(8, TIMED * workers)
        streams = scripts | {ALONE: endless(tree, px, batch, workers, where)}
        plain = {
            name: Variant(name, take(stream, turn), items=turn * batch, prepare=in_turn(quiet(batch), take(stream, drained)))
            for name, stream in streams.items()
            if gpu or name != AMP
        }
        variants = [
            *plain.values(),
            Variant(OURS, several(ours.run), items=8 * batch, prepare=quiet(batch)),
            Variant(LIVE, several(live.run), items=8 * batch, prepare=quiet(batch)),
        ]
        record.add(side_by_side(variants, where, rounds=rounds, warmup=1), baseline=PLAIN, px=px, batch=batch)
    record.put("what bounds the plain script", bound(record))
    record.write(results)
    draw(results, f"plain-{record.slug}", lambda figure, palette: _picture(record, figure, palette), height=2.4)


def resident_rows(tree: Path, folder: Path, side: int, device: torch.device) -> Batch:
    """Convert the tree and read it back through the resident backend; made-up canvases where the converter cannot run."""
    try:
        from data_prep.convert import ConvertSettings, convert
    except ModuleNotFoundError:  # a GPU machine without registries
        return canvases(sum(1 for _ in (tree / "train").rglob("*.jpg")), side, device)
    settings = ConvertSettings(side=side, fit="squash", formats=("resident",))
    dataset: DatasetFolder = convert([tree], folder, settings, SILENT)
    backend = ResidentBackend(dataset.split("train"), device)
    rows = backend.whole()
    backend.close()
    return rows


def endless(tree: Path, px: int, batch: int, workers: int, device: torch.device) -> Iterator[int]:
    """The plain script's batches without any training."""
    data = loader(tree, px, batch, workers, device)
    while True:
        for _, labels in data:
            yield len(labels)


def take(stream: Iterator[int], count: int):  # type: ignore[no-untyped-def]
    """A call that takes so many batches. What workers made ready while others were timed is taken before, untimed: the
    figure is that of a long run.
    """
    return lambda: list(itertools.islice(stream, count))


def quiet(batch: int):  # type: ignore[no-untyped-def]
    """A call that lets the others' workers fill their queues, each at Pillow's speed, so that they cost the next nothing."""
    return lambda: time.sleep(AHEAD * batch / PILLOW_PER_S)


def in_turn(*calls: Callable[[], object]) -> Callable[[], object]:
    """One call of several."""
    return lambda: [call() for call in calls]


def several(run, count: int = 8):  # type: ignore[no-untyped-def]
    """A call that takes as many of our steps."""
    return lambda: [run() for _ in range(count)]


def bound(record: BenchmarkResult) -> str:
    """Whether images or networks hold the plain script up."""
    speed = {row["variant"]: row["items_per_s"] for row in record.rows}
    share = speed[PLAIN] / speed[ALONE]
    which = "its images" if share > 0.8 else "its networks, with the images beside them" if share > 0.4 else "its networks"
    return f"{which}: it trains at {share:.0%} of the speed at which its workers deliver ({np.round(speed[PLAIN])} images/s)"


def _picture(record: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    axes = figure.add_subplot()
    names = [row["variant"] for row in record.rows]
    speeds, spans = [row["items_per_s"] for row in record.rows], [speed_span(row) for row in record.rows]
    bars(axes, palette, names, speeds, unit="images/s", form="{:,.0f}", spans=spans)
    axes.set_title(f"Two students at {record.settings['px']} px, batch {record.settings['batch']}")
