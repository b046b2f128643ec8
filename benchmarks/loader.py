"""Canvases per second of every backend, against FFCV's and DALI's loops and a torchvision DataLoader."""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib.figure import Figure

from benchmarks.common.figures import Palette, bars, draw, speed_span
from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.timing import Timed, Variant, median_and_range, side_by_side
from udkd.data.backends.registry import open_backend
from udkd.data.dataset import Split
from udkd.data_prep.convert import ConvertSettings, convert
from udkd.data_prep.sources import open_sources
from udkd.data_prep.synth import synth
from udkd.utils.environment import choose_device
from udkd.utils.errors import ConfigError
from udkd.utils.progress import SILENT
from udkd.utils.terminal import DeviceOption

EXPECTATION = """Decoding bounds all but resident: a 468 x 401 JPEG costs 1 to 4 ms of a core, a 64 px one 0.02 to 0.1 ms. Our
ffcv and dali add a checksum (4 us at 110 KB) and a queue. ffcv also copies images that are narrower than the canvas (0.1 ms at
512 px) and spends 4 us an image in the interpreter, so it takes at most 1.1 times the seconds of FFCV's Loader with one thread,
and more at 64 px with two, which wait for each other's interpreter lock. dali takes at most 1.05 times the seconds of a DALI
pipeline that reads the same bytes; 0.65 of it at full size, where DALI's padding takes as long as its decode. A
DataLoader decodes no slower but pads, collates and ships each canvas between processes (0.8 MB at 512 px), so all of ours are
faster, folder by a little and resident by an order of magnitude."""

BACKENDS = ("resident", "ffcv", "dali", "folder")
DATALOADER = "torchvision DataLoader"
IN_MEMORY = "DALI's pipeline, JPEGs in memory"
UNPADDED = "DALI's decode, no canvas"
RAW_LOOPS = {"FFCV's Loader": "ffcv", "DALI's pipeline": "dali", IN_MEMORY: "dali"}
"""Loop without our layer -> our backend that does the same work."""
Run = Callable[[int], int]
"""Delivers at least that many canvases; returns how many."""


