"""Pixels of a view: torchvision's resized_crop against ours, the same bits however they are computed; colours."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import permutations
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tests.augment.view_hashes import PLAIN_DIGEST, SAMPLES, TINY, VIEWS, bank, digest_of_all, hashes
from udkd.augment import apply as augment
from udkd.augment.apply import WEIGHT_BITS, ViewTable, apply, apply_each, finish_each, pixels, taps
from udkd.augment.preprocessing import IMAGENET, NetworkInput, Preprocessing
from udkd.augment.views import BRIGHTNESS, CONTRAST, SATURATION, SUBPIXELS, Views, ViewSpec, draw_views
from udkd.utils.errors import ConfigError

PAPER = ViewSpec(size_px=32, resize_px=36, brightness=0.4, contrast=0.4, saturation=0.4)
Window = tuple[int, int, int, int]


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """A picture with smooth parts, edges and grain, as photographs have: uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(y / rng.uniform(2, 40) + x / rng.uniform(2, 40) + rng.uniform(0, 6)) for _ in range(3)]
    steps = 60 * ((x // 11 + y // 7) % 2)
    values = 110 + 70 * np.stack(waves, axis=-1) + steps[..., None] + rng.normal(0, 14, (height, width, 3))
    return torch.from_numpy(values.clip(0, 255).astype(np.uint8))


def grain(height: int, width: int, seed: int = 0) -> Tensor:
    """Noise over the full range, the hardest picture for a filter: uint8 [H, W, 3]."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def on_canvas(image: Tensor, side: int) -> Tensor:
    """The image in the top left corner of a canvas [1, S, S, 3] whose rest is white; the rest must never be read."""
    canvas = torch.full((1, side, side, 3), 255, dtype=torch.uint8)
    canvas[0, : image.shape[0], : image.shape[1]] = image
    return canvas


def table(windows: list[Window], flip: bool = False) -> ViewTable:
    """Views of windows on pixel borders (top, left, height, width), without jitter."""
    window = np.array(windows, np.int64) * SUBPIXELS
    return ViewTable.of(
        Views(
            window=window,
            bounds=np.concatenate([window[:, :2], window[:, :2] + window[:, 2:]], axis=1),
            flip=np.full(len(windows), flip),
            kind=np.tile(np.arange(3, dtype=np.int8), (len(windows), 1)),
            factor=np.ones((len(windows), 3), np.float32),
        )
    )


JITTERED = ViewSpec(brightness=0.4)


def finish(pixels_BOO3: Tensor, views: ViewTable, *, jitter: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    """Jitter and ImageNet's normalisation."""
    network = NetworkInput(size_px=pixels_BOO3.shape[1])
    return finish_each([pixels_BOO3], views, [network], JITTERED if jitter else ViewSpec(), dtype=dtype)[0]


def torchvision_crop(
    image: Tensor, window: Window, size: int, flip: bool = False, mode: InterpolationMode = InterpolationMode.BILINEAR
) -> Tensor:
    """resized_crop with antialias on uint8, then hflip: uint8 [O, O, 3]."""
    crop = F.resized_crop(image.permute(2, 0, 1), *window, [size, size], interpolation=mode, antialias=True)
    return (F.horizontal_flip(crop) if flip else crop).permute(1, 2, 0)


def largest_difference(one: Tensor, other: Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


@example(height=31, width=72, corner=(0.7, 13 / 71, 0, 35 / 58), size=33, flip=False, seed=3, mode="bilinear")  # 2 off
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    size=st.sampled_from([1, 7, 16, 33]),
    flip=st.booleans(),
    seed=st.integers(0, 9),
    mode=st.sampled_from(["bilinear", "bicubic"]),
)
def test_within_two_of_torchvisions_resized_crop(
    height: int, width: int, corner: tuple[float, float, float, float], size: int, flip: bool, seed: int, mode: str
) -> None:
    tall, wide = 1 + int(corner[0] * (height - 1)), 1 + int(corner[1] * (width - 1))
    window = (int(corner[2] * (height - tall)), int(corner[3] * (width - wide)), tall, wide)
    image = picture(height, width, seed)
    ours = pixels(on_canvas(image, 96), table([window], flip), size, mode)[0]  # type: ignore[arg-type]
    assert ours.dtype == torch.uint8
    assert ours.shape == (size, size, 3)
    theirs = torchvision_crop(image, window, size, flip, InterpolationMode(mode))
    assert largest_difference(ours, theirs) <= 2, "each rounds twice"


PILLOW_CASES = [(200, (3, 5, 150, 170), 64), (64, (0, 0, 64, 64), 200), (40, (8, 8, 24, 24), 24)]


@pytest.mark.parametrize(("side", "window", "size"), PILLOW_CASES)
def test_bicubic_is_pillows(side: int, window: Window, size: int) -> None:
    """Noise has the largest overshoots, which each pass clamps as Pillow does."""
    for paint in (picture, grain):
        image = paint(side, side)
        top, left, tall, wide = window
        crop = Image.fromarray(image.numpy()).crop((left, top, left + wide, top + tall))
        pillow = torch.from_numpy(np.array(crop.resize((size, size), Image.Resampling.BICUBIC)))
        ours = pixels(on_canvas(image, side), table([window]), size, "bicubic")[0]
        assert largest_difference(ours, pillow) <= 2
        bilinear = pixels(on_canvas(image, side), table([window]), size)[0]
        assert (tall == size) == torch.equal(ours, bilinear), "an unscaled window is a copy in both"


def test_bicubic_weights_are_the_exact_filters() -> None:
    """Against the filter in exact fractions: within one unit of the quantised weights per tap."""
    one = 1 << 16
    distance = torch.arange(0, 5 * one, 37)
    scale = torch.tensor(2 * one)
    x = distance.double() / scale
    near, far = 1 - 2.5 * x**2 + 1.5 * x**3, 2 - 4 * x + 2.5 * x**2 - 0.5 * x**3
    wanted = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    assert (augment._cubic(distance, scale).double() / 2**23 - wanted).abs().max() < 2e-5


@given(threads=st.sampled_from([1, 2]), batch=st.integers(1, 7), seed=st.integers(0, 99))
def test_bicubic_is_the_same_bits_in_any_batch(threads: int, batch: int, seed: int) -> None:
    windows = [(int(n), 2, 20 + int(n), 30) for n in range(batch)]
    canvas = torch.cat([on_canvas(grain(64, 64, seed + n), 64) for n in range(batch)])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = pixels(canvas, table(windows), 24, "bicubic")
        alone = [pixels(canvas[n : n + 1], table(windows[n : n + 1]), 24, "bicubic")[0] for n in range(batch)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, torch.stack(alone))


def test_networks_share_a_views_window() -> None:
    """Each network's input is what it is alone, and what is the same for two networks is one tensor."""
    canvas, views = on_canvas(picture(61, 47), 64), table([(3, 5, 40, 30)], flip=True)
    half = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.5), interpolation="bicubic")
    networks = [NetworkInput(size_px=16), NetworkInput(size_px=24, preprocessing=half), NetworkInput(size_px=16)]
    small, large, again = apply_each(canvas, views, networks, ViewSpec())
    assert small is again
    assert torch.equal(small, apply(canvas, views, ViewSpec(size_px=16)))
    by_hand = pixels(canvas, views, 24, "bicubic").permute(0, 3, 1, 2).double() / 255
    wanted = (by_hand - 0.5) / torch.tensor([0.5, 0.25, 0.5]).view(3, 1, 1)
    assert (large - wanted).abs().max() < 1e-6


