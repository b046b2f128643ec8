"""Two students with a cached teacher against one with a live teacher, beside the paper's 1.63 and a roofline bound."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure

from benchmarks.common.figures import Palette, bars, draw
from benchmarks.common.harness import CLASSES, MOBILENET, RESNET, TEACHER, canvases, frozen_teacher, make_step, paper_recipe
from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.roofline import Peaks, network_cost
from benchmarks.common.timing import Timed, Variant, side_by_side
from udkd.utils.environment import choose_device
from udkd.utils.terminal import DeviceOption

EXPECTATION = """The paper pays 1.63 for two students with a live teacher against one. A cached teacher saves a ResNet-50's
forward pass, 4.1 GFLOP an image against 5.3 for training a ResNet-18; the MobileNetV2 adds 0.9 GFLOP but 80 MB of traffic.
On a CPU the saved arithmetic outweighs the added student: cached dual / live single at most 1.05, 0.95 to 1.0 at 64 px with
the paper's batch of 64 and about 0.95 at 224 px with 16. A batch of 8 at 64 px is 1.1: the weights' traffic and the calls, of
which the MobileNetV2 has most, are paid for each step and not for each image. A folded teacher adds 0.01 to 0.03.
On an H200 both students are bound by memory: about 1.3 (stock compiler), 1.06 where every layer ran at its bound. Live dual
/ live single 1.6, as the paper. Cached dual / cached single 1.8 on a GPU. Above 27,000 images/s on an H200 the clock is
wrong."""

DUAL, SINGLE = "two students, cached teacher", "ResNet-18, live teacher"
LIVE_DUAL, FOLDED = "two students, live teacher", "ResNet-18, live folded teacher"
RESNET_ONLY, MOBILENET_ONLY = "ResNet-18, cached teacher", "MobileNetV2, cached teacher"
PAPER = {"dual / single": 1.63, "dual hours": 12.36, "ResNet-18 hours": 7.58, "MobileNetV2 hours": 7.50}
EPOCHS, IMAGES = 50, 130_000
CPU_BATCH = {64: 64}  # px -> batch: the paper's where that takes only minutes; 16 at other sizes
_LIVE, _ALONE = ('teacher.source="live"', "teacher.views=1"), ("loss.gamma=0", "loss.alpha=0.3", "loss.beta=0.7")


def main(
    batches: Annotated[list[int] | None, typer.Option("--batch", min=2, help="Batch size; repeatable.")] = None,
    sizes: Annotated[list[int] | None, typer.Option("--px", min=32, help="Side of the views; repeatable.")] = None,
    rounds: RoundsOption = 7,
    headline_only: Annotated[bool, typer.Option("--only-ratio", help="Only cached dual and live single.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For all variants' recipes.")] = None,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Train two students and one student, with a cached and a live teacher, on the same code and images, side by side."""
    dev = choose_device(device)
    gpu = dev.type == "cuda"
    sizes = sizes or ([224] if gpu else [64, 224])
    points = [(px, batch) for px in sizes for batch in batches or ([512, 64] if gpu else [CPU_BATCH.get(px, 16)])]
    run_settings = {
        "batch": [batch for _, batch in points],
        "px": sizes,
        "classes": CLASSES,
        "teacher": TEACHER,
        "settings": settings or [],
    }
    result = BenchmarkResult.begin("cost", EXPECTATION, dev, run_settings)
    peaks = Peaks.measured(dev, torch.bfloat16 if gpu else torch.float32)
    result.add_fact("peaks", {"flops": peaks.flops, "bytes_per_s": peaks.bytes_per_s})
    for px in sizes:
        result.add_fact(f"floor at {px} px", roofline_floor(px, peaks, 2 if gpu else 4))
    for px, batch in points:
        num_rows = len(result.rows)
        teacher_per_s = None
        # On a GPU the headline ratio comes first: compiling the other variants takes minutes, and the time may run out.
        for headline in (True, False) if gpu and not headline_only else (headline_only,):
            timed = measure(px, batch, dev, rounds, headline, settings or [])
            del result.rows[num_rows:]
            result.add(timed, baseline=SINGLE, px=px, batch=batch)
            result.add_fact(f"ratios at {px} px, batch {batch}", ratios(timed))
            result.write(results)
            if not headline_only:
                teacher_per_s = teacher_per_s or cache_speed(px, max(batch, 256 if gpu else batch), dev, rounds)
                result.add_fact(f"hours at {px} px, batch {batch}", hours(timed, teacher_per_s))
                result.write(results)
    draw(results, f"cost-{result.slug}", lambda figure, palette: _plot(result, figure, palette), height=2.2 * len(sizes) + 1)