def main(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[SOURCE…]", help="Image folders or tar files, each timed separately; none: synthetic images."),
    ] = None,
    sides: Annotated[
        list[int] | None, typer.Option("--side", min=1, help="Canvas side of each source, in the same order; 512 if not given.")
    ] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="Images per call at 512 px; more at smaller sides.")] = 300,
    threads: Annotated[list[int] | None, typer.Option("--threads", min=1, help="Thread count; repeatable.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch size.")] = 64,
    rounds: RoundsOption = 5,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Time the delivery of canvases in random order, repeating samples as needed."""
    dev = choose_device(device)
    counts = threads or [1, 2]
    settings = {"batch": batch, "images_at_512_px": images, "threads": counts, "sources": [path.name for path in sources or []]}
    result = BenchmarkResult.begin("loader", EXPECTATION, dev, settings)
    with tempfile.TemporaryDirectory(prefix="udkd-loader-") as temporary:
        for number, source in enumerate(sources or [_synthetic_source(Path(temporary) / "synthetic")]):
            side = (sides or [])[number] if number < len(sides or []) else 512
            split = _convert(source, Path(temporary) / f"data-{number}", side, result)
            tree = _image_tree(split, Path(temporary) / f"tree-{number}")
            label = source.name.split(".")[0]
            count = min(20 * images, round(images * (512 / side) ** 2))
            _note_pixels(result, split, dev, label)
            for workers in counts:
                with contextlib.ExitStack() as stack:
                    variants = _variants(split, tree, batch, workers, dev, count, result, stack)
                    timed = side_by_side(variants, dev, rounds=rounds, warmup=1, min_span_s=0)
                result.add(timed, baseline=DATALOADER, source=label, side=side, threads=workers)
                _note_overhead(result, variants, timed, f"{label}, {workers} threads")
            result.write(results)  # a later source that fails must not lose these rows
    draw(results, f"loader-{result.slug}", lambda figure, palette: _plot(result, figure, palette), height=4.2)


def _synthetic_source(folder: Path) -> Path:
    synth(folder, classes=10, images=300, val_images=20, seed=0, workers=1, observer=SILENT)
    return folder


def _convert(source: Path, folder: Path, side: int, result: BenchmarkResult) -> Split:
    """Convert a source into the formats that are read here; 2 % validate if it has no val split."""
    hold_out_percent = None if "val" in open_sources([source])[0].list().entries.splits.values else 2
    settings = ConvertSettings(side=side, hold_out_percent=hold_out_percent, on_bad="skip", formats=("resident", "ffcv"))
    split = convert([source], folder, settings, SILENT).split("train")
    sizes = split.sizes[split.ids]
    mean = f"{sizes[:, 3].mean():.0f} x {sizes[:, 2].mean():.0f} px, {split.size[split.ids].mean() / 1e3:.1f} KB"
    result.add_fact(f"images of {source.name.split('.')[0]}", f"{len(split.ids):,}, on average {mean}, canvas {side} px")
    return split


def _image_tree(split: Split, folder: Path) -> Path:
    from benchmarks.loaders import torchvision_loader

    torchvision_loader.write_tree(split, folder)
    assert torchvision_loader.same_pixels(split, folder), "the DataLoader's canvases differ from ours"
    return folder


def _variants(
    split: Split,
    tree: Path,
    batch: int,
    workers: int,
    device: torch.device,
    count: int,
    result: BenchmarkResult,
    stack: contextlib.ExitStack,
) -> list[Variant]:
    """All variants that can run on this machine; the result names the others."""
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(split.ids) for _ in range(-(-count // len(split.ids)))])[:count]
    runs: dict[str, Run] = {}
    for name in BACKENDS:
        try:
            backend = open_backend(name, split, device, workers=workers)
        except ConfigError as error:
            result.add_fact("skipped", f"{name}: {error}")
            continue
        stack.callback(backend.close)
        runs[name] = lambda count, backend=backend: sum(len(part.ids) for part in backend.epoch(order, batch))  # type: ignore[misc]
    runs |= dict(_reference_loops(split, tree, batch, workers, device, order, tuple(runs), result))
    return [Variant(name, _CpuTimed(run, count), items=run(count)) for name, run in runs.items()]


def _note_pixels(result: BenchmarkResult, split: Split, device: torch.device, source: str) -> None:
    """Measure how far DALI's pixels differ from the reference decode: not at all on a CPU; a GPU uses nvJPEG."""
    try:
        backend = open_backend("dali", split, device)
    except ConfigError:
        return  # _variants records the error
    ids = split.ids[:: -(-len(split.ids) // 256)]
    greatest = total = differing = values = 0
    with contextlib.closing(backend):
        for part in backend.epoch(ids, 32):
            for sample_id, canvas in zip(part.ids.tolist(), part.canvas.cpu().numpy(), strict=True):
                _, _, height, width = split.sizes[sample_id].tolist()
                difference = np.abs(canvas[:height, :width].astype(int) - split.pixels(sample_id)[:height, :width])
                greatest, total = max(greatest, int(difference.max())), total + int(difference.sum())
                differing, values = differing + int(np.count_nonzero(difference)), values + difference.size
    facts = {"greatest": greatest, "mean": total / values, "share that differs": differing / values, "images": len(ids)}
    result.add_fact(f"dali's pixels against Pillow's, {source}", facts)


class _CpuTimed:
    """A call of `run` that also records its CPU seconds, over all threads of this process."""

    def __init__(self, run: Run, count: int) -> None:
        self._run, self._count = run, count
        self.cpu_s: list[float] = []

    def __call__(self) -> None:
        before = time.process_time()
        self._run(self._count)
        self.cpu_s.append(time.process_time() - before)


def _reference_loops(
    split: Split,
    tree: Path,
    batch: int,
    workers: int,
    device: torch.device,
    order: np.ndarray,
    available: tuple[str, ...],
    result: BenchmarkResult,
) -> Iterator[tuple[str, Run]]:
    if device.type == "cpu":
        torch_threads = torch.get_num_threads()
        try:
            from benchmarks.loaders import raw_ffcv
        except ImportError as error:
            result.add_fact("skipped", f"FFCV's Loader: {error}")
        else:
            torch.set_num_threads(torch_threads)  # FFCV's import sets one
            yield "FFCV's Loader", raw_ffcv.image_loop(split, order, batch, workers)
    if "dali" in available:
        from benchmarks.loaders import raw_dali

        yield "DALI's pipeline", raw_dali.image_loop(split, order, batch, workers, device)
        yield IN_MEMORY, raw_dali.image_loop(split, order, batch, workers, device, in_memory=True)
        yield UNPADDED, raw_dali.image_loop(split, order, batch, workers, device, in_memory=True, padded=False)
    from benchmarks.loaders import torchvision_loader

    yield DATALOADER, torchvision_loader.image_loop(split, tree, batch, workers, device)


def _note_overhead(result: BenchmarkResult, variants: list[Variant], timed: list[Timed], label: str) -> None:
    """Measure our layer's overhead: our seconds per image over the raw loop's, in wall-clock and in CPU time.

    On a busy machine only the CPU time is meaningful.
    """
    by_name = {variant.name: variant for variant in timed}
    cpu = {v.name: statistics.median(v.run.cpu_s) / v.items for v in variants if isinstance(v.run, _CpuTimed)}
    for raw, ours in RAW_LOOPS.items():
        if ours in by_name and raw in by_name:
            ratio = median_and_range(by_name[ours].ratios(by_name[raw]))
            wall_clock = {key: round(ratio[key], 3) for key in ("median", "min", "max")}
            result.add_fact(f"{ours} / {raw}; {label}", wall_clock | {"processor": round(cpu[ours] / cpu[raw], 3)})
    cpu.pop(DATALOADER, None)  # its workers are separate processes
    result.add_fact(f"processor, ms an image, {label}", {name: round(1e3 * seconds, 3) for name, seconds in cpu.items()})


def _plot(result: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    """One subplot per source, at the largest number of threads."""
    threads = max(row["threads"] for row in result.rows)
    sources = list(dict.fromkeys(row["source"] for row in result.rows))
    for index, source in enumerate(sources):
        axes = figure.add_subplot(len(sources), 1, index + 1)
        rows = [row for row in result.rows if row["source"] == source and row["threads"] == threads]
        names = [row["variant"] for row in rows]
        speeds, spans = [row["items_per_s"] for row in rows], [speed_span(row) for row in rows]
        bars(axes, palette, names, speeds, unit="canvases/s", value_format="{:,.0f}", spans=spans)
        axes.set_title(f"{source}, canvas {rows[0]['side']} px, {threads} threads")
