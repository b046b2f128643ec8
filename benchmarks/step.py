"""The training step with one optimisation switched off at a time: the gain of each."""

import statistics
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure

from benchmarks.common.figures import Palette, bars, draw, ratio_span
from benchmarks.common.harness import CLASSES, TimedStep, canvases, make_step, paper_recipe
from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.timing import Variant, side_by_side
from benchmarks.loss import forward_backward, loss_variants
from udkd.utils.environment import choose_device
from udkd.utils.terminal import DeviceOption

EXPECTATION = """On a CPU a step is convolutions: a live teacher costs 40 to 90 % more, float32 channels first 10 to 50 %
more. The loss is 1 % of a step when eager and half a per cent compiled, so the row without its compilation shows noise alone.
On a GPU at batch 64 some 1,100 launches bind it: without the CUDA graph twice the time or more, without compilation 1.5 times
at large batches; float32 three times; a live teacher 1.5 times; the loss by itself nothing. The options off by default, by
what the compiler's plan for a GPU moves per image: with PyTorch 2.14 MobileNetV2 287 MB, 60 less with saved ReLU6 and 24 less
with force_layout, and ResNet-18 100 MB, 14 less with the gathered pool, so all three together 25 % less; with PyTorch 2.11
226 and 86 MB, of which they take 24, nothing and 1: 8 %. realize_reads adds nothing to them, streams 5 %. combo_kernels takes
320 launches of 1 to 2 us each: 8 % at batch 64, 1 % at 512; cudnn_benchmark 5 %."""

ALL_ON = "all on"
SHARE = "the loss's share of the step at"
OFF = {
    "cache off: live teacher": ('teacher.source="live"', "teacher.views=1"),
    "channels_last off": ("train.channels_last=false",),
    "loss eager": ('train.loss_impl="eager"',),
}
OFF_GPU = OFF | {
    "CUDA graph off": ("train.cuda_graph=false",),
    "compile off": ('train.compile="off"',),
    "all of it off": ('train.compile="off"', 'train.input="stream"', "train.cuda_graph=false"),
    "loss fused": ('train.loss_impl="fused"',),
    "bfloat16 off": ('train.precision="float32"',),
}
MODULES = ("perf.saved_relu6=true", "perf.gathered_pool=true")
PERF_OPTIONS = {
    "with saved_relu6": MODULES[:1],
    "with gathered_pool": MODULES[1:],
    "all compiled": ('train.compile="all"',),
    "all compiled, with force_layout": ('train.compile="all"', "perf.force_layout=true"),
}
PERF_OPTIONS_GPU = {
    "with all perf options": (*MODULES, "perf.force_layout=true", "perf.combo_kernels=true", "perf.cudnn_benchmark=true"),
    "with saved_relu6": MODULES[:1],
    "with gathered_pool": MODULES[1:],
    "with force_layout": ("perf.force_layout=true",),
    "with combo_kernels": ("perf.combo_kernels=true",),
    "with cudnn_benchmark": ("perf.cudnn_benchmark=true",),
}


def main(
    batches: Annotated[list[int] | None, typer.Option("--batch", min=2, help="Batch size; repeatable.")] = None,
    px: Annotated[int, typer.Option("--px", min=0, help="Side of the views; 0: 224 on a GPU, else 64.")] = 0,
    only: Annotated[list[str] | None, typer.Option("--only", help="Only variants whose names contain this.")] = None,
    rounds: RoundsOption = 5,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Time the two students' step with the recipe's settings, and with one setting changed at a time."""
    dev = choose_device(device)
    gpu = dev.type == "cuda"
    px, batches = px or (224 if gpu else 64), batches or ([64, 512] if gpu else [64])
    variants = (OFF_GPU | PERF_OPTIONS_GPU) if gpu else (OFF | PERF_OPTIONS)
    if only:
        variants = {name: overrides for name, overrides in variants.items() if any(part in name for part in only)}
    result = BenchmarkResult.begin("step", EXPECTATION, dev, {"batch": batches, "px": px})
    for batch in batches:
        samples = canvases(4 * batch, min(px * 8 // 7, 256), dev)
        base = make_step(paper_recipe(dev, px=px, batch=batch), samples, dev)
        result.add_fact(f"{SHARE} {px} px, batch {batch}", loss_share(base, dev, rounds))
        for name, overrides in variants.items():  # in pairs, so that only two are in memory at a time
            changed = make_step(paper_recipe(dev, *overrides, px=px, batch=batch), samples, dev)
            pair = [Variant(ALL_ON, base.run, items=batch), Variant(name, changed.run, items=batch)]
            result.add(side_by_side(pair, dev, rounds=rounds), baseline=ALL_ON, px=px, batch=batch, beside=name)
            result.write(results)
    draw(results, f"step-{result.slug}", lambda figure, palette: _plot(result, figure, palette), height=1 + 0.3 * len(variants))


def loss_share(base: TimedStep, device: torch.device, rounds: int) -> dict[str, float]:
    """Time of each loss alone, forward and backward, as a fraction of the step's: an upper bound on the gain of a faster loss.

    The loss is launched by itself here; as part of a step's CUDA graph it costs a GPU less.
    """
    alone = [Variant(name, forward_backward(loss, base.batch, CLASSES, device)) for name, loss in loss_variants(device).items()]
    timed = side_by_side([Variant("step", base.run), *alone], device, rounds=rounds)
    return {loss.name: statistics.median(loss.ratios(timed[0])) for loss in timed[1:]}


def _plot(result: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    batches = result.settings["batch"]
    for index, batch in enumerate(batches):
        axes = figure.add_subplot(1, len(batches), index + 1)
        rows = [row for row in result.rows if row["batch"] == batch and row["variant"] != ALL_ON]
        ratios = [row["ratio"]["median"] for row in rows]
        names, spans = [row["variant"] for row in rows], [ratio_span(row) for row in rows]
        bars(axes, palette, names, list(ratios), unit="times the step with all on", spans=spans)
        axes.axvline(1.0, color=palette.mark, linewidth=0.8)
        axes.set_title(f"{result.settings['px']} px, batch {batch}")
