"""How a step's cost and memory grow with the batch and with the size of the dataset."""

from typing import Annotated

import psutil
import torch
import typer
from matplotlib.figure import Figure

from benchmarks.common.figures import MARKERS, Palette, draw
from benchmarks.common.harness import canvases, make, paper_recipe
from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.timing import Variant, side_by_side
from udkd.utils.environment import choose_device
from udkd.utils.terminal import DeviceOption

EXPECTATION = """The cost of an image does not depend on the number of images: a step gathers its batch's rows, and 100,000
rows cost what 1,000 do, within 5 %. On a GPU images/s rise with the batch until about 512 and then stay; memory grows with
the batch, about 80 MB an image at 224 px in bfloat16 for both students. On a CPU the batch changes little after 16."""


def main(
    batches: Annotated[list[int] | None, typer.Option("--batch", min=2, help="Batch sizes; may be given again.")] = None,
    counts: Annotated[list[int] | None, typer.Option("--samples", min=64, help="Dataset sizes; may be given again.")] = None,
    px: Annotated[int, typer.Option("--px", min=0, help="Side of the views; 0: 224 on a GPU, else 64.")] = 0,
    rounds: RoundsOption = 5,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Time the two students' step at growing batches, then at growing dataset sizes (64 px canvases)."""
    where = choose_device(device)
    gpu = where.type == "cuda"
    px, batches = px or (224 if gpu else 64), batches or ([32, 128, 512, 2048] if gpu else [4, 16, 64])
    counts = counts or [1_000, 10_000, 100_000]
    record = BenchmarkResult.begin("scale", EXPECTATION, where, {"batch": batches, "samples": counts, "px": px})
    for batch in batches:
        before = memory(where)
        made = make(paper_recipe(where, px=px, batch=batch), canvases(2 * batch, min(px * 8 // 7, 256), where), where)
        timed = side_by_side([Variant("batch", made.run, items=batch)], where, rounds=rounds)
        record.add(timed, batch=batch, px=px)
        record.rows[-1]["memory_gb"] = (memory(where) - before) / 1e9
        record.write(results)
    # One step over all sizes: the networks, and their noise, are the same; small ones, so that the gather shows.
    batch, side = 64 if gpu else 16, 64
    variants = []
    for count in counts:
        recipe = paper_recipe(where, 'train.compile="loss"', px=side, batch=batch)
        made = make(recipe, canvases(count, side, where), where)
        variants.append(Variant(f"{count} samples", made.run, items=batch))
    record.add(side_by_side(variants, where, rounds=rounds), baseline=variants[0].name, batch=batch, px=side)
    record.write(results)
    draw(results, f"scale-{record.slug}", lambda figure, palette: _picture(record, figure, palette))


def memory(device: torch.device) -> int:
    """Bytes: the greatest so far on a GPU (then counted anew), this process's on a CPU."""
    if device.type == "cuda":
        highest = torch.cuda.max_memory_reserved(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return highest
    return int(psutil.Process().memory_info().rss)


def _picture(record: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    rows = [row for row in record.rows if row["variant"] == "batch"]
    left.plot([row["batch"] for row in rows], [row["items_per_s"] for row in rows], marker=MARKERS[0], color=palette.student(0))
    left.set_xscale("log", base=2)
    left.set_xticks([row["batch"] for row in rows], [str(row["batch"]) for row in rows])
    left.set_xlabel("batch")
    left.set_ylabel("images/s")
    left.set_ylim(bottom=0)
    left.set_title(f"two students, {record.settings['px']} px")
    sizes = record.settings["samples"]
    ratios = [row["ratio"]["median"] for row in record.rows if row["variant"].endswith("samples")]
    right.plot(sizes, ratios, marker=MARKERS[1], color=palette.student(1))
    right.set_xscale("log")
    right.set_xticks(sizes, [f"{size:,}" for size in sizes])
    right.set_ylim(0, 1.3)
    right.set_xlabel("samples in the dataset")
    right.set_ylabel(f"cost of an image, times that of {sizes[0]:,}")
    right.set_title("the same step, more samples")
