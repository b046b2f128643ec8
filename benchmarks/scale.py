"""How the cost and memory of a step grow with the batch size and with the size of the dataset."""

from typing import Annotated

import psutil
import torch
import typer
from matplotlib.figure import Figure

from benchmarks.common.figures import MARKERS, Palette, draw
from benchmarks.common.harness import canvases, make_step, paper_recipe
from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.timing import Variant, side_by_side
from udkd.utils.environment import choose_device
from udkd.utils.terminal import DeviceOption

EXPECTATION = """The cost of an image does not depend on the number of images: a step gathers its batch's rows, and 100,000
rows cost what 1,000 do, within 5 %. On a GPU images/s rise with the batch until about 512 and then stay; memory grows with
the batch, about 80 MB an image at 224 px in bfloat16 for both students. On a CPU the batch changes little after 16."""


def main(
    batches: Annotated[list[int] | None, typer.Option("--batch", min=2, help="Batch size; repeatable.")] = None,
    counts: Annotated[list[int] | None, typer.Option("--samples", min=64, help="Dataset size; repeatable.")] = None,
    px: Annotated[int, typer.Option("--px", min=0, help="Side of the views; 0: 224 on a GPU, else 64.")] = 0,
    rounds: RoundsOption = 5,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Time the two students' step at growing batches, then at growing dataset sizes (64 px canvases)."""
    dev = choose_device(device)
    gpu = dev.type == "cuda"
    px, batches = px or (224 if gpu else 64), batches or ([32, 128, 512, 2048] if gpu else [4, 16, 64])
    counts = counts or [1_000, 10_000, 100_000]
    result = BenchmarkResult.begin("scale", EXPECTATION, dev, {"batch": batches, "samples": counts, "px": px})
    for batch in batches:
        before = memory_bytes(dev)
        step = make_step(
            paper_recipe(dev, px=px, batch=batch),
            canvases(2 * batch, min(px * 8 // 7, 256), dev),
            dev,
        )
        timed = side_by_side([Variant("batch", step.run, items=batch)], dev, rounds=rounds)
        result.add(timed, batch=batch, px=px)
        result.rows[-1]["memory_gb"] = (memory_bytes(dev) - before) / 1e9
        result.write(results)
    # The same networks at every dataset size, so their noise cancels; small images, so that the gather's cost is visible.
    batch, side = 64 if gpu else 16, 64
    variants = []
    for count in counts:
        recipe = paper_recipe(dev, 'train.compile="loss"', px=side, batch=batch)
        step = make_step(recipe, canvases(count, side, dev), dev)
        variants.append(Variant(f"{count} samples", step.run, items=batch))
    result.add(side_by_side(variants, dev, rounds=rounds), baseline=variants[0].name, batch=batch, px=side)
    result.write(results)
    draw(results, f"scale-{result.slug}", lambda figure, palette: _plot(result, figure, palette))


def memory_bytes(device: torch.device) -> int:
    """Bytes: on a GPU the peak since the last call (which it resets), on a CPU this process's resident memory."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_reserved(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return int(psutil.Process().memory_info().rss)


def _plot(result: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    rows = [row for row in result.rows if row["variant"] == "batch"]
    left.plot([row["batch"] for row in rows], [row["items_per_s"] for row in rows], marker=MARKERS[0], color=palette.student(0))
    left.set_xscale("log", base=2)
    left.set_xticks([row["batch"] for row in rows], [str(row["batch"]) for row in rows])
    left.set_xlabel("batch")
    left.set_ylabel("images/s")
    left.set_ylim(bottom=0)
    left.set_title(f"two students, {result.settings['px']} px")
    sizes = result.settings["samples"]
    ratios = [row["ratio"]["median"] for row in result.rows if row["variant"].endswith("samples")]
    right.plot(sizes, ratios, marker=MARKERS[1], color=palette.student(1))
    right.set_xscale("log")
    right.set_xticks(sizes, [f"{size:,}" for size in sizes])
    right.set_ylim(0, 1.3)
    right.set_xlabel("samples in the dataset")
    right.set_ylabel(f"cost of an image, times that of {sizes[0]:,}")
    right.set_title("the same step, more samples")
