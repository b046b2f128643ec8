"""Canvases a second: every backend, against FFCV's and DALI's own loops and a torchvision DataLoader."""

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
from benchmarks.common.timing import Timed, Variant, side_by_side, spread
from data_prep.convert import ConvertSettings, convert
from data_prep.synth import synth
from udkd.data.backends.registry import open_backend
from udkd.data.dataset import Split
from udkd.utils.environment import choose_device
from udkd.utils.errors import ConfigError
from udkd.utils.progress import SILENT
from udkd.utils.terminal import DeviceOption

EXPECTATION = """Decoding bounds all but resident: a 468 x 401 JPEG costs 1 to 4 ms of a core, a 64 px one 0.02 to 0.1 ms. Our
ffcv and dali add a checksum (4 us at 110 KB) and a queue, so they take at most 1.05 times the seconds of FFCV's Loader and of a
DALI pipeline that reads the same bytes; dali 0.65 of it at full size, where DALI's padding takes as long as its decode. A
DataLoader decodes no slower but pads, collates and ships each canvas between processes (0.8 MB at 512 px), so all of ours are
faster, folder by a little and resident by an order of magnitude."""

BACKENDS = ("resident", "ffcv", "dali", "folder")
USUAL = "torchvision DataLoader"
IN_MEMORY = "DALI's pipeline, JPEGs in memory"
UNPADDED = "DALI's decode, no canvas"
RAW = {"FFCV's Loader": "ffcv", "DALI's pipeline": "dali", IN_MEMORY: "dali"}
"""Loops without our layer, and which of ours does the same."""
Run = Callable[[int], int]


