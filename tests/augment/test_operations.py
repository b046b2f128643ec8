"""Operations on views: against torchvision, Pillow and timm, and the same bits however they are computed."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from udkd.augment import operations
from udkd.augment.erasing import BOX_BITS, EraseFill
from udkd.augment.mixing import BLEND_BITS
from udkd.augment.operations import OpSettings, apply_op, apply_rows, erase, mix
from udkd.augment.policies import _RANGES, FACTOR_BITS, FACTORS, FRACTION_BITS, HUE_BITS, WARPS, Op, encode

OPS = tuple(op for op in Op if op != Op.IDENTITY)
KINDS = ("noise", "smooth", "narrow", "constant", "two values")
FILL = (9, 20, 200)
NEAREST = OpSettings()


def image(kind: str, size_px: int, seed: int) -> Tensor:
    """uint8 [O, O, 3] of one of KINDS."""
    rng = np.random.default_rng(seed)
    if kind == "smooth":
        y, x = np.mgrid[0:size_px, 0:size_px][..., None] / size_px
        values = 127 + 60 * np.sin(rng.uniform(1, 9, 3) * y + rng.uniform(1, 9, 3)) + 67 * np.cos(rng.uniform(1, 9, 3) * x)
    elif kind == "narrow":
        low = rng.integers(0, 200)
        values = rng.integers(low, low + rng.integers(2, 56), (size_px, size_px, 3))
    elif kind == "constant":
        values = np.broadcast_to(rng.integers(0, 256, 3), (size_px, size_px, 3))
    elif kind == "two values":
        values = rng.choice(rng.integers(0, 256, 2), (size_px, size_px, 3))
    else:
        values = rng.integers(0, 256, (size_px, size_px, 3))
    return torch.from_numpy(np.ascontiguousarray(values).astype(np.uint8))


def apply_one(op: Op, value: float, pixels_OO3: Tensor, settings: OpSettings = NEAREST) -> Tensor:
    magnitude_12 = torch.from_numpy(encode(op, np.array([float(value)]), len(pixels_OO3)))
    return apply_op(op, pixels_OO3[None], magnitude_12, settings)[0]


def torchvision_op(op: Op, value: float, size_px: int, settings: OpSettings = NEAREST) -> Callable[[Tensor], Tensor]:
    """Its function on uint8 [3, O, O], with the magnitude as encoded. RandAugment calls shears and translations like this."""
    factor, turns = round(value * 2**FACTOR_BITS) / 2**FACTOR_BITS, round(value * 2**HUE_BITS) / 2**HUE_BITS
    warp: dict[str, Any] = {
        "interpolation": InterpolationMode.BILINEAR if settings.bilinear else InterpolationMode.NEAREST,
        "fill": list(settings.fill) if any(settings.fill) else None,
    }
    degrees, px = math.degrees(math.atan(value)), whole_px(value, size_px)
    taps = 2 * settings.blur_radius + 1
    functions: dict[Op, Callable[[Tensor], Tensor]] = {
        Op.BRIGHTNESS: lambda x: F.adjust_brightness(x, factor),
        Op.CONTRAST: lambda x: F.adjust_contrast(x, factor),
        Op.SATURATION: lambda x: F.adjust_saturation(x, factor),
        Op.SHARPNESS: lambda x: F.adjust_sharpness(x, factor),
        Op.HUE: lambda x: F.adjust_hue(x, turns),
        Op.SOLARIZE: lambda x: F.solarize(x, value) if value <= 255 else x,  # which it refuses
        Op.POSTERIZE: lambda x: F.posterize(x, int(value)),
        Op.INVERT: F.invert,
        Op.AUTOCONTRAST: F.autocontrast,
        Op.EQUALIZE: F.equalize,
        Op.GRAYSCALE: lambda x: F.rgb_to_grayscale(x, 3),
        Op.BLUR: lambda x: F.gaussian_blur(x, [taps, taps], [value, value]),
        Op.ROTATE: lambda x: F.rotate(x, value, **warp),
        Op.SHEAR_X: lambda x: F.affine(x, 0, [0, 0], 1, [degrees, 0], center=[0, 0], **warp),
        Op.SHEAR_Y: lambda x: F.affine(x, 0, [0, 0], 1, [0, degrees], center=[0, 0], **warp),
        Op.TRANSLATE_X: lambda x: F.affine(x, 0, [px, 0], 1, [0, 0], **warp),
        Op.TRANSLATE_Y: lambda x: F.affine(x, 0, [0, px], 1, [0, 0], **warp),
    }
    return functions[op]


def differences(one_OO3: Tensor, other_OO3: Tensor) -> Tensor:
    return (one_OO3.int() - other_OO3.int()).abs()


def torchvision_difference(op: Op, value: float, pixels_OO3: Tensor, settings: OpSettings = NEAREST) -> Tensor:
    theirs = torchvision_op(op, value, len(pixels_OO3), settings)(pixels_OO3.permute(2, 0, 1)).permute(1, 2, 0)
    return differences(apply_one(op, value, pixels_OO3, settings), theirs)


def magnitudes(op: Op) -> st.SearchStrategy[float]:
    low, high = _RANGES.get(op, (0, 0))
    if op in (Op.POSTERIZE, Op.SOLARIZE_ADD):
        return st.integers(int(low), int(high)).map(float)
    middle = [1.0] if op in FACTORS else []
    return st.one_of(st.sampled_from([float(low), float(high), *middle]), st.floats(low, high))


POINTS = {
    **dict.fromkeys((Op.BRIGHTNESS, Op.SOLARIZE, Op.POSTERIZE, Op.INVERT, Op.AUTOCONTRAST, Op.EQUALIZE), 0),
    **dict.fromkeys((Op.SHARPNESS, Op.CONTRAST, Op.SATURATION, Op.GRAYSCALE, Op.HUE), 1),
}
"""How far apart torchvision's values may be, of 255; see the table in udkd.augment.operations."""


