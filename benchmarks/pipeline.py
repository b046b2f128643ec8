"""Pipeline efficiency: real training's images/s over those of one constant batch that lies on the device already."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib.figure import Figure

from benchmarks.common.figures import Palette, bars, draw, speed_span
from benchmarks.common.pictures import image_folder
from benchmarks.common.record import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.rig import CLASSES, TableLessons, made_up_targets, paper_recipe
from benchmarks.common.timing import Variant, side_by_side
from data_prep.convert import ConvertSettings, convert
from udkd.augment.view_table import EpochViews
from udkd.config.recipe import Recipe
from udkd.data.backends.registry import open_backend
from udkd.data.batch import Batch
from udkd.data.dataset import Split
from udkd.training.build_step import build_step
from udkd.training.metrics import TrainMetrics
from udkd.training.runners import StreamingRunner
from udkd.training.schedule import EpochSchedule
from udkd.training.student import make_students
from udkd.utils.environment import choose_device
from udkd.utils.progress import SILENT
from udkd.utils.terminal import DeviceOption

EXPECTATION = """The constant batch spares the backend's work and nothing else: augmentation and lookup stay in both.
Resident rows are a gather, so 0.98 on a GPU and 0.97 on a CPU with both cores at work on the networks, where the reading
thread takes its share of a core: 0.2 ms an image of a step's 50 ms. The folder backend decodes: 1.5 ms an image at canvas
256, 0.95 to 0.97 at 64 px on two cores, where a step is 30 ms an image at most; on a GPU its cores must decode as fast as
the GPU trains, which they do not."""


def main(
    batch: Annotated[int, typer.Option("--batch", min=0, help="0: 256 on a GPU, else 16.")] = 0,
    px: Annotated[int, typer.Option("--px", min=0, help="Side of the views; 0: 224 on a GPU, else 64.")] = 0,
    side: Annotated[int, typer.Option("--side", min=32, help="Canvas side.")] = 256,
    backends: Annotated[
        list[str] | None, typer.Option("--backend", help="resident, folder, ffcv, dali; again for more.")
    ] = None,
    rounds: RoundsOption = 7,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For all recipes.")] = None,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Train two students from a cache, fed by each backend and by one constant batch, side by side."""
    where = choose_device(device)
    gpu = where.type == "cuda"
    batch, px, names = batch or (256 if gpu else 16), px or (224 if gpu else 64), backends or ["resident", "folder"]
    count = 8 * batch
    distinct = min(count, max(batch, 512))  # made in 20 ms each; an epoch draws them again
    asked = {"batch": batch, "px": px, "side": side, "backends": names, "images": f"{distinct} made-up JPEGs of 500 x 375"}
    record = BenchmarkResult.begin("pipeline", EXPECTATION, where, asked)
    with tempfile.TemporaryDirectory() as scratch:
        tree = image_folder(Path(scratch) / "images", distinct)
        extra = tuple(name for name in ("ffcv",) if name in names)
        how = ConvertSettings(side=side, fit="squash", formats=("resident", *extra))
        split = convert([tree], Path(scratch) / "data", how, SILENT).split("train")
        recipe = paper_recipe(where, 'train.input="stream"', "train.cuda_graph=false", *(settings or []), px=px, batch=batch)
        feeds = {name: Fed(open_backend(name, split, where), split, recipe, count, where) for name in names}
        base = Fed(None, split, recipe, count, where)
        variants = [Variant("constant batch", base.epoch, items=count)]
        variants += [Variant(name, fed.epoch, items=count) for name, fed in feeds.items()]
        timed = side_by_side(variants, where, rounds=rounds, warmup=1)
        for fed in feeds.values():
            fed.close()
    record.add(timed, baseline="constant batch", px=px, batch=batch)
    for row in record.rows[1:]:
        record.put(f"efficiency of {row['variant']}", 1 / row["ratio"]["median"])
    record.write(results)
    draw(results, f"pipeline-{record.slug}", lambda figure, palette: _picture(record, figure, palette), height=2.0)


class Fed:
    """The two students' training on `count` images of a split a call, from a backend or from one constant batch (None)."""

    def __init__(self, backend: object, split: Split, recipe: Recipe, count: int, device: torch.device) -> None:
        batch = recipe.train.batch_size
        self.split, self.batch, self.count, self.turn = split, batch, count, 0
        self.backend = backend or Constant(split, batch, device)
        students = make_students(recipe, CLASSES, device)
        lessons = TableLessons(made_up_targets(split.num_samples, device))
        step = build_step(recipe, recipe.views.spec, students, lessons, device)
        self.drive = StreamingRunner(step, self.backend, batch)  # type: ignore[arg-type]
        self.tally = TrainMetrics.empty(len(students), device)
        table = EpochViews(recipe.views.spec, 0, split, device).table(0)
        self.plan = EpochSchedule.of(recipe, 0, count // batch, 0, table, device)

    def epoch(self) -> None:
        """So many images in whole batches, in a new order."""
        self.turn += 1
        self.tally.clear()
        rng, ids = np.random.default_rng(self.turn), self.split.ids
        order = np.concatenate([rng.permutation(ids) for _ in range(-(-self.count // len(ids)))])
        for _ in self.drive.epoch(order[: self.count // self.batch * self.batch], self.plan, self.tally):
            pass

    def close(self) -> None:
        """Release the backend."""
        self.backend.close()  # type: ignore[attr-defined]


class Constant:
    """A backend that has one batch."""

    def __init__(self, split: Split, batch: int, device: torch.device) -> None:
        with_rows = open_backend("resident", split, device)
        (self._batch,) = list(with_rows.epoch(split.ids[:batch], batch))
        with_rows.close()

    def epoch(self, order: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """The same batch as often as the order has batches."""
        for _ in range(len(order) // batch_size):
            yield self._batch

    def close(self) -> None:
        """Nothing is held."""


def _picture(record: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    axes = figure.add_subplot()
    names = [row["variant"] for row in record.rows]
    speeds, spans = [row["items_per_s"] for row in record.rows], [speed_span(row) for row in record.rows]
    bars(axes, palette, names, speeds, unit="images/s", form="{:,.0f}", spans=spans)
    axes.set_title(
        f"Training at {record.settings['px']} px, canvas {record.settings['side']}, batch {record.settings['batch']}"
    )
