"""Conversion of full-size images: ours, with and without checking every pixel, and FFCV's DatasetWriter."""

import io
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from PIL import Image

import udkd.data_prep.jpeg
from benchmarks.common.figures import Palette, bars, draw, speed_span
from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.timing import Variant, side_by_side
from udkd.data.dataset import DatasetFolder
from udkd.data_prep.convert import ConvertSettings, convert
from udkd.data_prep.image import PixelSettings, prepare
from udkd.data_prep.sources import open_sources
from udkd.utils.errors import ConfigError
from udkd.utils.operating_system import available_cores
from udkd.utils.progress import SILENT

EXPECTATION = """Whole conversions, same images, same number of processes. Passing bytes through costs us one strict decode an
image (500 x 375 px: 3 ms), which FFCV's jpg mode at the same size avoids when nothing is resized but pays in full with
max_resolution, where it decodes, resizes and encodes as our squash does; so pad is about as fast as FFCV's writer with
max_resolution 512 or faster, although it checks every pixel and syncs every file. Squash to 256 (Lanczos, q95) is within 1.5 of
FFCV's resize (area, q90). Unchecked, pad runs at the speed of reading, hashing and writing: an image alone five times faster, a
whole conversion about twice (start of processes, shards and manifest stay)."""


def main(
    source: Annotated[Path, typer.Argument(help="Tar or folder of full-size images.", show_default=False)],
    images: Annotated[int, typer.Option(min=1, help="Images per conversion; a smaller source is repeated.")] = 1200,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
    rounds: RoundsOption = 5,
    results: ResultsOption = RESULTS,
) -> None:
    """Time complete conversions, including process start and syncing to disk."""
    count = workers or available_cores()
    with tempfile.TemporaryDirectory(prefix="udkd-benchmark-") as temporary:
        root = Path(temporary)
        paths = _image_folder(source, root / "images", images)
        result = BenchmarkResult.begin("convert", EXPECTATION, torch.device("cpu"), {"images": images, "workers": count})
        result.add_fact("source_mb", round(sum(path.stat().st_size for path in paths) / 1e6, 1))
        variants = [
            Variant("ours, pad 512, every pixel checked", _udkd_conversion(root, count), items=images),
            Variant("ours, pad 512, unchecked", _udkd_conversion(root, count, kind=_Unchecked), items=images),
            Variant(
                "ours, pad 512, all formats", _udkd_conversion(root, count, formats=("resident", "ffcv", "dali")), items=images
            ),
            Variant("ours, squash 256", _udkd_conversion(root, count, side=256, fit="squash"), items=images),
            Variant("ffcv, jpg as it is", _ffcv_conversion(root, paths, count), items=images),
            Variant("ffcv, jpg, at most 512 px, q90", _ffcv_conversion(root, paths, count, max_resolution=512), items=images),
            Variant("ffcv, jpg, at most 256 px, q90", _ffcv_conversion(root, paths, count, max_resolution=256), items=images),
        ]
        timed = side_by_side(variants, result.device, rounds=rounds, warmup=1)
        result.add(timed, baseline="ffcv, jpg, at most 512 px, q90", what="whole conversion")
        result.add(_one_image_at_a_time(paths[:200], rounds), baseline="strict", what="one process, without files")
    result.write(results)
    draw(results, f"convert-{result.slug}", lambda figure, palette: _plot(result, figure, palette))


def _image_folder(source: Path, folder: Path, count: int) -> list[Path]:
    """Write `count` images of the source, repeated as needed, as an image folder; every tenth is for validation."""
    opened = open_sources([source])[0]
    entries = sorted(opened.list().entries, key=lambda entry: (entry.class_name, entry.name))
    if not entries:
        raise ConfigError(f"{source} contains no images; expected at least one; name another source")
    paths = []
    for n in range(count):
        entry = entries[n % len(entries)]
        split = "val" if n % 10 == 9 else "train"
        path = folder / split / f"c{n // 10 % 10}" / f"{n:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(opened.read(entry))
        paths.append(path)
    return paths


class _Unchecked(ConvertSettings):
    """Settings that no command offers: JPEGs of the common kinds that fit are copied without being decoded."""

    @property
    def pixels(self) -> PixelSettings:
        return replace(super().pixels, unchecked=True)


def _udkd_conversion(
    root: Path, workers: int, kind: type[ConvertSettings] = ConvertSettings, **settings: Any
) -> Callable[[], DatasetFolder]:
    convert_settings = kind(**{"side": 512, "formats": (), "workers": workers, "on_bad": "skip", **settings})

    def run() -> DatasetFolder:
        shutil.rmtree(root / "out", ignore_errors=True)
        return convert([root / "images"], root / "out", convert_settings, SILENT)

    return run


class _IndexedFiles:
    """The map-style dataset that FFCV's writer reads: image and label by index."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.paths[index]
        return Image.open(path).convert("RGB"), int(path.parent.name[1:])


def _ffcv_conversion(root: Path, paths: list[Path], workers: int, **options: int) -> Callable[[], None]:
    """FFCV's writer with its defaults (jpg mode re-encodes every image, at quality 90)."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    def run() -> None:
        path = root / "out.beton"
        path.unlink(missing_ok=True)
        fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90, **options), "label": IntField()}
        writer = DatasetWriter(str(path), fields, num_workers=workers)
        writer.from_indexed_dataset(_IndexedFiles(paths))

    return run


def _one_image_at_a_time(paths: list[Path], rounds: int) -> list[Any]:
    """Time `prepare` with its strict decode, reading headers only, and Pillow's decode."""
    jpegs = [path.read_bytes() for path in paths]
    settings = PixelSettings(side=512, fit="pad", quality=95, subsampling="4:4:4")

    def strict() -> None:
        for jpeg in jpegs:
            prepare(jpeg, settings)

    def headers_only() -> None:
        """Read only the headers: a flipped bit would go unnoticed."""
        for jpeg in jpegs:
            Image.open(io.BytesIO(jpeg)).verify()
            udkd.data_prep.jpeg.read_frame(jpeg)

    def pillow() -> None:
        for jpeg in jpegs:
            Image.open(io.BytesIO(jpeg)).convert("RGB")

    variants = [
        Variant(name, run, items=len(jpegs))
        for name, run in (("strict", strict), ("headers only", headers_only), ("Pillow's decode alone", pillow))
    ]
    return side_by_side(variants, torch.device("cpu"), rounds=rounds, warmup=1)


def _plot(result: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    rows = [row for row in result.rows if row["what"] == "whole conversion"]
    names, speeds = [row["variant"] for row in rows], [row["items_per_s"] for row in rows]
    unit, spans = f"images/s, {result.settings['workers']} processes", [speed_span(row) for row in rows]
    bars(figure.add_subplot(), palette, names, speeds, unit=unit, value_format="{:,.0f}", spans=spans)
