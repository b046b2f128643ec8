"""Crop, resize, flip and jitter of a batch, each operation and whole policies: ours against torchvision, image by image."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from benchmarks.common.figures import MARKERS, Palette, draw
from benchmarks.common.harness import canvases, paper_recipe, view_table
from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.timing import Timed, Variant, side_by_side
from udkd.augment import apply as augment
from udkd.augment.mixing import partners
from udkd.augment.operations import MEAN, OpSettings, apply_rows, change_rows, erase, mix
from udkd.augment.policies import Op, encode
from udkd.augment.preprocessing import IMAGENET, NetworkInput
from udkd.augment.views import ViewSpec, draw_views
from udkd.utils.compile import compiled
from udkd.utils.environment import choose_device
from udkd.utils.terminal import DeviceOption

EXPECTATION = """On a CPU the exact sums cost about what torchvision's separable filter does at 224 px, which reads the same
pixels, and grow a little with the canvas side, all of which is made float32; jitter costs several times as much. On a GPU
the sums are bound by memory: below 10 µs an image at canvas 256, growing with the side; eager jitter and normalisation as
much again, and compiled half of that. Torchvision image by image is bound by launches on a GPU: 100 times slower.
Operations on a CPU (written after they had been profiled): each in at most torchvision's time. A quarter for translations,
which are copies; half for warps of the nearest pixel, hue, solarize, sharpness and blur, which it computes with more passes
over float32; 0.6 to 0.8 for factors, autocontrast and equalize; as long for invert and posterize, single passes that both copy
once more, for grayscale and for bilinear warps. RandAugment(2, 9) 0.5 of its time at 224 px and 0.3 at 64 px, where its calls
cost more than the work."""

TORCHVISION = "torchvision, image by image"
VALUES: dict[Op, float] = {
    Op.BRIGHTNESS: 1.3,
    Op.CONTRAST: 1.3,
    Op.SATURATION: 1.3,
    Op.SHARPNESS: 1.3,
    Op.HUE: 0.1,
    Op.SOLARIZE: 128,
    Op.POSTERIZE: 4,
    Op.INVERT: 0,
    Op.AUTOCONTRAST: 0,
    Op.EQUALIZE: 0,
    Op.GRAYSCALE: 0,
    Op.BLUR: 1.0,
    Op.ROTATE: 9,
    Op.SHEAR_X: 0.09,
    Op.SHEAR_Y: 0.09,
    Op.TRANSLATE_X: 0.13,
    Op.TRANSLATE_Y: 0.13,
}
"""The operations that torchvision has, and the magnitudes they are timed with, those of RandAugment(2, 9) where it has them."""
POLICIES: dict[str, tuple[ViewSpec, type[v2.Transform]]] = {
    "RandAugment(2, 9)": (ViewSpec(policy="rand_augment"), v2.RandAugment),
    "TrivialAugmentWide": (ViewSpec(policy="trivial_augment_wide"), v2.TrivialAugmentWide),
    "AutoAugment": (ViewSpec(policy="auto_augment"), v2.AutoAugment),
}
_DRAWS = 8  # batches of drawn views per call, so that each contains most operations


def main(
    batch: Annotated[int, typer.Option("--batch", min=0, help="0: 256 on a GPU, else 64.")] = 0,
    operations: Annotated[bool, typer.Option("--operations", help="Also operations and policies.")] = False,
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
    batch, px, sides = batch or (256 if gpu else 64), px or 224, sides or ([256, 320, 400, 512] if gpu else [256, 512])
    result = BenchmarkResult.begin("augment", EXPECTATION, dev, {"batch": batch, "px": px, "sides": sides})
    for side in sides:
        timed = measure(side, px, batch, dev, rounds, compile)
        result.add(timed, baseline=TORCHVISION, side=side, px=px, batch=batch)
        result.write(results)
    for size_px, count in [(px, batch), (64, 4 * batch)] if operations else []:
        for name, variants in {**operation_variants(size_px, count, dev), **policy_variants(size_px, count, dev)}.items():
            timed = side_by_side(variants, dev, rounds=rounds)
            result.add(timed, baseline=TORCHVISION, operation=name, px=size_px, batch=count)
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
        TORCHVISION: lambda: torch.stack([torchvision_transform(image) for image in images]),
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


def operation_variants(px: int, batch: int, device: torch.device) -> dict[str, list[Variant]]:
    """Each operation on all samples, and warps once more with bilinear interpolation."""
    pixels, images = _views(batch, px, device)
    timed = {}
    for op, value in VALUES.items():
        warps = op.name.startswith(("ROTATE", "SHEAR", "TRANSLATE"))
        for mode in (InterpolationMode.NEAREST, InterpolationMode.BILINEAR)[: 1 + warps]:
            bilinear = mode == InterpolationMode.BILINEAR
            settings = OpSettings(bilinear=bilinear, blur_radius=6)
            op_BR = torch.full((batch, 1), op.value, dtype=torch.int8, device=device)
            magnitude_BR2 = torch.from_numpy(encode(op, np.full(batch, float(value)), px))[:, None].to(device)
            ours = partial(_applied, pixels, op_BR, magnitude_BR2, ((op,),), settings)
            theirs = partial(_each, _torchvision_op(op, value, px, mode), images)
            name = op.name.lower() + (" (bilinear)" if bilinear else "")
            timed[name] = [Variant(TORCHVISION, theirs, items=batch), Variant("ours", ours, items=batch)]
    return timed


def policy_variants(px: int, batch: int, device: torch.device) -> dict[str, list[Variant]]:
    """Policies on pixels, and RandAugment with erasing and CutMix."""
    pixels, images = _views(batch, px, device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    timed = {}
    for name, (spec, transform) in POLICIES.items():
        tables = _tables(replace(spec, size_px=px), batch, device)
        ours = partial(_draws, pixels, tables, replace(spec, size_px=px))
        timed[name] = [
            Variant(TORCHVISION, partial(_each, transform(), images, _DRAWS), items=batch * _DRAWS),
            Variant("ours", ours, items=batch * _DRAWS),
        ]
    full = ViewSpec(size_px=px, policy="rand_augment", erase_prob=0.25, cutmix=1.0)
    each = v2.Compose([v2.RandAugment(), v2.RandomErasing(0.25, value=list(MEAN))])
    cutmix = v2.CutMix(num_classes=10)
    timed["RandAugment, erasing, CutMix"] = [
        Variant(TORCHVISION, lambda: [cutmix(_each(each, images), labels) for _ in range(_DRAWS)], items=batch * _DRAWS),
        Variant("ours", partial(_draws, pixels, _tables(full, batch, device), full), items=batch * _DRAWS),
    ]
    return timed


def _views(batch: int, px: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels as `augment.pixels` returns them, [B, O, O, 3] with a plane for each channel on a CPU, and for torchvision."""
    pixels = canvases(batch, px, device).canvas
    images = pixels.permute(0, 3, 1, 2).contiguous()
    return pixels if device.type == "cuda" else images.permute(0, 2, 3, 1), images