def main(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[SOURCE…]", help="Image folders or tar files, each timed by itself; none: drawn images."),
    ] = None,
    sides: Annotated[
        list[int] | None, typer.Option("--side", min=1, help="S of each source, in their order; 512 where none is given.")
    ] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="Images a call at 512 px; smaller ones in proportion.")] = 300,
    threads: Annotated[list[int] | None, typer.Option("--threads", min=1, help="Thread counts; may be given again.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch size.")] = 64,
    rounds: RoundsOption = 5,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Time how fast canvases are delivered, in random order, each sample as often as it takes."""
    where = choose_device(device)
    counts = threads or [1, 2]
    settings = {"batch": batch, "images_at_512_px": images, "threads": counts, "sources": [path.name for path in sources or []]}
    record = BenchmarkResult.begin("loader", EXPECTATION, where, settings)
    with tempfile.TemporaryDirectory(prefix="udkd-loader-") as temporary:
        for number, source in enumerate(sources or [_drawn(Path(temporary) / "drawn")]):
            side = (sides or [])[number] if number < len(sides or []) else 512
            split = _prepared(source, Path(temporary) / f"data-{number}", side, record)
            tree = _tree(split, Path(temporary) / f"tree-{number}")
            label = source.name.split(".")[0]
            count = min(20 * images, round(images * (512 / side) ** 2))
            _note_pixels(record, split, where, label)
            for workers in counts:
                with contextlib.ExitStack() as stack:
                    variants = _variants(split, tree, batch, workers, where, count, record, stack)
                    timed = side_by_side(variants, where, rounds=rounds, warmup=1, min_span_s=0)
                record.add(timed, baseline=USUAL, source=label, side=side, threads=workers)
                _note_overhead(record, variants, timed, f"{label}, {workers} threads")
            record.write(results)  # a later source that cannot be used must not cost what was measured
    draw(results, f"loader-{record.slug}", lambda figure, palette: _picture(record, figure, palette), height=4.2)


def _drawn(folder: Path) -> Path:
    synth(folder, classes=10, images=300, val_images=20, seed=0, workers=1, observer=SILENT)
    return folder


def _prepared(source: Path, folder: Path, side: int, record: BenchmarkResult) -> Split:
    """Convert a source into all formats that can be written here."""
    formats: tuple[str, ...] = ("resident", "ffcv")
    settings = ConvertSettings(side=side, hold_out_percent=2, on_bad="skip", formats=formats)
    try:
        split = convert([source], folder, settings, SILENT).split("train")
    except ConfigError as error:
        record.put("left out", f"ffcv: {error}")
        settings = ConvertSettings(side=side, hold_out_percent=2, on_bad="skip", formats=("resident",))
        split = convert([source], folder, settings, SILENT).split("train")
    sizes = split.sizes[split.ids]
    mean = f"{sizes[:, 3].mean():.0f} x {sizes[:, 2].mean():.0f} px, {split.size[split.ids].mean() / 1e3:.1f} KB"
    record.put(f"images of {source.name.split('.')[0]}", f"{len(split.ids):,}, on average {mean}, canvas {side} px")
    return split


def _tree(split: Split, folder: Path) -> Path:
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
    record: BenchmarkResult,
    stack: contextlib.ExitStack,
) -> list[Variant]:
    """All ways that can be timed here. What is not installed is left out, and the record says so."""
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(split.ids) for _ in range(-(-count // len(split.ids)))])[:count]
    runs: dict[str, Run] = {}
    for name in BACKENDS:
        try:
            backend = open_backend(name, split, device, workers=workers)
        except ConfigError as error:
            record.put("left out", f"{name}: {error}")
            continue
        stack.callback(backend.close)
        runs[name] = lambda count, backend=backend: sum(len(part.ids) for part in backend.epoch(order, batch))  # type: ignore[misc]
    runs |= dict(_others(split, tree, batch, workers, device, order, tuple(runs)))
    return [Variant(name, _Counted(run, count), items=run(count)) for name, run in runs.items()]


def _note_pixels(record: BenchmarkResult, split: Split, device: torch.device, source: str) -> None:
    """How far DALI's pixels are from the reference decode: nowhere on a CPU; on a GPU nvJPEG's own, whose bound this states."""
    try:
        backend = open_backend("dali", split, device)
    except ConfigError:
        return  # _variants says so
    some = split.ids[:: -(-len(split.ids) // 256)]
    greatest = total = differing = values = 0
    with contextlib.closing(backend):
        for part in backend.epoch(some, 32):
            for sample_id, canvas in zip(part.ids.tolist(), part.canvas.cpu().numpy(), strict=True):
                _, _, height, width = split.sizes[sample_id].tolist()
                apart = np.abs(canvas[:height, :width].astype(int) - split.pixels(sample_id)[:height, :width])
                greatest, total = max(greatest, int(apart.max())), total + int(apart.sum())
                differing, values = differing + int(np.count_nonzero(apart)), values + apart.size
    found = {"greatest": greatest, "mean": total / values, "share that differs": differing / values, "images": len(some)}
    record.put(f"dali's pixels against Pillow's, {source}", found)


class _Counted:
    """A call of `run` that also remembers what it took of the processor, all threads of this process together."""

    def __init__(self, run: Run, count: int) -> None:
        self._run, self._count = run, count
        self.cpu_s: list[float] = []

    def __call__(self) -> None:
        before = time.process_time()
        self._run(self._count)
        self.cpu_s.append(time.process_time() - before)


def _others(
    split: Split, tree: Path, batch: int, workers: int, device: torch.device, order: np.ndarray, known: tuple[str, ...]
) -> Iterator[tuple[str, Run]]:
    if "ffcv" in known and device.type == "cpu":
        from benchmarks.loaders import raw_ffcv

        yield "FFCV's Loader", raw_ffcv.epochs(split, order, batch, workers)
    if "dali" in known:
        from benchmarks.loaders import raw_dali

        yield "DALI's pipeline", raw_dali.epochs(split, order, batch, workers, device)
        yield IN_MEMORY, raw_dali.epochs(split, order, batch, workers, device, in_memory=True)
        yield UNPADDED, raw_dali.epochs(split, order, batch, workers, device, in_memory=True, padded=False)
    from benchmarks.loaders import torchvision_loader

    yield USUAL, torchvision_loader.epochs(split, tree, batch, workers, device)


def _note_overhead(record: BenchmarkResult, variants: list[Variant], timed: list[Timed], where: str) -> None:
    """What our layer costs: seconds an image of ours over those of the raw loop, by the clock and of the processor.

    The second is what to look at where others keep the machine busy.
    """
    named = {one.name: one for one in timed}
    cpu = {one.name: statistics.median(one.run.cpu_s) / one.items for one in variants if isinstance(one.run, _Counted)}
    for raw, ours in RAW.items():
        if ours in named and raw in named:
            ratio = spread(named[ours].ratios(named[raw]))
            found = {key: round(ratio[key], 3) for key in ("median", "min", "max")}
            record.put(f"{ours} / {raw}; {where}", found | {"processor": round(cpu[ours] / cpu[raw], 3)})
    cpu.pop(USUAL, None)  # its workers are other processes
    record.put(f"processor, ms an image, {where}", {name: round(1e3 * seconds, 3) for name, seconds in cpu.items()})


def _picture(record: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    """One panel for each source, at the largest number of threads."""
    most = max(row["threads"] for row in record.rows)
    sources = list(dict.fromkeys(row["source"] for row in record.rows))
    for place, source in enumerate(sources):
        axes = figure.add_subplot(len(sources), 1, place + 1)
        rows = [row for row in record.rows if row["source"] == source and row["threads"] == most]
        names = [row["variant"] for row in rows]
        speeds, spans = [row["items_per_s"] for row in rows], [speed_span(row) for row in rows]
        bars(axes, palette, names, speeds, unit="canvases a second", form="{:,.0f}", spans=spans)
        axes.set_title(f"{source}, canvas {rows[0]['side']} px, {most} threads")