@pytest.mark.parametrize("op", POINTS)
@given(data=st.data(), kind=st.sampled_from(KINDS), size_px=st.sampled_from([1, 2, 3, 16, 41]), seed=st.integers(0, 2**20))
@hypothesis_settings(max_examples=30)
def test_colours_match_torchvision(op: Op, data: st.DataObject, kind: str, size_px: int, seed: int) -> None:
    off = torchvision_difference(op, data.draw(magnitudes(op)), image(kind, size_px, seed))
    assert off.max() <= POINTS[op]
    if size_px == 41:
        assert (off > 0).float().mean() <= 0.01 * POINTS[op]


def test_autocontrast_is_torchvisions_for_each_range() -> None:
    """Its float32 quotient is often just below a whole number; all 32,640 ranges, as channels of 256 x 1 pixels."""
    low, high = np.triu_indices(256, 1)
    value = np.clip(np.arange(256)[None], low[:, None], high[:, None]).astype(np.uint8).reshape(-1, 16, 16)
    x_B3OO = torch.from_numpy(value).view(-1, 3, 16, 16)
    ours = apply_op(Op.AUTOCONTRAST, x_B3OO.permute(0, 2, 3, 1), torch.zeros(len(x_B3OO), 2, dtype=torch.int32), OpSettings())
    assert torch.equal(ours.permute(0, 3, 1, 2), F.autocontrast(x_B3OO))
    with dense():
        tables = operations._looked_up(x_B3OO, operations._autocontrast_table(x_B3OO))
    assert torch.equal(tables.permute(0, 2, 3, 1), ours)


@given(
    sigma=st.one_of(st.sampled_from([0.1, 0.5, 2.0]), st.floats(0.1, 2)),
    kind=st.sampled_from(KINDS),
    size_px=st.sampled_from([7, 16, 33]),
    seed=st.integers(0, 999),
)
@hypothesis_settings(max_examples=40)
def test_blur_is_within_one_of_torchvisions(sigma: float, kind: str, size_px: int, seed: int) -> None:
    off = torchvision_difference(Op.BLUR, sigma, image(kind, size_px, seed), OpSettings(blur_radius=6))
    assert off.max() <= 1
    assert (off > 0).float().mean() < 0.02