@pytest.mark.parametrize(
    "values", [{"mean": (0.5, 0.5)}, {"std": (0.2, 0.0, 0.2)}, {"mean": (123.7, 116.3, 103.5)}, {"interpolation": "nearest"}]
)
def test_a_preprocessing_that_no_image_has(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Preprocessing(**values)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("image", "window", "size"),
    [
        ((61, 47), (0, 0, 61, 47), 32),  # the full image
        ((61, 47), (60, 46, 1, 1), 32),  # one pixel, in the corner
        ((61, 47), (0, 46, 61, 1), 32),  # one column, at the edge
        ((61, 47), (60, 0, 1, 47), 32),  # one row, at the edge
        ((61, 47), (30, 20, 31, 27), 31),  # touches two edges
        ((61, 47), (3, 5, 32, 32), 32),  # not resized at all
        ((61, 47), (3, 5, 7, 9), 64),  # enlarged
        ((480, 500), (1, 2, 470, 490), 16),  # scaled down 30 times
        ((500, 12), (0, 0, 500, 12), 24),  # down one way, up the other
        ((1, 1), (0, 0, 1, 1), 16),
        ((2, 511), (0, 1, 2, 510), 7),
        ((64, 64), (0, 0, 64, 64), 1),
        ((224, 224), (0, 0, 224, 224), 224),
    ],
)
def test_hostile_windows_against_torchvision(image: tuple[int, int], window: Window, size: int, flip: bool) -> None:
    for paint in (picture, grain):
        pixel_rows = paint(*image)
        ours = pixels(on_canvas(pixel_rows, max(*image, 3)), table([window], flip), size)[0]
        assert largest_difference(ours, torchvision_crop(pixel_rows, window, size, flip)) <= 2
    if window[2:] == (size, size):
        assert torch.equal(ours, torchvision_crop(pixel_rows, window, size, flip)), "an unscaled window is a copy"
    if window[2:] == (1, 1):
        assert (ours == pixel_rows[window[0], window[1]]).all()


