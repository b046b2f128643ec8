"""Crop, resize, flip and jitter of a batch: ours against torchvision, image by image, by canvas side."""

from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure
from torchvision.transforms import v2

from benchmarks.common.figures import MARKERS, Palette, draw
from benchmarks.common.harness import canvases, paper_recipe, view_table
from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.timing import Timed, Variant, side_by_side
from udkd.augment import apply as augment
from udkd.augment.preprocessing import IMAGENET, NetworkInput
from udkd.utils.compile import compiled
from udkd.utils.environment import choose_device
from udkd.utils.terminal import DeviceOption

EXPECTATION = """On a CPU the exact sums cost about what torchvision's separable filter does at 224 px, which reads the same
pixels, and grow a little with the canvas side, all of which is made float32; jitter costs several times as much. On a GPU
the sums are bound by memory: below 10 µs an image at canvas 256, growing with the side; eager jitter and normalisation as
much again, and compiled half of that. Torchvision image by image is bound by launches on a GPU: 100 times slower."""


def main(
    batch: Annotated[int, typer.Option("--batch", min=0, help="0: 256 on a GPU, else 16.")] = 0,
    px: Annotated[int, typer.Option("--px", min=0, help="Side of the views; 0: 224.")] = 0,
    sides: Annotated[list[int] | None, typer.Option("--side", min=32, help="Canvas side; repeatable.")] = None,
    compile: Annotated[bool, typer.Option("--compile/--no-compile", help="Also compiled (minutes on a CPU).")] = True,
    rounds: RoundsOption = 5,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Time the augmentation from canvases to normalised input, ours eager and compiled."""
    dev = choose_device(device)
    gpu = dev.type == "cuda"
    batch, px, sides = batch or (256 if gpu else 16), px or 224, sides or ([256, 320, 400, 512] if gpu else [256, 512])
    result = BenchmarkResult.begin("augment", EXPECTATION, dev, {"batch": batch, "px": px, "sides": sides})
    for side in sides:
        timed = measure(side, px, batch, dev, rounds, compile)
        result.add(timed, baseline="torchvision, image by image", side=side, px=px, batch=batch)
        result.write(results)
    draw(results, f"augment-{result.slug}", lambda figure, palette: _plot(result, figure, palette))


def measure(side: int, px: int, batch: int, device: torch.device, rounds: int, compile: bool) -> list[Timed]:
    """Time all variants on the same canvases."""
    recipe = paper_recipe(device, px=px, batch=batch)
    spec, batch_data, views = recipe.views.spec, canvases(batch, side, device), view_table(recipe, batch, side, device)
    images = batch_data.canvas.permute(0, 3, 1, 2).contiguous()
    torchvision_transform = v2.Compose(
        [
            v2.RandomResizedCrop(px, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET.mean, IMAGENET.std),
        ]
    )
    variants: dict[str, Callable[[], object]] = {
        "torchvision, image by image": lambda: torch.stack([torchvision_transform(image) for image in images]),
        "ours, window alone": lambda: augment.pixels(batch_data.canvas, views, px),
        "ours": lambda: augment.apply(batch_data.canvas, views, spec),
    }
    if compile and device.type == "cuda":
        apply_compiled = compiled(partial(augment.apply, spec=spec))
        variants["ours, compiled"] = lambda: apply_compiled(batch_data.canvas, views)
    elif compile:
        networks = [NetworkInput(size_px=px)]
        finish = compiled(partial(augment.finish_each, networks=networks, spec=spec))
        variants["ours, compiled"] = lambda: finish(augment.pixels_each(batch_data.canvas, views, networks, spec), views)
    with torch.no_grad():
        return side_by_side([Variant(name, run, items=batch) for name, run in variants.items()], device, rounds=rounds)


def _plot(result: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    axes = figure.add_subplot()
    for index, name in enumerate(dict.fromkeys(row["variant"] for row in result.rows)):
        rows = [row for row in result.rows if row["variant"] == name]
        speed = [row["items_per_s"] for row in rows]
        axes.plot([row["side"] for row in rows], speed, marker=MARKERS[index], color=palette.student(index), label=name)
    axes.set_xticks(result.settings["sides"], map(str, result.settings["sides"]))
    axes.set_xlabel("canvas side, px")
    axes.set_ylabel("images/s")
    axes.set_ylim(bottom=0)
    axes.set_title(f"Canvases to {result.settings['px']} px input, batch {result.settings['batch']}")
    axes.legend()