def test_strong_blurs() -> None:
    """sigma 10 on noise, and on views that are smaller than the filter, whose borders are reflected again and again."""
    wide = OpSettings(blur_radius=30)
    for sigma in (4.0, 10.0):
        assert torchvision_difference(Op.BLUR, sigma, image("noise", 64, 1), wide).max() <= 1
    for size_px in (1, 2, 5):
        x = image("noise", size_px, 2)
        blurred = apply_one(Op.BLUR, 10, x, wide)
        periodic = torch.cat([x, x.flip(0)[1:-1]] * 40)[: 30 * 2 * max(1, size_px - 1) or 1].float().mean(0)
        assert size_px > 1 or torch.equal(blurred, x)
        assert size_px == 1 or (blurred.float().mean() - periodic.mean()).abs() < 3


def whole_px(value: float, size_px: int) -> int:
    """A translation in pixels, rounded towards 0; a product a few last bits below a whole number is that number."""
    return int(value * size_px + math.copysign(2.0**-20, value))


def exact_source(op: Op, value: float, size_px: int, pixels: list[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """y and x of the source of each output pixel, float64 [O, O], or of those in `pixels`, from the definition."""
    along = np.arange(size_px) if pixels is None else np.array(pixels)
    y, x = (each.astype(np.float64) for each in np.meshgrid(along, along, indexing="ij"))
    centre, shift = (size_px - 1) / 2, whole_px(value, size_px)
    if op == Op.ROTATE:
        cos, sin = math.cos(math.radians(value)), math.sin(math.radians(value))
        return sin * (x - centre) + cos * (y - centre) + centre, cos * (x - centre) - sin * (y - centre) + centre
    if op == Op.SHEAR_X:
        return y, x + value * (y + 0.5)
    if op == Op.SHEAR_Y:
        return y + value * (x + 0.5), x
    return (y, x - shift) if op == Op.TRANSLATE_X else (y - shift, x)


@pytest.mark.parametrize("op", WARPS)
@given(data=st.data(), size_px=st.sampled_from([1, 2, 3, 16, 41, 128]), seed=st.integers(0, 999), filled=st.booleans())
@hypothesis_settings(max_examples=30)
def test_nearest_warps(op: Op, data: st.DataObject, size_px: int, seed: int, filled: bool) -> None:
    """The exact pixel, and torchvision's, unless the source is within (O + 4) / 2**17 px of a border between two pixels."""
    value, x = data.draw(magnitudes(op)), image("noise", size_px, seed)
    settings = OpSettings(fill=FILL if filled else (0, 0, 0))
    source = exact_source(op, value, size_px)
    room = (size_px + 4) / 2**17
    clear = torch.from_numpy(np.all([np.abs(each - np.floor(each) - 0.5) > room for each in source], axis=0))
    row, column = (torch.from_numpy(np.floor(each + 0.5)).long() for each in source)
    inside = (row >= 0) & (row < size_px) & (column >= 0) & (column < size_px)
    taken = x[row.clamp(0, size_px - 1), column.clamp(0, size_px - 1)]
    wanted = torch.where(inside[..., None], taken, torch.tensor(settings.fill, dtype=torch.uint8))
    ours = apply_one(op, value, x, settings)
    assert torch.equal(ours[clear], wanted[clear])
    assert (torchvision_difference(op, value, x, settings)[clear] == 0).all()


def test_sources_are_exact_up_to_the_largest_view() -> None:
    """Within (O + 4) / 2**17 px, at 8192 px too, where coordinates are near the limit of int32."""
    for op, value in ((Op.ROTATE, 45), (Op.ROTATE, -180), (Op.SHEAR_X, 4), (Op.SHEAR_Y, -4), (Op.TRANSLATE_X, -1)):
        for size_px in (1, 224, 8192):
            magnitude = torch.from_numpy(encode(op, np.array([float(value)]), size_px))
            source = operations._source(torch.tensor([op.value]), magnitude, size_px)
            ends = [0, size_px - 1]
            part = operations._Source(*(each[:, ends] for each in source))
            exact = (torch.from_numpy(each) for each in exact_source(op, value, size_px, ends))
            for got, wanted in zip(part.rounded(11, 2), exact, strict=True):
                off = (got[0].double() / 2**11 - 2 - wanted).abs()
                far = (wanted < -size_px) | (wanted > 2 * size_px)  # these may be clamped, and stay outside
                assert off[~far].numel() == 0 or off[~far].max() <= (size_px + 4) / 2**17 + 2**-12
                assert ((got[0] >> 11 < 2) | (got[0] >> 11 >= size_px + 2))[far].all()


@pytest.mark.parametrize("op", WARPS)
@given(
    data=st.data(),
    kind=st.sampled_from(["noise", "smooth"]),
    size_px=st.sampled_from([1, 2, 3, 16, 41, 128]),
    seed=st.integers(0, 999),
    filled=st.booleans(),
)
@hypothesis_settings(max_examples=30)
def test_bilinear_warps_match_torchvision(
    op: Op, data: st.DataObject, kind: str, size_px: int, seed: int, filled: bool
) -> None:
    """Borders too: black is torchvision's fill=None."""
    settings = OpSettings(bilinear=True, fill=FILL if filled else (0, 0, 0))
    off = torchvision_difference(op, data.draw(magnitudes(op)), image(kind, size_px, seed), settings)
    assert off.max() <= 2
    assert size_px < 41 or (off > 1).float().mean() < 1e-3


PILLOW: dict[Op, tuple[Callable[[Image.Image, float], Image.Image], int]] = {
    Op.BRIGHTNESS: (lambda x, f: ImageEnhance.Brightness(x).enhance(f), 1),
    Op.CONTRAST: (lambda x, f: ImageEnhance.Contrast(x).enhance(f), 3),
    Op.SATURATION: (lambda x, f: ImageEnhance.Color(x).enhance(f), 2),
    Op.SHARPNESS: (lambda x, f: ImageEnhance.Sharpness(x).enhance(f), 2),
    Op.SOLARIZE: (lambda x, t: ImageOps.solarize(x, math.ceil(t)), 0),
    Op.POSTERIZE: (lambda x, bits: ImageOps.posterize(x, int(bits)), 0),
    Op.INVERT: (lambda x, _: ImageOps.invert(x), 0),
    Op.AUTOCONTRAST: (lambda x, _: ImageOps.autocontrast(x), 1),
    Op.EQUALIZE: (lambda x, _: ImageOps.equalize(x), 0),
    Op.GRAYSCALE: (lambda x, _: x.convert("L").convert("RGB"), 1),
    Op.SOLARIZE_ADD: (lambda x, added: x.point([v if v >= 128 else min(255, v + int(added)) for v in range(256)] * 3), 0),
}
"""Pillow's functions and how far apart the values may be for factors up to 2: it rounds greys and means to whole numbers."""


@pytest.mark.parametrize("op", PILLOW)
@given(data=st.data(), kind=st.sampled_from(KINDS), size_px=st.sampled_from([1, 2, 3, 32]), seed=st.integers(0, 999))
@hypothesis_settings(max_examples=30)
def test_colours_match_pillow(op: Op, data: st.DataObject, kind: str, size_px: int, seed: int) -> None:
    value = data.draw(st.floats(0, 2) if op in FACTORS else magnitudes(op))
    if op == Op.POSTERIZE:
        value = max(value, 1.0)
    x = image(kind, size_px, seed)
    function, bound = PILLOW[op]
    theirs = torch.from_numpy(np.array(function(Image.fromarray(x.numpy()), value)))
    assert differences(apply_one(op, value, x), theirs).max() <= bound


@pytest.mark.parametrize("op", WARPS)
def test_nearest_warps_match_timm(op: Op) -> None:
    """timm translates to the other side; as its sign is random, so are both."""
    timm = pytest.importorskip("timm.data.auto_augment")
    names = {Op.TRANSLATE_X: "translate_x_rel", Op.TRANSLATE_Y: "translate_y_rel"}
    function = getattr(timm, names.get(op, op.name.lower()))
    rng, x = np.random.default_rng(op), image("noise", 64, op)
    for _ in range(20):
        value = float(rng.uniform(*_RANGES[op])) / (4 if op in (Op.SHEAR_X, Op.SHEAR_Y) else 1)
        if op in names:
            value = round(value * 64) / 64
        sign = -1 if op in names else 1
        theirs = function(Image.fromarray(x.numpy()), sign * value, fillcolor=FILL, resample=Image.Resampling.NEAREST)
        off = differences(apply_one(op, value, x, OpSettings(fill=FILL)), torch.from_numpy(np.array(theirs)))
        # Pillow's coordinates have 16 bits, as ours, and are rounded otherwise.
        assert (off.amax(-1) > 0).float().mean() <= 0.01


Rows = tuple[Tensor, Tensor, Tensor, tuple[tuple[Op, ...], ...]]


def random_rows(batch: int, size_px: int, seed: int, ops: tuple[Op, ...] = OPS) -> Rows:
    """Pixels, operations and magnitudes of two rows that hold any operation, as often."""
    rng = np.random.default_rng(seed)
    x_BOO3 = torch.stack([image(KINDS[n % len(KINDS)], size_px, seed + n) for n in range(batch)])
    op_BR = rng.permuted(np.resize(np.array([*ops, 0]), (2, batch)), axis=1).T
    value = [[rng.uniform(*_RANGES.get(Op(op), (0, 0))) for op in row] for row in op_BR]
    magnitude = np.array(
        [
            [encode(Op(op), np.array([v]), size_px)[0] for op, v in zip(*pair, strict=True)]
            for pair in zip(op_BR, value, strict=True)
        ]
    )
    return x_BOO3, torch.from_numpy(op_BR.astype(np.int8)), torch.from_numpy(magnitude), (ops, ops)


@contextmanager
def dense() -> Iterator[None]:
    """As on a GPU: every operation runs on all samples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations, "eager_on_cpu", lambda x: False)
        yield


SETTINGS = [OpSettings(blur_radius=6, fill=FILL), OpSettings(True, (0, 0, 0), 6), OpSettings(True, FILL, 6)]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("size_px", [1, 2, 3, 13, 32])
def test_all_samples_at_once_or_each_operation_alone(settings: OpSettings, size_px: int) -> None:
    x, op, magnitude, rows = random_rows(60, size_px, size_px)
    before = x.clone()
    grouped = apply_rows(x, op, magnitude, rows, settings)
    with dense():
        assert torch.equal(apply_rows(x, op, magnitude, rows, settings), grouped)
    assert torch.equal(x, before), "the pixels that were given stay"
    assert grouped.permute(0, 3, 1, 2).is_contiguous(), "a plane for each channel"


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_same_bits_in_any_batch_and_with_any_setting(settings: OpSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    x, op, magnitude, rows = random_rows(41, 24, 3)
    wanted = apply_rows(x, op, magnitude, rows, settings)
    assert torch.equal(apply_rows(x[:0], op[:0], magnitude[:0], rows, settings), x[:0])
    order = torch.from_numpy(np.random.default_rng(0).permutation(41))
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        for parts, count, chosen in ((1, 1, "medium"), (7, 2, "high"), (40, 1, "highest")):
            torch.set_num_threads(count)
            torch.set_float32_matmul_precision(chosen)
            done = [apply_rows(x[n], op[n], magnitude[n], rows, settings) for n in torch.split(order, parts)]
            assert torch.equal(torch.cat(done), wanted[order])
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
    scattered = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(apply_rows(scattered, op, magnitude, rows, settings), wanted)
    with dense():
        assert torch.equal(apply_rows(scattered, op, magnitude, rows, settings), wanted)
        assert torch.equal(apply_rows(x[:0], op[:0], magnitude[:0], rows, settings), x[:0])
    monkeypatch.setattr(operations, "_CHUNK_VALUES", 1)
    assert torch.equal(apply_rows(x, op, magnitude, rows, settings), wanted)


@given(
    size_px=st.sampled_from([1, 2, 13]),
    boxes=st.lists(st.tuples(*[st.integers(0, 1 << BOX_BITS)] * 4).map(sorted), min_size=4, max_size=4),
    blends=st.lists(st.integers(0, 1 << BLEND_BITS), min_size=4, max_size=4),
)
@hypothesis_settings(max_examples=40)
def test_erasing_and_mixing_box_by_box_or_all_at_once(size_px: int, boxes: list[list[int]], blends: list[int]) -> None:
    x, keys, mate = (
        torch.stack([image("noise", size_px, n) for n in range(4)]),
        torch.arange(4) * 999,
        torch.tensor([2, 1, 0, 3]),
    )
    box = torch.tensor([[top, left, bottom, right] for top, left, bottom, right in boxes], dtype=torch.int32)
    blend = torch.tensor(blends, dtype=torch.int32)
    before = x.clone()

    def everything() -> list[Tensor]:
        return [*(erase(x, box, keys, fill) for fill in get_args(EraseFill)), mix(x, mate, blend, box)]

    *_, done = one_by_one = everything()
    with dense():
        assert all(torch.equal(*pair) for pair in zip(everything(), one_by_one, strict=True))
    share = blend.view(-1, 1, 1, 1) / (1 << BLEND_BITS)
    wanted = (x * share.double() + x[mate] * (1 - share.double()) + 0.5).floor().to(torch.uint8)
    assert torch.equal(done, torch.where(operations.inside(box, size_px), x[mate], wanted))
    assert torch.equal(x, before)


class NoWaits(TorchDispatchMode):
    """Refuses what makes the host wait for a device, gives a shape that depends on the data, or copies from host memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        assert not any(bad in name for bad in ("_local_scalar_dense", "nonzero", "bincount", "lift_fresh")), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_gpu_never_waits_for_the_host(settings: OpSettings) -> None:
    x, op, magnitude, rows = random_rows(5, 8, 0)
    box = torch.full((5, 4), 1 << (BOX_BITS - 1), dtype=torch.int32)
    with dense(), NoWaits():
        x = apply_rows(x, op, magnitude, rows, settings)
        for fill in get_args(EraseFill):
            x = erase(x, box, torch.arange(5), fill)
        mix(x, torch.arange(5), torch.full((5,), 99, dtype=torch.int32), box)


def compiled_equals_eager(ops: tuple[Op, ...], settings: OpSettings) -> None:
    x, op, magnitude, rows = random_rows(2 * len(ops) + 1, 9, 5, ops)
    torch.compiler.reset()

    def run(x: Tensor, op: Tensor, magnitude: Tensor) -> Tensor:
        return apply_rows(x, op, magnitude, rows[:1], settings)

    given = x, op[:, :1], magnitude[:, :1]
    assert torch.equal(torch.compile(run, fullgraph=True)(*given), run(*given))


def test_compiled_operations_are_the_same_bits() -> None:
    compiled_equals_eager((Op.BRIGHTNESS, Op.SOLARIZE, Op.SOLARIZE_ADD, Op.POSTERIZE), OpSettings())


def test_compiled_extrema_of_bytes() -> None:
    """PyTorch issue 191499: inductor's code for a CPU finds a 0 among bytes that are side by side."""
    x_BOO3 = torch.randint(50, 200, (2, 3, 16, 16), dtype=torch.uint8).permute(0, 2, 3, 1)
    magnitude = torch.zeros(2, 2, dtype=torch.int32)
    stretched = torch.compile(apply_op)(Op.AUTOCONTRAST, x_BOO3, magnitude, OpSettings())
    assert torch.equal(stretched, apply_op(Op.AUTOCONTRAST, x_BOO3, magnitude, OpSettings()))


@pytest.mark.long
@pytest.mark.parametrize("settings", SETTINGS)
def test_all_compiled_operations_are_the_same_bits(settings: OpSettings) -> None:
    for ops in (OPS[:4], OPS[4:9], OPS[9:12], OPS[12:]):
        compiled_equals_eager(ops, settings)


def test_whole_pixels_are_translated_whatever_the_views_size() -> None:
    """The fraction drawn for one size is rounded to whole pixels of another."""
    magnitude = torch.from_numpy(encode(Op.TRANSLATE_X, np.array([0.3]), 224))
    assert magnitude[0, 0] == round(67 / 224 * 2**FRACTION_BITS)
    x = image("noise", 100, 0)
    done = apply_op(Op.TRANSLATE_X, x[None], magnitude, OpSettings(bilinear=True))[0]
    assert torch.equal(done[:, 30:], x[:, :70])
    assert (done[:, :30] == 0).all()