def test_rounding_has_no_bias() -> None:
    """Few differences beyond 1, and as many up as down: views are no darker than torchvision's."""
    gap = []
    for n in range(12):
        image, window = picture(120, 100, n), (3 * n, 2 * n, 60 + n, 40 + 3 * n)
        gap.append(pixels(on_canvas(image, 128), table([window]), 48)[0].int() - torchvision_crop(image, window, 48).int())
    # torchvision computes in integers where there is AVX2 (0.01 from ours) and in floats elsewhere (0.023).
    assert torch.stack(gap).double().mean().abs() < 0.04
    assert (torch.stack(gap).abs() > 1).double().mean() < 1e-4


@pytest.mark.parametrize("scheme", ["random", "centre", "centre_squash"])
def test_resize_then_crop_is_torchvisions_resize_and_crop(scheme: str) -> None:
    """The bound: at most 2 of 255, and beyond 1 in fewer than one value in 10,000 (torchvision rounds the full image)."""
    rng = np.random.default_rng(3)
    gaps = []
    for n in range(60):
        height, width = map(int, rng.integers(1, 120, 2))
        size = int(rng.choice([1, 5, 16, 31, 32]))
        resized = size + int(rng.integers(0, 9))
        spec = ViewSpec(scheme=scheme, size_px=size, resize_px=resized, flip=0.0)  # type: ignore[arg-type]
        image = (picture, grain)[n % 2](height, width, n)
        views = draw_views(spec, 0, 0, np.array([n]), np.array([[height, width, height, width]]))
        ours = pixels(on_canvas(image, 128), ViewTable.of(views), size)[0]
        full = F.resize(image.permute(2, 0, 1), [resized] * (2 if scheme == "centre_squash" else 1), antialias=True)
        if scheme == "random":
            steps = torch.tensor(full.shape[1:]) / torch.tensor([height, width])
            top, left = (torch.from_numpy(views.window[0, :2]) / SUBPIXELS * steps).round().int().tolist()
            theirs = F.crop(full, top, left, size, size)
        else:
            theirs = F.center_crop(full, [size, size])
        gaps.append((ours.int() - theirs.permute(1, 2, 0).int()).flatten().abs())
    gap = torch.cat(gaps)
    assert gap.max() <= 2
    assert (gap > 1).double().mean() < 1e-4


