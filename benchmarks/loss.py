"""The loss of two students, forward and backward: eager (the reference), compiled, fused."""

import importlib.util
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure

from benchmarks.common.figures import MARKERS, Palette, draw
from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.timing import Variant, side_by_side
from udkd.losses.distill import Loss, constant_weights_3N, distill_with
from udkd.losses.settings import LossSettings
from udkd.utils.compile import compiled
from udkd.utils.environment import choose_device
from udkd.utils.terminal import DeviceOption

EXPECTATION = """On a CPU the compiled loss takes at most two thirds of the eager one's time at batch 256 and 100 classes:
eager makes some 60 passes over [B, C] tensors in the CPU's cache, so calls cost as much as bytes; with 1000 classes and
large batches the exponentials dominate and the gain shrinks. On a GPU eager is bound by about 150 launches, so compiled is
3 to 5 times faster at batch 256 and one fused kernel 8 times; a step takes milliseconds, so neither moves a training run by
much."""

NUM_STUDENTS = 2


def main(
    batches: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Batch size; repeatable.")] = None,
    classes: Annotated[list[int] | None, typer.Option("--classes", min=2, help="Number of classes; repeatable.")] = None,
    rounds: RoundsOption = 7,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Time the loss of two students alone, from logits to their gradients."""
    dev = choose_device(device)
    sizes, widths = batches or [64, 256, 1024, 4096], classes or [100, 1000]
    result = BenchmarkResult.begin("loss", EXPECTATION, dev, {"batch": sizes, "classes": widths, "students": NUM_STUDENTS})
    for num_classes in widths:
        for batch in sizes:
            torch._dynamo.reset()  # each shape is compiled separately, as in a training run
            variants = [
                Variant(name, forward_backward(loss, batch, num_classes, dev), items=batch)
                for name, loss in loss_variants(dev).items()
            ]
            result.add(side_by_side(variants, dev, rounds=rounds), baseline="eager", batch=batch, classes=num_classes)
            result.write(results)
    draw(results, f"loss-{result.slug}", lambda figure, palette: _plot(result, figure, palette))


def loss_variants(device: torch.device) -> dict[str, Loss]:
    """Every implementation of the paper's loss that the device supports."""
    variants: dict[str, Loss] = {"eager": distill_with(LossSettings()), "compiled": compiled(distill_with(LossSettings()))}
    if device.type == "cuda" and importlib.util.find_spec("triton"):
        from udkd.losses.fused import fused_loss

        variants["fused"] = fused_loss(LossSettings())
    return variants


def forward_backward(loss: Loss, batch: int, num_classes: int, device: torch.device) -> Callable[[], None]:
    """One forward and backward pass on constant float32 logits."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator).to(device) * 8 - 4

    logits = [random(batch, num_classes).requires_grad_() for _ in range(NUM_STUDENTS)]
    teacher_BC = random(batch, num_classes).half()
    weight_B = random(batch).sigmoid()
    labels_B = torch.arange(batch, device=device) % num_classes
    weights_3N = constant_weights_3N(LossSettings(), NUM_STUDENTS, weight_B)

    def run() -> None:
        loss(logits, labels_B, teacher_BC, weight_B, weights_3N).total.backward()  # type: ignore[no-untyped-call]
        for z_BC in logits:
            z_BC.grad = None

    return run


def _plot(result: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    widths = result.settings["classes"]
    for column, num_classes in enumerate(widths):
        axes = figure.add_subplot(1, len(widths), column + 1)
        rows = [row for row in result.rows if row["classes"] == num_classes]
        for index, name in enumerate(dict.fromkeys(row["variant"] for row in rows)):
            selected = [row for row in rows if row["variant"] == name]
            axes.plot(
                [row["batch"] for row in selected],
                [1e6 * row["seconds"]["median"] / row["batch"] for row in selected],
                marker=MARKERS[index],
                color=palette.student(index),
                label=name,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(result.settings["batch"], map(str, result.settings["batch"]))
        axes.set_ylim(bottom=0)
        axes.set_title(f"{num_classes} classes")
        axes.set_xlabel("batch")
    figure.axes[0].set_ylabel("µs an image, forward and backward")
    figure.axes[0].legend()