def _each(transform: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, times: int = 1) -> torch.Tensor:
    for _ in range(times):
        done = torch.stack([transform(image) for image in images])
    return done


def _tables(spec: ViewSpec, batch: int, device: torch.device) -> list[augment.ViewTable]:
    ids, sizes = np.arange(batch), np.full((batch, 4), spec.size_px)
    tables = []
    for view in range(_DRAWS):
        partner = partners(0, view, ids, batch) if spec.mixes else None
        table = augment.ViewTable.of(draw_views(spec, 0, view, ids, sizes, partner), device)
        tables.append(table if partner is None else table.paired(torch.from_numpy(ids).to(device)))
    return tables


def _applied(
    pixels_BOO3: torch.Tensor,
    op_BR: torch.Tensor,
    magnitude_BR2: torch.Tensor,
    rows: Sequence[Sequence[Op]],
    settings: OpSettings,
) -> torch.Tensor:
    """apply_rows, in threads on a CPU, as `augment.view_pixels` does it."""
    if pixels_BOO3.device.type != "cpu":
        return apply_rows(pixels_BOO3, op_BR, magnitude_BR2, rows, settings)

    def write(part: slice, x_B3OO: torch.Tensor) -> None:
        x_B3OO.copy_(pixels_BOO3[part].permute(0, 3, 1, 2))
        change_rows(x_B3OO, op_BR[part], magnitude_BR2[part], settings)

    return augment.in_parts(write, len(pixels_BOO3), pixels_BOO3.shape[1])


def _draws(pixels_BOO3: torch.Tensor, tables: list[augment.ViewTable], spec: ViewSpec) -> torch.Tensor:
    settings = OpSettings(bilinear=spec.warp == "bilinear", fill=spec.fill, blur_radius=spec.blur_radius)
    for table in tables:
        assert table.op is not None, "a policy"
        assert table.magnitude is not None, "a policy"
        done = _applied(pixels_BOO3, table.op, table.magnitude, spec.row_ops, settings)
        if table.erase_box is not None and table.noise_key is not None:
            done = erase(done, table.erase_box, table.noise_key, spec.erase_fill)
        if table.mate is not None and table.blend is not None and table.mix_box is not None:
            done = mix(done, table.mate, table.blend, table.mix_box)
    return done


