"""Pipeline efficiency: images/s of training from a backend over images/s on one constant batch in device memory."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib.figure import Figure

from benchmarks.common.figures import Palette, bars, draw, speed_span
from benchmarks.common.harness import CLASSES, TableTargets, paper_recipe, synthetic_targets
from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.synthetic_images import image_folder
from benchmarks.common.timing import Variant, side_by_side
from udkd.augment.view_table import EpochViews
from udkd.config.recipe import Recipe
from udkd.data.backends.registry import open_backend
from udkd.data.batch import Batch
from udkd.data.dataset import Split
from udkd.data_prep.convert import ConvertSettings, convert
from udkd.training.build_step import build_step
from udkd.training.metrics import TrainMetrics
from udkd.training.runners import StreamingRunner
from udkd.training.schedule import EpochSchedule
from udkd.training.student import make_students
from udkd.utils.environment import choose_device
from udkd.utils.progress import SILENT
from udkd.utils.terminal import DeviceOption

EXPECTATION = """The constant batch saves the backend's work and nothing else: both augment and look up targets.
Resident rows are a gather, so 0.98 on a GPU and 0.97 on a CPU with both cores at work on the networks, where the reading
thread takes its share of a core: 0.2 ms an image of a step's 50 ms. The folder backend decodes: 1.5 ms an image at canvas
256, 0.95 to 0.97 at 64 px on two cores, where a step is 30 ms an image at most; on a GPU its cores must decode as fast as
the GPU trains, which they do not."""


def main(
    batch: Annotated[int, typer.Option("--batch", min=0, help="0: 256 on a GPU, else 16.")] = 0,
    px: Annotated[int, typer.Option("--px", min=0, help="Side of the views; 0: 224 on a GPU, else 64.")] = 0,
    side: Annotated[int, typer.Option("--side", min=32, help="Canvas side.")] = 256,
    backends: Annotated[list[str] | None, typer.Option("--backend", help="resident, folder, ffcv or dali; repeatable.")] = None,
    rounds: RoundsOption = 7,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For all recipes.")] = None,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Train two students from a cache, with each backend and with one constant batch, side by side."""
    dev = choose_device(device)
    gpu = dev.type == "cuda"
    batch, px, names = batch or (256 if gpu else 16), px or (224 if gpu else 64), backends or ["resident", "folder"]
    count = 8 * batch
    distinct = min(count, max(batch, 512))  # 20 ms to write each; an epoch repeats them
    run_settings = {
        "batch": batch,
        "px": px,
        "side": side,
        "backends": names,
        "images": f"{distinct} synthetic JPEGs of 500 x 375",
    }
    result = BenchmarkResult.begin("pipeline", EXPECTATION, dev, run_settings)
    with tempfile.TemporaryDirectory() as scratch:
        tree = image_folder(Path(scratch) / "images", distinct)
        extra = tuple(name for name in ("ffcv",) if name in names)
        convert_settings = ConvertSettings(side=side, fit="squash", formats=("resident", *extra))
        split = convert([tree], Path(scratch) / "data", convert_settings, SILENT).split("train")
        recipe = paper_recipe(dev, 'train.input="stream"', "train.cuda_graph=false", *(settings or []), px=px, batch=batch)
        runs = {name: TrainingRun(open_backend(name, split, dev), split, recipe, count, dev) for name in names}
        base = TrainingRun(None, split, recipe, count, dev)
        variants = [Variant("constant batch", base.epoch, items=count)]
        variants += [Variant(name, run.epoch, items=count) for name, run in runs.items()]
        timed = side_by_side(variants, dev, rounds=rounds, warmup=1)
        for run in runs.values():
            run.close()
    result.add(timed, baseline="constant batch", px=px, batch=batch)
    for row in result.rows[1:]:
        result.add_fact(f"efficiency of {row['variant']}", 1 / row["ratio"]["median"])
    result.write(results)
    draw(results, f"pipeline-{result.slug}", lambda figure, palette: _plot(result, figure, palette), height=2.0)


class TrainingRun:
    """Trains the two students on `count` images per call, from a backend, or from one constant batch where it is None."""

    def __init__(self, backend: object, split: Split, recipe: Recipe, count: int, device: torch.device) -> None:
        batch = recipe.train.batch_size
        self.split, self.batch, self.count, self.epochs = split, batch, count, 0
        self.backend = backend or ConstantBackend(split, batch, device)
        students = make_students(recipe, CLASSES, device)
        targets = TableTargets(synthetic_targets(split.num_samples, device))
        step = build_step(recipe, recipe.views.spec, students, targets, device)
        self.runner = StreamingRunner(step, self.backend, batch)  # type: ignore[arg-type]
        self.metrics = TrainMetrics.empty(len(students), device)
        table = EpochViews(recipe.views.spec, 0, split, device).table(0)
        self.schedule = EpochSchedule.of(recipe, 0, count // batch, 0, table, device)

    def epoch(self) -> None:
        """Train on `count` images, rounded down to full batches, in a new random order."""
        self.epochs += 1
        self.metrics.clear()
        rng, ids = np.random.default_rng(self.epochs), self.split.ids
        order = np.concatenate([rng.permutation(ids) for _ in range(-(-self.count // len(ids)))])
        for _ in self.runner.epoch(order[: self.count // self.batch * self.batch], self.schedule, self.metrics):
            pass

    def close(self) -> None:
        """Release the backend."""
        self.backend.close()  # type: ignore[attr-defined]


class ConstantBackend:
    """A backend that yields the same batch again and again, without any work."""

    def __init__(self, split: Split, batch: int, device: torch.device) -> None:
        backend = open_backend("resident", split, device)
        (self._batch,) = list(backend.epoch(split.ids[:batch], batch))
        backend.close()

    def epoch(self, order: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """The batch, once per full batch in `order`."""
        for _ in range(len(order) // batch_size):
            yield self._batch

    def close(self) -> None:
        """Do nothing."""


def _plot(result: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    axes = figure.add_subplot()
    names = [row["variant"] for row in result.rows]
    speeds, spans = [row["items_per_s"] for row in result.rows], [speed_span(row) for row in result.rows]
    bars(axes, palette, names, speeds, unit="images/s", value_format="{:,.0f}", spans=spans)
    axes.set_title(
        f"Training at {result.settings['px']} px, canvas {result.settings['side']}, batch {result.settings['batch']}"
    )
