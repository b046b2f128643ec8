"""What two students cost: cached dual against live single and the paper's 1.63, with the roofline's floor."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure

from benchmarks.common.figures import Palette, bars, draw
from benchmarks.common.harness import CLASSES, MOBILENET, RESNET, TEACHER, canvases, frozen, make, paper_recipe
from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.roofline import Peaks, cost
from benchmarks.common.timing import Timed, Variant, side_by_side
from udkd.utils.environment import choose_device
from udkd.utils.terminal import DeviceOption

EXPECTATION = """The paper pays 1.63 for two students with a live teacher against one. A cached teacher saves a ResNet-50's
answer, 4.1 GFLOP an image against the 5.3 of training a ResNet-18, and the MobileNetV2 adds 0.9 GFLOP but 80 MB of traffic.
On a CPU the saved arithmetic outweighs the added student: cached dual / live single at most 1.05, 0.95 to 1.0 at 64 px with
the paper's batch of 64 and about 0.95 at 224 px with 16. A batch of 8 at 64 px is 1.1: the weights' traffic and the calls, of
which the MobileNetV2 has most, are paid for each step and not for each image. A folded teacher adds 0.01 to 0.03.
On an H200 both students are bound by memory: about 1.3 (stock compiler), 1.06 where every layer ran at its bound. Live dual
/ live single 1.6, as the paper. Cached dual / cached single 1.8 on a GPU. Above 27,000 images/s on an H200 the clock is
wrong."""

DUAL, SINGLE = "two students, cached teacher", "ResNet-18, live teacher"
LIVE_DUAL, FOLDED = "two students, live teacher", "ResNet-18, live folded teacher"
ONE, OTHER = "ResNet-18, cached teacher", "MobileNetV2, cached teacher"
PAPER = {"dual / single": 1.63, "dual hours": 12.36, "ResNet-18 hours": 7.58, "MobileNetV2 hours": 7.50}
EPOCHS, IMAGES = 50, 130_000
CPU_BATCH = {64: 64}  # the paper's, where it ends in minutes; 16 elsewhere
_LIVE, _ALONE = ('teacher.source="live"', "teacher.views=1"), ("loss.gamma=0", "loss.alpha=0.3", "loss.beta=0.7")


def main(
    batches: Annotated[list[int] | None, typer.Option("--batch", min=2, help="Batch sizes; may be given again.")] = None,
    sizes: Annotated[list[int] | None, typer.Option("--px", min=32, help="Sides of the views; may be given again.")] = None,
    rounds: RoundsOption = 7,
    only: Annotated[bool, typer.Option("--only-ratio", help="Cached dual and live single alone.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For all variants' recipes.")] = None,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Train two students and one, with the teacher cached and live, the same engine and images, side by side."""
    where = choose_device(device)
    gpu = where.type == "cuda"
    sizes = sizes or ([224] if gpu else [64, 224])
    points = [(px, batch) for px in sizes for batch in batches or ([512, 64] if gpu else [CPU_BATCH.get(px, 16)])]
    asked = {
        "batch": [batch for _, batch in points],
        "px": sizes,
        "classes": CLASSES,
        "teacher": TEACHER,
        "settings": settings or [],
    }
    record = BenchmarkResult.begin("cost", EXPECTATION, where, asked)
    peaks = Peaks.measured(where, torch.bfloat16 if gpu else torch.float32)
    record.put("peaks", {"flops": peaks.flops, "bytes_per_s": peaks.bytes_per_s})
    for px in sizes:
        record.put(f"floor at {px} px", floor(px, peaks, 2 if gpu else 4))
    for px, batch in points:
        kept = len(record.rows)
        teacher = None
        for headline in (True, False) if gpu and not only else (only,):  # first, where compiling takes minutes of a lent GPU
            timed = measure(px, batch, where, rounds, headline, settings or [])
            del record.rows[kept:]
            record.add(timed, baseline=SINGLE, px=px, batch=batch)
            record.put(f"ratios at {px} px, batch {batch}", ratios(timed))
            record.write(results)
            if not only:
                teacher = teacher or cache_speed(px, max(batch, 256 if gpu else batch), where, rounds)
                record.put(f"hours at {px} px, batch {batch}", hours(timed, teacher))
                record.write(results)
    draw(results, f"cost-{record.slug}", lambda figure, palette: _picture(record, figure, palette), height=2.2 * len(sizes) + 1)