def measure(px: int, batch: int, device: torch.device, rounds: int, headline_only: bool, settings: list[str]) -> list[Timed]:
    """Time all variants on the same canvases, each variant with its own networks."""
    samples = canvases(max(4 * batch, 64), min(px * 8 // 7, 256), device)
    alone = {name: (f'students=[{{architecture="{name}"}}]', *_ALONE) for name in (RESNET, MOBILENET)}
    variants: dict[str, tuple[str, ...]] = {SINGLE: (*alone[RESNET], *_LIVE), DUAL: ()}
    if not headline_only:
        variants |= {FOLDED: (*alone[RESNET], *_LIVE, "teacher.fold_bn=true"), LIVE_DUAL: _LIVE}
        variants |= {RESNET_ONLY: alone[RESNET], MOBILENET_ONLY: alone[MOBILENET]}
    steps = {
        name: make_step(paper_recipe(device, *overrides, *settings, px=px, batch=batch), samples, device)
        for name, overrides in variants.items()
    }
    return side_by_side([Variant(name, step.run, items=batch) for name, step in steps.items()], device, rounds=rounds)


def ratios(timed: list[Timed]) -> dict[str, float]:
    """The cost ratios: medians over the rounds of the ratios within each round."""
    each_round = round_ratios({variant.name: variant.seconds for variant in timed})
    return {name: statistics.median(values) for name, values in each_round.items()}


def round_ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Each cost ratio, round by round. seconds: variant -> seconds per step of each round."""

    def ratio(name: str, *others: str) -> list[float]:
        totals = [sum(each) for each in zip(*(seconds[other] for other in others), strict=True)]
        return [a / b for a, b in zip(seconds[name], totals, strict=True)]

    ratios_by_name = {"cached dual / live single": ratio(DUAL, SINGLE)}
    if FOLDED in seconds:
        ratios_by_name["cached dual / live single with a folded teacher"] = ratio(DUAL, FOLDED)
        ratios_by_name["live dual / live single"] = ratio(LIVE_DUAL, SINGLE)
        ratios_by_name["cached dual / cached single"] = ratio(DUAL, RESNET_ONLY)
        ratios_by_name["cached dual / sum of the cached singles"] = ratio(DUAL, RESNET_ONLY, MOBILENET_ONLY)
    return ratios_by_name


def cache_speed(px: int, batch: int, device: torch.device, rounds: int) -> float:
    """Images/s of a teacher with folded batch norm, compiled on a GPU: the speed of building a cache."""
    recipe = paper_recipe(device, "teacher.fold_bn=true", px=px, batch=batch)
    teacher = frozen_teacher(recipe, device)
    x_BCHW = torch.rand(batch, 3, px, px, device=device).to(memory_format=torch.channels_last)
    (timed,) = side_by_side([Variant("teacher", lambda: teacher.targets(x_BCHW), items=batch)], device, rounds=rounds)
    return timed.items_per_s


def hours(timed: list[Timed], teacher_per_s: float) -> dict[str, float]:
    """Hours of the paper's training at these speeds: 50 epochs of 130,000 images, plus one teacher pass to build the cache."""
    cache_s = IMAGES / teacher_per_s
    hours_by_name = {variant.name: EPOCHS * IMAGES / variant.items_per_s / 3600 for variant in timed}
    hours_by_name |= {name: value + cache_s / 3600 for name, value in hours_by_name.items() if "cached" in name}
    return hours_by_name | {"of which the cache": cache_s / 3600}


def roofline_floor(px: int, peaks: Peaks, item_bytes: int) -> dict[str, float]:
    """The cost ratio and images/s if every layer ran at its roofline bound."""
    resnet, mobilenet = (
        network_cost(name, px, CLASSES, peaks, training=True, item_bytes=item_bytes) for name in (RESNET, MOBILENET)
    )
    teacher = network_cost(TEACHER, px, CLASSES, peaks, training=False, item_bytes=item_bytes)
    dual, single = resnet.seconds + mobilenet.seconds, resnet.seconds + teacher.seconds
    return {
        "cached dual / live single": dual / single,
        "two students, images/s": 1 / dual,
        "ResNet-18 µs": 1e6 * resnet.seconds,
        "MobileNetV2 µs": 1e6 * mobilenet.seconds,
        "teacher µs": 1e6 * teacher.seconds,
    }


def _plot(result: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    sizes = result.settings["px"]
    for index, px in enumerate(sizes):
        axes = figure.add_subplot(len(sizes), 1, index + 1)
        batch = next(row["batch"] for row in result.rows if row["px"] == px)
        ratios_by_name: dict[str, Any] = result.facts[f"ratios at {px} px, batch {batch}"]
        values = {"the paper: live dual / live single": PAPER["dual / single"]} | ratios_by_name
        values["floor: cached dual / live single"] = result.facts[f"floor at {px} px"]["cached dual / live single"]
        seconds = {row["variant"]: row["seconds"]["each"] for row in result.rows if (row["px"], row["batch"]) == (px, batch)}
        rounds = round_ratios(seconds)
        spans = [(min(rounds[name]), max(rounds[name])) if name in rounds else None for name in values]
        bars(axes, palette, list(values), list(values.values()), unit="times the step of the right-hand side", spans=spans)
        axes.axvline(1.0, color=palette.mark, linewidth=0.8)
        axes.set_title(f"Cost at {px} px, batch {batch}")