def exact_weights(start: int, length: int, low: int, high: int, size: int, side: int) -> np.ndarray:
    """The definition in plain integers: a triangle of the scale's reach, cut at the bounds, running sums rounded half up."""
    dense = np.zeros((size, side), np.int64)
    unit = 2 * size * SUBPIXELS  # one pixel
    for o in range(size):
        centre, reach = 2 * size * start + (2 * o + 1) * length, max(2 * length, unit)
        heights = [
            max(0, reach - abs(p * unit + unit // 2 - centre)) if (p + 1) * SUBPIXELS > low and p * SUBPIXELS < high else 0
            for p in range(side)
        ]
        total, running, before = sum(heights), 0, 0
        for p, value in enumerate(heights):
            running += value
            rounded = (2 * running * 2**WEIGHT_BITS + total) // (2 * total)
            dense[o, p], before = rounded - before, rounded
    return dense


def exact_pixels(canvas: np.ndarray, view: Views, size: int) -> np.ndarray:
    """One canvas [S, S, 3] through exact_weights in int64: rows, round, columns, round, flip."""
    (top, left, tall, wide), (low_y, low_x, high_y, high_x) = view.window[0].tolist(), view.bounds[0].tolist()
    rows = exact_weights(top, tall, low_y, high_y, size, len(canvas))
    columns = exact_weights(left, wide, low_x, high_x, size, len(canvas))
    half = 1 << (WEIGHT_BITS - 1)
    rowed = (np.einsum("os,swc->owc", rows, canvas.astype(np.int64)) + half) >> WEIGHT_BITS
    done = (np.einsum("os,hsc->hoc", columns, rowed) + half) >> WEIGHT_BITS
    return done[:, ::-1] if view.flip[0] else done


SPECS = [PAPER, *(replace(PAPER, scheme=scheme) for scheme in ("random", "centre", "centre_squash"))]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.scheme)
def test_pixels_are_the_integers_of_the_definition(spec: ViewSpec) -> None:
    """Bit for bit, squashed images (windows between pixels) and 1-pixel sides included."""
    spec = replace(spec, size_px=9, resize_px=11)
    sizes = [(20, 24, 20, 24), (375, 500, 24, 24), (1, 20_000, 1, 24), (3, 1, 3, 1), (1, 1, 24, 24), (7, 24, 7, 24)]
    for n, size in enumerate(sizes * 3):
        views = draw_views(spec, 1, 2, np.array([n]), np.array([size]))
        canvas = on_canvas(grain(size[2], size[3], n), 24)
        want = exact_pixels(canvas[0].numpy(), views, 9)
        assert np.array_equal(pixels(canvas, ViewTable.of(views), 9)[0].numpy(), want), size


@given(
    start=st.integers(0, 40 * SUBPIXELS),
    length=st.integers(1, 64 * SUBPIXELS),
    size=st.integers(1, 70),
    full=st.booleans(),
)
@example(start=0, length=1, size=70, full=False)
@example(start=64 * SUBPIXELS - 1, length=1, size=3, full=False)
def test_weights_sum_to_a_power_of_two(start: int, length: int, size: int, full: bool) -> None:
    side = 64
    length = max(1, min(length, side * SUBPIXELS - start))
    low, high = (0, side * SUBPIXELS) if full else (start, start + length)
    numbers = (torch.tensor([value]) for value in (start, length, low, high))
    positions, weights = augment._weights(*numbers, size, side, cubic=False)
    dense = torch.zeros(size, side).scatter_add_(1, positions[0], weights[0] * 2**WEIGHT_BITS)
    assert (dense.sum(-1) == 2**WEIGHT_BITS).all()
    assert (dense >= 0).all()
    assert torch.equal(dense, dense.round())
    assert not dense[:, : low // SUBPIXELS].any(), "nothing outside the bounds is read"
    assert not dense[:, -(-high // SUBPIXELS) :].any()
    position, weight = taps(*(torch.tensor([value]) for value in (start, length, low, high)), size, side, cubic=False)
    assert (weight.sum(-1) > 0).all()
    outside = (position < 0) | (position >= side)
    assert not weight[outside].any()
    fraction = torch.zeros(size, side, dtype=torch.float64)
    fraction.scatter_add_(1, position[0].clamp(0, side - 1), (weight[0] / weight[0].sum(-1, keepdim=True)).double())
    assert (dense / 2**WEIGHT_BITS - fraction).abs().max() <= 1.001 / 2**WEIGHT_BITS


def test_pixels_outside_the_image_are_never_read() -> None:
    """The rest of a canvas is zeros by contract; here it is white, then black: the view must not change."""
    for spec in SPECS:
        sizes = np.array([(20, 30, 20, 30), (1, 40, 1, 40), (40, 3, 40, 3), (100, 300, 15, 40)])
        views = ViewTable.of(draw_views(spec, 0, 0, np.arange(4), sizes))
        white = torch.cat([on_canvas(grain(int(h), int(w)), 40) for _, _, h, w in sizes])
        black = white.clone()
        for canvas, (_, _, height, width) in zip(black, sizes, strict=True):
            canvas[height:] = 0
            canvas[:, width:] = 0
        assert torch.equal(pixels(white, views, 32), pixels(black, views, 32))


# 10,000 (sample, view) pairs, equal by sha256 however the views are computed.


@pytest.fixture(scope="module")
def hashes_in_id_order() -> dict[tuple[int, int], bytes]:
    """In id order, batch by batch, as the cache is built."""
    hashes_by_pair = hashes(np.arange(SAMPLES), 256, at_once=False)
    assert len(hashes_by_pair) == SAMPLES * VIEWS == 10_000
    assert len(set(hashes_by_pair.values())) > 9_000, "the views are not all the same"
    return hashes_by_pair


@pytest.mark.parametrize(("batch", "threads"), [(64, 1), (64, 2), (1, 1), (333, 2)])
def test_10_000_views_in_shuffled_order(hashes_in_id_order: dict[tuple[int, int], bytes], batch: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        order = np.random.default_rng(batch).permutation(SAMPLES)[: 200 * batch]
        hashes_by_pair = hashes(order, batch)
        assert len(hashes_by_pair) == VIEWS * len(order)
        assert hashes_by_pair.items() <= hashes_in_id_order.items()
    finally:
        torch.set_num_threads(before)


def test_10_000_views_compiled(hashes_in_id_order: dict[tuple[int, int], bytes]) -> None:
    """By inductor, without a graph break."""
    make = torch.compile(pixels, fullgraph=True, dynamic=False)
    assert hashes(np.random.default_rng(1).permutation(SAMPLES), 500, make) == hashes_in_id_order


def test_golden_views(hashes_in_id_order: dict[tuple[int, int], bytes]) -> None:
    """Another processor, library or version must give the same bits; if this changes, raise augment.VERSION (or views')."""
    assert digest_of_all(hashes_in_id_order) == PLAIN_DIGEST


_PRODUCTS = "mm bmm addmm baddbmm addbmm mv addmv dot vdot linear matmul einsum convolution mkldnn_convolution"
PRODUCTS = {getattr(torch.ops.aten, name) for name in _PRODUCTS.split(" ")}


class FewerBits(TorchDispatchMode):
    """Rounds the float32 factors of every product to so many bits, as processors with bfloat16 (8) and TF32 (11) may."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.products = bits, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in PRODUCTS:
            self.products += 1
            args = tree_map_only(Tensor, self.rounded, args)
        return func(*args, **(kwargs or {}))

    def rounded(self, x: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(x)
        return torch.ldexp((mantissa * 2**self.bits).round() / 2**self.bits, exponent)


@pytest.mark.parametrize("bits", [8, 11])
def test_pixels_contain_no_product_of_reduced_precision(bits: int) -> None:
    """Emulates products of reduced precision, which only some processors use. No pixel changes: `apply` contains no product."""
    canvas, sizes = bank()
    views = ViewTable.of(draw_views(TINY, 0, 0, np.arange(64), sizes[:64]))
    want = apply(canvas[:64], views, TINY)
    with FewerBits(bits) as mode:
        short = torch.full((1, 1), 2.0**bits + 1) @ torch.ones(1, 1)
        assert short.item() == 2**bits, "the emulation rounds"
        assert torch.equal(apply(canvas[:64], views, TINY), want)
    assert mode.products == 1


PRECISIONS = {
    name: attrgetter(name)(torch.backends) if name else torch.backends
    for name in ("", "mkldnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn", "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn")
}
SWITCHES: dict[str, Callable[[], object]] = {
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "mkldnn off": lambda: torch.backends.mkldnn.set_flags(False),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "denormals": lambda: torch.set_flush_denormal(True),
    "default float64": lambda: torch.set_default_dtype(torch.float64),
    "default bfloat16": lambda: torch.set_default_dtype(torch.bfloat16),
    "one thread": lambda: torch.set_num_threads(1),
    "three threads": lambda: torch.set_num_threads(3),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
} | {
    f"{name}.fp32_precision={precision}": partial(setattr, module, "fp32_precision", precision)
    for name, module in PRECISIONS.items()
    for precision in (("tf32",) if name.startswith("cud") else ("tf32", "bf16"))
}


@pytest.fixture
def restored_settings() -> Iterator[None]:
    """Restores the settings of the process."""
    precisions = {name: module.fp32_precision for name, module in PRECISIONS.items()}
    threads, mkldnn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    yield
    torch.set_float32_matmul_precision("highest")
    for name, precision in precisions.items():
        PRECISIONS[name].fp32_precision = precision
    torch.backends.mkldnn.set_flags(mkldnn)
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)
    torch.set_autocast_enabled("cpu", False)
    torch.autograd.set_detect_anomaly(False)


@pytest.mark.usefixtures("restored_settings")
@pytest.mark.parametrize("switch", [*SWITCHES, "inference", "strided"])
def test_process_settings_change_no_bit(switch: str) -> None:
    """Of the pixels, of jitter and of normalisation."""
    canvas, sizes = bank()
    canvas, views = canvas[:64], ViewTable.of(draw_views(TINY, 0, 0, np.arange(64), sizes[:64]))
    want = apply(canvas, views, TINY)
    if switch == "strided":
        canvas = canvas.repeat_interleave(2, dim=1)[:, ::2]
    SWITCHES.get(switch, int)()
    with torch.inference_mode(switch == "inference"):
        assert torch.equal(apply(canvas, views, TINY), want)


@pytest.mark.usefixtures("restored_settings")
def test_process_settings_change_no_bit_of_compiled_views() -> None:
    canvas, sizes = bank()
    canvas, views = canvas[:64], ViewTable.of(draw_views(TINY, 0, 0, np.arange(64), sizes[:64]))
    want = apply(canvas, views, TINY)
    for switch in ("medium", "deterministic", "denormals", "autocast", "default float64", ".fp32_precision=bf16"):
        SWITCHES[switch]()
    assert torch.equal(torch.compile(apply, fullgraph=True, backend="aot_eager")(canvas, views, TINY), want)


def test_network_input_does_not_depend_on_its_batch() -> None:
    """Jitter and normalisation in float32 too: a cache is built in blocks, a live teacher runs on batches."""
    canvas, sizes = bank()
    views = ViewTable.of(draw_views(TINY, 0, 0, np.arange(SAMPLES), sizes))
    full = apply(canvas, views, TINY)
    order = torch.from_numpy(np.random.default_rng(5).permutation(SAMPLES))
    before = torch.get_num_threads()
    for batch, threads in ((1, 1), (7, 2), (64, 1), (333, 2)):
        torch.set_num_threads(threads)
        rows = order[: 20 * batch]
        parts = [apply(canvas[part], views.gather(part), TINY) for part in rows.split(batch)]
        assert torch.equal(torch.cat(parts), full[rows]), f"batch {batch}, {threads} threads"
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [16, 33, 224])
def test_larger_views_do_not_depend_on_their_batch(size: int) -> None:
    """Sizes at which sums are split over vector units and threads."""
    spec = replace(PAPER, size_px=size)
    canvas = torch.stack([picture(64, 64, n) for n in range(6)])
    views = ViewTable.of(draw_views(spec, 0, 0, np.arange(6), np.tile([64, 64, 64, 64], (6, 1))))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    full = apply(canvas, views, spec)
    torch.set_num_threads(1)
    rows = [torch.tensor([n]) for n in range(6)]
    single = [apply(canvas[row], views.gather(row), spec) for row in rows]
    torch.set_num_threads(before)
    assert torch.equal(torch.cat(single), full)


# Colour.

ADJUST = {BRIGHTNESS: F.adjust_brightness, CONTRAST: F.adjust_contrast, SATURATION: F.adjust_saturation}


def jitter_table(kinds: list[tuple[int, ...]], factors: np.ndarray) -> ViewTable:
    views = table([(0, 0, 24, 24)] * len(kinds))
    return replace(views, kind=torch.tensor(kinds, dtype=torch.int8), factor=torch.from_numpy(factors.astype(np.float32)))


def denormalised(x_BCHW: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    return x_BCHW.double() * std + mean


@pytest.mark.parametrize("order", list(permutations((BRIGHTNESS, CONTRAST, SATURATION))))
def test_jitter_is_torchvisions_in_every_order(order: tuple[int, ...]) -> None:
    factors = np.concatenate(
        [
            np.random.default_rng(sum(order)).uniform(0, 2.2, (40, 3)),
            [[0, 0, 0], [1, 1, 1], [1.4, 0.6, 1.4], [0.6, 1.4, 0.6], [0, 1, 1], [1, 0, 1], [1, 1, 0]],
        ]
    )
    views = jitter_table([order] * len(factors), factors)
    images = torch.stack([(picture, grain)[n % 2](24, 24, n) for n in range(len(factors))])
    images[0], images[1], images[2] = 0, 255, images[2] // 64 * 64
    ours = denormalised(finish(images, views, jitter=True))
    for n, image in enumerate(images):
        x = image.permute(2, 0, 1).float() / 255
        for kind, factor in zip(order, views.factor[n].tolist(), strict=True):
            x = ADJUST[kind](x, factor)
        assert (ours[n] - x).abs().max() < 1e-6, f"image {n}, factors {views.factor[n].tolist()}"


def test_orders_may_differ_within_a_batch() -> None:
    orders = list(permutations((BRIGHTNESS, CONTRAST, SATURATION)))
    views = jitter_table(orders, np.tile([1.3, 0.7, 1.2], (6, 1)))
    images = picture(24, 24).expand(6, -1, -1, -1)
    together = finish(images, views, jitter=True)
    assert len({view.numpy().tobytes() for view in together}) == 6
    for n in range(6):
        alone = finish(images[n : n + 1], views.gather(torch.tensor([n])), jitter=True)
        assert torch.equal(alone[0], together[n])


def test_no_jitter_is_normalised_pixels() -> None:
    image = grain(24, 24)[None]
    views = jitter_table([(0, 1, 2)], np.array([[0.1, 0.2, 0.3]]))
    x = finish(image, views, jitter=False)
    want = F.normalize(
        F.to_dtype(image.permute(0, 3, 1, 2), torch.float32, scale=True), list(IMAGENET.mean), list(IMAGENET.std)
    )
    assert (x - want).abs().max() < 1e-6
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(finish(image, views, jitter=False, dtype=torch.bfloat16), x.bfloat16())


def test_apply_is_pixels_then_finish() -> None:
    canvas, sizes = bank()
    views = ViewTable.of(draw_views(TINY, 0, 0, np.arange(9), sizes[:9]))
    plain = replace(TINY, brightness=0.0, contrast=0.0, saturation=0.0)
    for spec in (TINY, plain):
        want = finish(pixels(canvas[:9], views, 12), views, jitter=spec.jitters_floats)
        assert torch.equal(apply(canvas[:9], views, spec), want)
    assert not torch.equal(apply(canvas[:9], views, TINY), apply(canvas[:9], views, plain))


def test_a_table_keeps_its_types_and_gathers_rows() -> None:
    views = draw_views(PAPER, 0, 0, np.arange(5), np.tile([30, 40, 30, 40], (5, 1)))
    full, rows = ViewTable.of(views), torch.tensor([3, 3, 0])
    for name in full.tensors:
        assert torch.equal(getattr(full.gather(rows), name), getattr(full, name)[rows])
    assert [value.dtype for value in full.tensors.values()] == [
        torch.int64,
        torch.int64,
        torch.bool,
        torch.int8,
        torch.float32,
    ]