def measure(px: int, batch: int, device: torch.device, rounds: int, only: bool, settings: list[str]) -> list[Timed]:
    """All variants on the same canvases; each has its own networks."""
    rows = canvases(max(4 * batch, 64), min(px * 8 // 7, 256), device)
    alone = {name: (f'students=[{{architecture="{name}"}}]', *_ALONE) for name in (RESNET, MOBILENET)}
    kinds: dict[str, tuple[str, ...]] = {SINGLE: (*alone[RESNET], *_LIVE), DUAL: ()}
    if not only:
        kinds |= {FOLDED: (*alone[RESNET], *_LIVE, "teacher.fold_bn=true"), LIVE_DUAL: _LIVE}
        kinds |= {ONE: alone[RESNET], OTHER: alone[MOBILENET]}
    made = {
        name: make(paper_recipe(device, *words, *settings, px=px, batch=batch), rows, device) for name, words in kinds.items()
    }
    return side_by_side([Variant(name, one.run, items=batch) for name, one in made.items()], device, rounds=rounds)


def ratios(timed: list[Timed]) -> dict[str, float]:
    """DESIGN.md section 7, medians of the ratios within each round."""
    return {name: statistics.median(each) for name, each in round_ratios({one.name: one.seconds for one in timed}).items()}


def round_ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The ratios of each round. seconds: of each variant, round by round."""

    def over(name: str, *others: str) -> list[float]:
        below = [sum(each) for each in zip(*(seconds[other] for other in others), strict=True)]
        return [a / b for a, b in zip(seconds[name], below, strict=True)]

    found = {"cached dual / live single": over(DUAL, SINGLE)}
    if FOLDED in seconds:
        found["cached dual / live single with a folded teacher"] = over(DUAL, FOLDED)
        found["live dual / live single"] = over(LIVE_DUAL, SINGLE)
        found["cached dual / cached single"] = over(DUAL, ONE)
        found["cached dual / sum of the cached singles"] = over(DUAL, ONE, OTHER)
    return found


def cache_speed(px: int, batch: int, device: torch.device, rounds: int) -> float:
    """Images/s of a teacher with folded batch norm, compiled on a GPU: what building a cache costs."""
    recipe = paper_recipe(device, "teacher.fold_bn=true", px=px, batch=batch)
    teacher = frozen(recipe, device)
    x_BCHW = torch.rand(batch, 3, px, px, device=device).to(memory_format=torch.channels_last)
    (timed,) = side_by_side([Variant("teacher", lambda: teacher.targets(x_BCHW), items=batch)], device, rounds=rounds)
    return timed.items_per_s


def hours(timed: list[Timed], teacher_per_s: float) -> dict[str, float]:
    """Hours of the paper's job by these speeds: 50 epochs of 130,000 images, and one pass of the teacher for the cache."""
    cache_s = IMAGES / teacher_per_s
    found = {one.name: EPOCHS * IMAGES / one.items_per_s / 3600 for one in timed}
    found |= {name: value + cache_s / 3600 for name, value in found.items() if "cached" in name}
    return found | {"of which the cache": cache_s / 3600}


def floor(px: int, peaks: Peaks, item_bytes: int) -> dict[str, float]:
    """Images/s where every layer ran at its bound, and the ratio that would follow."""
    resnet, mobilenet = (cost(name, px, CLASSES, peaks, training=True, item_bytes=item_bytes) for name in (RESNET, MOBILENET))
    teacher = cost(TEACHER, px, CLASSES, peaks, training=False, item_bytes=item_bytes)
    dual, single = resnet.seconds + mobilenet.seconds, resnet.seconds + teacher.seconds
    return {
        "cached dual / live single": dual / single,
        "two students, images/s": 1 / dual,
        "ResNet-18 µs": 1e6 * resnet.seconds,
        "MobileNetV2 µs": 1e6 * mobilenet.seconds,
        "teacher µs": 1e6 * teacher.seconds,
    }


def _picture(record: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    sizes = record.settings["px"]
    for place, px in enumerate(sizes):
        axes = figure.add_subplot(len(sizes), 1, place + 1)
        batch = next(row["batch"] for row in record.rows if row["px"] == px)
        found: dict[str, Any] = record.facts[f"ratios at {px} px, batch {batch}"]
        named = {"the paper: live dual / live single": PAPER["dual / single"]} | found
        named["floor: cached dual / live single"] = record.facts[f"floor at {px} px"]["cached dual / live single"]
        seconds = {row["variant"]: row["seconds"]["each"] for row in record.rows if (row["px"], row["batch"]) == (px, batch)}
        rounds = round_ratios(seconds)
        spans = [(min(rounds[name]), max(rounds[name])) if name in rounds else None for name in named]
        bars(axes, palette, list(named), list(named.values()), unit="times the step of the right-hand side", spans=spans)
        axes.axvline(1.0, color=palette.mark, linewidth=0.8)
        axes.set_title(f"Cost at {px} px, batch {batch}")