def _torchvision_op(op: Op, value: float, px: int, mode: InterpolationMode) -> Callable[[torch.Tensor], torch.Tensor]:
    """Its function on uint8 [3, O, O], as its RandAugment calls it."""
    shear = math.degrees(math.atan(value))
    shift = int(value * px)
    functions: dict[Op, Callable[[torch.Tensor], torch.Tensor]] = {
        Op.BRIGHTNESS: lambda x: F.adjust_brightness(x, value),
        Op.CONTRAST: lambda x: F.adjust_contrast(x, value),
        Op.SATURATION: lambda x: F.adjust_saturation(x, value),
        Op.SHARPNESS: lambda x: F.adjust_sharpness(x, value),
        Op.HUE: lambda x: F.adjust_hue(x, value),
        Op.SOLARIZE: lambda x: F.solarize(x, value),
        Op.POSTERIZE: lambda x: F.posterize(x, int(value)),
        Op.INVERT: F.invert,
        Op.AUTOCONTRAST: F.autocontrast,
        Op.EQUALIZE: F.equalize,
        Op.GRAYSCALE: lambda x: F.rgb_to_grayscale(x, 3),
        Op.BLUR: lambda x: F.gaussian_blur(x, [13, 13], [value, value]),
        Op.ROTATE: lambda x: F.rotate(x, value, interpolation=mode),
        Op.SHEAR_X: lambda x: F.affine(x, 0, [0, 0], 1, [shear, 0], interpolation=mode, center=[0, 0]),
        Op.SHEAR_Y: lambda x: F.affine(x, 0, [0, 0], 1, [0, shear], interpolation=mode, center=[0, 0]),
        Op.TRANSLATE_X: lambda x: F.affine(x, 0, [shift, 0], 1, [0, 0], interpolation=mode),
        Op.TRANSLATE_Y: lambda x: F.affine(x, 0, [0, shift], 1, [0, 0], interpolation=mode),
    }
    return functions[op]


def _plot(result: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    operations = [row for row in result.rows if "operation" in row and row["variant"] == "ours"]
    if operations:
        figure.set_size_inches(figure.get_figwidth(), 2.2 * figure.get_figheight())
    axes, *more = figure.subplots(1 + bool(operations), 1, height_ratios=[1, 2][: 1 + bool(operations)], squeeze=False)[:, 0]
    by_side = [row for row in result.rows if "side" in row]
    for index, name in enumerate(dict.fromkeys(row["variant"] for row in by_side)):
        rows = [row for row in by_side if row["variant"] == name]
        speed = [row["items_per_s"] for row in rows]
        axes.plot([row["side"] for row in rows], speed, marker=MARKERS[index], color=palette.student(index), label=name)
    axes.set_xticks(result.settings["sides"], map(str, result.settings["sides"]))
    axes.set_xlabel("canvas side, px")
    axes.set_ylabel("images/s")
    axes.set_ylim(bottom=0)
    axes.set_title(f"Canvases to {result.settings['px']} px input, batch {result.settings['batch']}")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0), ncols=2)
    for operation_axes in more:
        _plot_operations(operations, operation_axes, palette)


def _plot_operations(rows: list[dict[str, Any]], axes: Axes, palette: Palette) -> None:
    """Our time over torchvision's, median and range."""
    names = list(dict.fromkeys(row["operation"] for row in rows))[::-1]
    sizes = list(dict.fromkeys(row["px"] for row in rows))
    for index, size_px in enumerate(sizes):
        of_size = {row["operation"]: row["ratio"] for row in rows if row["px"] == size_px}
        ratios = [of_size[name] for name in names]
        places = [place + 0.15 - 0.3 * index for place in range(len(names))]
        medians = [ratio["median"] for ratio in ratios]
        reach = [[ratio["median"] - ratio["min"] for ratio in ratios], [ratio["max"] - ratio["median"] for ratio in ratios]]
        style: dict[str, Any] = {"marker": MARKERS[index], "color": palette.student(index), "linestyle": "none"}
        axes.errorbar(medians, places, xerr=reach, label=f"{size_px} px", **style)
    axes.axvline(1, color=palette.mark, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(left=0)
    axes.set_xlabel("time over torchvision's, with its range over the rounds: below 1 is faster")
    axes.legend(loc="center right", bbox_to_anchor=(0.92, 0.27))
