"""Views: torchvision's geometry in plain Python against ours, pure in (seed, view, id), inside the image always."""

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torchvision.transforms import v2

from tests.augment.distributions import ks_distance
from tests.utils.slow_hash import SlowStream
from udkd.augment.policies import Op, ViewOp
from udkd.augment.views import (
    BRIGHTNESS,
    CONTRAST,
    FIRST_FIELDS,
    OPS_VERSION,
    SATURATION,
    SUBPIXELS,
    VIEW_FIELDS,
    Views,
    ViewSpec,
    draw_views,
)
from udkd.utils import portable
from udkd.utils.errors import ConfigError

PAPER = ViewSpec(brightness=0.4, contrast=0.4, saturation=0.4)
SPECS = {
    "random_resized": PAPER,
    "random": replace(PAPER, scheme="random"),
    "centre": ViewSpec(scheme="centre", flip=0.0),
    "centre_squash": ViewSpec(scheme="centre_squash", flip=0.0),
}
ODD = [(375, 500), (500, 333), (1, 1), (1, 20_000), (20_000, 1), (224, 224), (36, 17), (255, 257)]
SIDE = st.one_of(st.integers(1, 40), st.integers(1, 20_000))


def fields(views: Views) -> list[list[object]]:
    return [getattr(views, name).tolist() for name in ("window", "bounds", "flip", "kind", "factor")]


def as_stored(sizes: list[tuple[int, int]], side: int = 0) -> np.ndarray:
    """Rows of `sizes`: stored as they are, or squashed to a side."""
    return np.array([(h, w, side or h, side or w) for h, w in sizes], np.int64)


def drawn(spec: ViewSpec, sizes: list[tuple[int, int]], seed: int = 0, view: int = 0, side: int = 0) -> Views:
    return draw_views(spec, seed, view, np.arange(len(sizes)), as_stored(sizes, side))


def slow_random_resized(spec: ViewSpec, u: SlowStream, height: int, width: int) -> tuple[int, int, int, int]:
    """torchvision.transforms.RandomResizedCrop.get_params line by line, with its draws replaced."""
    for attempt in range(10):
        target = height * width * (spec.scale[0] + u[4 * attempt] * (spec.scale[1] - spec.scale[0]))
        low, high = math.log(spec.ratio[0]), math.log(spec.ratio[1])
        aspect = math.exp(low + u[4 * attempt + 1] * (high - low))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u[4 * attempt + 2] * (height - h + 1)), int(u[4 * attempt + 3] * (width - w + 1)), h, w
    ratio = width / height
    w, h = width, height
    if ratio < spec.ratio[0]:
        h = round(w / spec.ratio[0])
    elif ratio > spec.ratio[1]:
        w = round(h * spec.ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def slow_window(spec: ViewSpec, u: SlowStream, height: int, width: int) -> tuple[Fraction, ...]:
    """Top, left, height, width in source pixels: exact."""
    if spec.scheme == "random_resized":
        return tuple(map(Fraction, slow_random_resized(spec, u, height, width)))
    short = min(height, width)
    new = [int(spec.resize_px * side / short) for side in (height, width)]  # torchvision's _compute_resized_output_size
    if spec.scheme == "centre_squash":
        new = [spec.resize_px] * 2
    if spec.scheme == "random":
        start = [int(u[80 + k] * (new[k] - spec.size_px + 1)) for k in range(2)]
    else:
        start = [round((side - spec.size_px) / 2.0) for side in new]  # torchvision's _center_crop_compute_crop_anchor
    steps = [Fraction(side, after) for side, after in zip((height, width), new, strict=True)]
    return (*(s * step for s, step in zip(start, steps, strict=True)), *(spec.size_px * step for step in steps))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("side", [0, 96])
def test_equals_torchvisions_arithmetic(name: str, side: int) -> None:
    spec = SPECS[name]
    rng = np.random.default_rng(1)
    sizes = ODD + [(int(h), int(w)) for h, w in rng.integers(1, 700, (400, 2))]
    views = drawn(spec, sizes, seed=7, view=3, side=side)
    for n, (height, width) in enumerate(sizes):
        u = SlowStream(7, 3, n)
        scale = [Fraction(side, height), Fraction(side, width)] * 2 if side else [Fraction(1)] * 4
        exact = [value * s * SUBPIXELS for value, s in zip(slow_window(spec, u, height, width), scale, strict=True)]
        # One rounding to 1/65536 px of the source's window, one of the stored one: half each.
        room = 0 if spec.scheme == "random_resized" and not side else max(Fraction(1, 2) * s + Fraction(1, 2) for s in scale)
        for got, want in zip(views.window[n].tolist(), exact, strict=True):
            assert abs(got - want) <= room, f"sample {n}, {height} x {width}"
        assert views.flip[n] == (u[64] < spec.flip)
        order = sorted(range(3), key=lambda k: u[65 + k])
        assert views.kind[n].tolist() == order
        strength = (spec.brightness, spec.contrast, spec.saturation)
        wanted = [1 - strength[k] + u[70 + k] * 2 * strength[k] for k in order]
        np.testing.assert_allclose(views.factor[n], wanted, rtol=1e-7)


GOLDEN = {
    "random_resized": (
        [[65536, 3997696, 23003136, 26607616], [0, 16775538, 65536, 1678], [1511461, 1604196, 11436721, 15173020]],
        [[65536, 3997696, 23068672, 30605312], [0, 16775538, 65536, 16777216], [1511461, 1604196, 12948182, 16777216]],
    ),
    "random": (
        [[1632000, 10570323, 21504000, 21525021], [2304, 28634690, 57344, 1468], [1880632, 1703936, 11085830, 14680064]],
        [[0, 0, 24576000, 32768000], [0, 0, 65536, 33554432], [0, 0, 16777216, 16777216]],
    ),
    "centre": (
        [[1536000, 5573443, 21504000, 21525021], [4096, 16776482, 57344, 1468], [2870438, 1048576, 11085830, 14680064]],
        [[0, 0, 24576000, 32768000], [0, 0, 65536, 33554432], [0, 0, 16777216, 16777216]],
    ),
    "centre_squash": (
        [[1536000, 2048000, 21504000, 28672000], [4096, 2097152, 57344, 29360128], [1048576, 1048576, 14680064, 14680064]],
        [[0, 0, 24576000, 32768000], [0, 0, 65536, 33554432], [0, 0, 16777216, 16777216]],
    ),
}
KIND = [[0, 2, 1], [0, 2, 1], [1, 2, 0]]
FACTOR = [
    [1.1504207849502563, 0.9037726521492004, 1.3264683485031128],
    [0.7918862700462341, 0.7771095037460327, 0.8072625398635864],
    [0.6358070969581604, 0.7231853604316711, 0.6334669589996338],
]


@pytest.mark.parametrize("name", SPECS)
def test_golden_values(name: str) -> None:
    """An ordinary image, one of 1 x 20,000 px scaled down to 512, one squashed: if these change, raise VERSION."""
    sizes = np.array([(375, 500, 375, 500), (1, 20_000, 1, 512), (333, 251, 256, 256)])
    views = draw_views(SPECS[name], 11, 2, np.array([3, 0, 99_999]), sizes)
    window, bounds = GOLDEN[name]
    flips = [False, True, True] if SPECS[name].flip else [False] * 3
    factor = FACTOR if SPECS[name].jitters else [[1.0] * 3] * 3
    assert fields(views) == [window, bounds, flips, KIND, factor]
    dtypes = [getattr(views, field).dtype for field in ("window", "bounds", "flip", "kind", "factor")]
    assert dtypes == [np.int64, np.int64, np.bool_, np.int8, np.float32]


@pytest.mark.parametrize("name", SPECS)
def test_a_samples_view_depends_on_nothing_else(name: str) -> None:
    """Independent of the other samples drawn, of their order and of the integer type of the sizes."""
    rng = np.random.default_rng(2)
    sizes = np.concatenate([rng.integers(1, 600, (300, 2))] * 2, axis=1)
    full = draw_views(SPECS[name], 5, 1, np.arange(300), sizes)
    for ids in (rng.permutation(300), rng.choice(300, 40), np.array([299]), np.zeros(0, np.int64)):
        part = draw_views(SPECS[name], 5, 1, ids, sizes[ids].astype(np.uint16))
        for field in ("window", "bounds", "flip", "kind", "factor"):
            assert np.array_equal(getattr(part, field), getattr(full, field)[ids]), field
        assert len(part) == len(ids)


def test_new_process_new_order_same_views() -> None:
    program = (
        "import hashlib; import numpy as np; from udkd.augment.views import *; np.random.seed(1)\n"
        "spec = ViewSpec(brightness=0.4, contrast=0.4, saturation=0.4)\n"
        "views = draw_views(spec, 3, 4, np.arange(500)[::-1], np.tile([300, 400, 300, 400], (500, 1)))\n"
        "for name in ('window', 'flip', 'kind', 'factor'):\n"
        "    print(hashlib.sha256(np.ascontiguousarray(getattr(views, name)[::-1])).hexdigest())"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    views = drawn(PAPER, [(300, 400)] * 500, seed=3, view=4)
    assert output.split() == [hashlib.sha256(getattr(views, name)).hexdigest() for name in ("window", "flip", "kind", "factor")]


def test_seed_view_and_id_all_matter() -> None:
    base = fields(drawn(PAPER, [(300, 400)] * 20, seed=0, view=0))
    assert fields(drawn(PAPER, [(300, 400)] * 20, seed=1, view=0)) != base
    assert fields(drawn(PAPER, [(300, 400)] * 20, seed=0, view=1)) != base
    assert len({tuple(row) for row in base[0]}) == 20


def test_drawing_touches_no_global_generator() -> None:
    before = np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    drawn(PAPER, ODD)
    assert before == (np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes())


@given(height=SIDE, width=SIDE, side=st.integers(0, 512), name=st.sampled_from(sorted(SPECS)), seed=st.integers(0, 2**63 - 1))
@example(height=1, width=1, side=0, name="random_resized", seed=0)
@example(height=1, width=20_000, side=512, name="random", seed=0)
@example(height=20_000, width=1, side=64, name="centre", seed=0)
def test_every_window_is_inside(height: int, width: int, side: int, name: str, seed: int) -> None:
    spec = SPECS[name]
    stored = (side or height, side or width)
    ids = np.arange(20)
    views = draw_views(spec, seed, 0, ids, np.tile([height, width, *stored], (20, 1)))
    top, left, tall, wide = views.window.T
    low_y, low_x, high_y, high_x = views.bounds.T
    limit = np.array(stored) * SUBPIXELS
    assert (tall > 0).all()
    assert (wide > 0).all()
    assert (views.bounds >= 0).all()
    assert (high_y <= limit[0]).all()
    assert (high_x <= limit[1]).all()
    # Rounding start and length separately may reach one 1/65536 px further than their sum.
    for start, length, low, high in ((top, tall, low_y, high_y), (left, wide, low_x, high_x)):
        assert (low <= start).all()
        assert (start + length <= high + 1).all()
        # Every output pixel's centre is within the readable area, so every output pixel has something to read.
        centres = (2 * np.arange(spec.size_px) + 1) * length[:, None] + 2 * spec.size_px * start[:, None]
        assert (centres >= 2 * spec.size_px * low[:, None]).all()
        assert (centres <= 2 * spec.size_px * high[:, None]).all()


@pytest.mark.parametrize(("height", "width", "count"), [(375, 500, 4_000), (64, 64, 1_500), (40, 700, 1_500)])
def test_windows_are_distributed_like_torchvisions(height: int, width: int, count: int) -> None:
    """Also where most tries fail (40 x 700: the fallback is drawn often)."""
    crop = v2.RandomResizedCrop(224)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = torch.empty(3, height, width, device="meta")
        theirs = np.array([list(crop.make_params([image]).values()) for _ in range(count)])
    ours = drawn(ViewSpec(), [(height, width)] * (10 * count)).window // SUBPIXELS
    for column, name in enumerate(("top", "left", "height", "width")):
        # 1.95 sqrt((n + m) / nm): a chance of one in a thousand.
        assert ks_distance(ours[:, column], theirs[:, column]) < 1.95 * (1.1 / count) ** 0.5, name
    assert ks_distance(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3]) < 1.95 * (1.1 / count) ** 0.5


def test_flip_and_jitter_are_distributed_as_they_should_be() -> None:
    count = 60_000
    views = drawn(replace(PAPER, flip=0.3, contrast=1.5, saturation=0.1), [(9, 9)] * count)
    assert abs(views.flip.mean() - 0.3) < 5 * (0.21 / count) ** 0.5
    orders, shares = np.unique(views.kind, axis=0, return_counts=True)
    assert len(orders) == 6
    assert np.abs(shares / count - 1 / 6).max() < 5 * (5 / 36 / count) ** 0.5
    # torchvision's ColorJitter draws from [max(0, 1 - s), 1 + s].
    jitter = v2.ColorJitter(brightness=0.4, contrast=1.5, saturation=0.1)
    for kind, bounds in ((BRIGHTNESS, jitter.brightness), (CONTRAST, jitter.contrast), (SATURATION, jitter.saturation)):
        factor = views.factor[views.kind == kind]
        assert len(factor) == count
        assert bounds[0] <= factor.min()
        assert factor.max() <= np.float32(bounds[1])
        assert ks_distance(factor, np.linspace(*bounds, count)) < 1.95 * (2 / count) ** 0.5
    window = views.window[:, 0].astype(float)
    for other in (views.flip, views.factor[:, 0], views.kind[:, 0]):
        assert abs(np.corrcoef(window, other)[0, 1]) < 5 / count**0.5, "independent of the window"


def test_random_crops_reach_every_offset_evenly() -> None:
    spec = replace(SPECS["random"], size_px=4, resize_px=8)
    window = drawn(spec, [(8, 10)] * 30_000).window
    for column, offsets in ((0, 5), (1, 7)):
        places, counts = np.unique(window[:, column], return_counts=True)
        assert places.tolist() == [n * SUBPIXELS for n in range(offsets)]
        assert np.abs(counts * offsets / 30_000 - 1).max() < 0.1


def ramp(height: int, width: int) -> torch.Tensor:
    """An image whose values are the coordinates: float64 [2, H, W], y and x of pixel centres."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([y, x]).double()


@pytest.mark.parametrize("name", ["centre", "centre_squash"])
@pytest.mark.parametrize("size", [(375, 500), (500, 375), (333, 251), (64, 64), (61, 200), (300, 301)])
def test_centre_windows_match_torchvision(name: str, size: tuple[int, int]) -> None:
    """Resize and CenterCrop of a ramp show where each output pixel's centre is in the source (edges bend the ramp)."""
    spec = replace(SPECS[name], size_px=64, resize_px=74)
    resize = v2.Resize([74, 74] if name == "centre_squash" else 74, antialias=True)
    seen = v2.CenterCrop(64)(resize(ramp(*size)))[:, 4:-4, 4:-4]
    top, left, height, width = (drawn(spec, [size]).window[0] / SUBPIXELS).tolist()
    steps = (torch.arange(64) + 0.5)[4:-4] / 64
    # The filter's sampling bends the ramp by up to 0.05; a shift by one output pixel would be at least 0.8.
    np.testing.assert_allclose(seen[0, :, 0], top + steps * height, atol=0.06)
    np.testing.assert_allclose(seen[1, 0], left + steps * width, atol=0.06)


def test_the_fallback_is_torchvisions_centre() -> None:
    """Where no try can fit, the window is RandomResizedCrop's fallback: the widest that keeps to the ratio."""
    spec = ViewSpec(scale=(0.9, 1.0), ratio=(0.8, 1.2))
    for height, width in ((10, 900), (900, 10), (1, 20_000), (20_000, 1), (1, 3), (7, 16)):
        image = torch.empty(3, height, width, device="meta")
        with torch.random.fork_rng():
            theirs = v2.RandomResizedCrop(224, scale=(0.9, 1.0), ratio=(0.8, 1.2)).make_params([image])
        window = drawn(spec, [(height, width)] * 50).window
        assert (window == np.array(list(theirs.values())) * SUBPIXELS).all(), f"{height} x {width}"


def test_exp_is_math_exp() -> None:
    x = np.concatenate([np.linspace(-3, 3, 20_001), [0.0, math.log(3 / 4), math.log(4 / 3), 5e-324, -1e-17]])
    exact = np.array([math.exp(value) for value in x])
    assert np.abs(portable.exp(x) / exact - 1).max() < 1e-14
    assert (portable.exp(np.zeros(3)) == 1).all()
    assert all(one < other for one, other in pairwise(portable.exp(np.linspace(-3, 3, 1000))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "center"}, "view scheme 'center'; expected one of random_resized, random, centre, centre_squash"),
        ({"scheme": "random", "resize_px": 223}, "resize_px 223 below size_px 224; expected at least as much; raise it"),
        ({"scheme": "centre", "resize_px": 1}, "resize_px 1 below size_px 224"),
        ({"scheme": None}, "scheme None; expected a name, such as 'random_resized'"),
        ({"size_px": 0}, "size_px 0; expected 1 or more"),
        ({"size_px": 64.0}, "size_px 64.0; expected a whole number, such as 224"),
        ({"flip": "half"}, "flip 'half'; expected a number, such as 0.5"),
        ({"flip": float("nan")}, "flip nan; expected a probability, 0 to 1"),
        ({"scale": (0.5,)}, "scale (0.5,); expected 2 numbers, such as [0.08, 1.0]"),
        ({"scale": 0.5}, "scale 0.5; expected 2 numbers"),
        ({"ratio": (0.5, "1")}, "ratio (0.5, '1'); expected 2 numbers"),
        ({"brightness": -0.1}, "brightness, contrast and saturation -0.1, 0.0 and 0.0; expected 0 to 100"),
        ({"policy": "randaugment"}, "policy 'randaugment'; expected one of none, rand_augment, timm_rand_augment,"),
        ({"policy_ops": 0}, "policy_ops 0; expected 1 to 8"),
        ({"policy_ops": 9}, "policy_ops 9; expected 1 to 8"),
        ({"policy_ops": 1.5}, "policy_ops 1.5; expected a whole number, such as 2"),
        ({"policy_magnitude": 30.5}, "policy_magnitude 30.5; expected 0 to 30"),
        ({"policy_magnitude": -1}, "policy_magnitude -1; expected 0 to 30"),
        (
            {"policy": "timm_rand_augment", "policy_magnitude": 15},
            "policy_magnitude 15 of timm_rand_augment; expected 0 to 10; change it",
        ),
        ({"policy_spread": -0.5}, "policy_spread -0.5; expected 0 to 100"),
        ({"policy_spread": float("inf")}, "policy_spread inf; expected 0 to 100"),
        ({"warp": "bicubic"}, "warp 'bicubic'; expected one of nearest, bilinear"),
        ({"fill": (0, 0)}, "fill (0, 0); expected 3 whole numbers, such as [0, 0, 0]"),
        ({"fill": 128}, "fill 128; expected 3 whole numbers"),
        ({"fill": (0.5, 0.5, 0.5)}, "fill (0.5, 0.5, 0.5); expected 3 whole numbers"),
        ({"fill": (0, 256, 0)}, "fill [0, 256, 0]; expected red, green and blue from 0 to 255"),
        ({"jitter": "int8"}, "jitter 'int8'; expected one of float, uint8"),
        ({"jitter": "uint8", "hue": 0.51}, "hue 0.51; expected 0 to 0.5"),
        ({"hue": 0.1}, 'hue 0.1 and jitter "float"; expected jitter "uint8", which has a hue'),
        (
            {"jitter": "uint8", "contrast": 7},
            'brightness, contrast and saturation 0.0, 7 and 0.0 and jitter "uint8"; expected at',
        ),
        *(
            ({"brightness": 0.4, **other}, 'jitter is "float" and comes last, after policy, ops, erase_prob, mixup or cutmix')
            for other in (
                {"policy": "auto_augment"},
                {"ops": (ViewOp(op="invert"),)},
                {"erase_prob": 0.1},
                {"mixup": 0.1},
                {"cutmix": 1.0},
            )
        ),
        ({"ops": ("invert",)}, "ops ('invert',); expected a tuple of ViewOp"),
        ({"ops": ViewOp(op="invert")}, "ops ViewOp("),
        ({"ops": (ViewOp(op="invert"),) * 17}, "17 ops; expected at most 16; leave some out"),
        ({"erase_prob": 1.5}, "erase_prob 1.5; expected 0 to 1"),
        ({"erase_area": (0.0, 0.3)}, "erase_area [0.0, 0.3]; expected two rising fractions above 0, up to 1"),
        ({"erase_area": (0.3, 0.2)}, "erase_area [0.3, 0.2]; expected two rising"),
        ({"erase_area": (0.3, 1.2)}, "erase_area [0.3, 1.2]; expected two rising"),
        ({"erase_area": (0.3,)}, "erase_area (0.3,); expected 2 numbers, such as [0.02, 0.33]"),
        ({"erase_ratio": (3.3, 0.3)}, "erase_ratio [3.3, 0.3]; expected two rising numbers, 0.001 to 1000"),
        ({"erase_ratio": (0.0, 3.3)}, "erase_ratio [0.0, 3.3]; expected two rising"),
        ({"erase_fill": "random"}, "erase_fill 'random'; expected one of mean, noise"),
        ({"mixup": 2.1}, "mixup 2.1; expected 0 to 2"),
        ({"cutmix": -1.0}, "cutmix -1.0; expected 0 to 2"),
        ({"mix_prob": 1.1}, "mix_prob 1.1; expected 0 to 1"),
        ({"mix_switch_prob": float("nan")}, "mix_switch_prob nan; expected 0 to 1"),
        ({"policy": "auto_augment", "size_px": 8193}, "size_px 8193 and operations; expected at most 8192"),
    ],
)
def test_impossible_specs_are_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(ViewSpec(), **changes)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_squashed_image_shows_the_content_of_the_source() -> None:
    """Windows are drawn in the source's geometry: the same fraction of the stored image, whatever its side."""
    size = (375, 500)
    full = drawn(PAPER, [size] * 200)
    squashed = drawn(PAPER, [size] * 200, side=96)
    scale = np.array([96 / 375, 96 / 500] * 2)
    assert np.abs(squashed.window - full.window * scale).max() <= 0.5 + 1e-6
    assert np.array_equal(squashed.flip, full.flip)
    assert np.array_equal(squashed.factor, full.factor)


# Specs as keys.

OPS = (ViewOp(op="blur", prob=0.1, low=0.1, high=2.0), ViewOp(op="grayscale", prob=0.2))
CHANGES: dict[str, object] = {
    "policy": "rand_augment",
    "policy_ops": 3,
    "policy_magnitude": 7.5,
    "policy_spread": 0.5,
    "warp": "bilinear",
    "fill": (124, 116, 104),
    "jitter": "uint8",
    "ops": OPS,
    "erase_prob": 0.25,
    "erase_area": (0.02, 0.4),
    "erase_ratio": (0.3, 3.0),
    "erase_fill": "noise",
    "mixup": 0.8,
    "cutmix": 1.0,
    "mix_prob": 0.9,
    "mix_switch_prob": 0.4,
}


@pytest.mark.parametrize("name", SPECS)
def test_the_key_of_an_old_spec_is_the_old_key(name: str) -> None:
    """As caches of views version 1 have it: nine fields, nothing else, in this order."""
    spec = SPECS[name]
    old = {
        "scheme": spec.scheme,
        "size_px": 224,
        "resize_px": 256,
        "scale": (0.08, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "flip": spec.flip,
        "brightness": spec.brightness,
        "contrast": spec.contrast,
        "saturation": spec.saturation,
    }
    assert list(spec.key_values.items()) == list(old.items())
    assert tuple(old) == FIRST_FIELDS == VIEW_FIELDS[:9]
    assert ViewSpec.from_key_values(json.loads(json.dumps(old))) == spec
    assert spec.row_ops == ()
    assert not spec.later_fields
    assert not spec.erases
    assert not spec.mixes
    views = drawn(spec, [(9, 9)])
    assert [field for field, value in vars(views).items() if value is None] == [
        *("op", "magnitude", "erase_box", "noise_key", "partner", "blend", "mix_box", "share")
    ]


@pytest.mark.parametrize("changed", [*([name] for name in CHANGES), ["jitter", "hue"], [*CHANGES, "hue"]])
def test_a_new_specs_key_round_trips(changed: list[str]) -> None:
    """Through JSON; only the fields that are not at their default are named, with the version of their numbers and pixels."""
    changes = CHANGES | {"hue": 0.1}
    spec = replace(ViewSpec(), **{name: changes[name] for name in changed})  # type: ignore[arg-type]
    assert set(spec.key_values) == {*FIRST_FIELDS, *changed, "ops_version"}
    assert spec.key_values["ops_version"] == OPS_VERSION
    assert set(spec.key_values) <= set(VIEW_FIELDS)
    again = ViewSpec.from_key_values(json.loads(json.dumps(spec.key_values)))
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.key_values == spec.key_values
    assert spec != ViewSpec()
    assert replace(spec, size_px=96).key_values == spec.key_values | {"size_px": 96}


def test_lists_are_tuples() -> None:
    """A spec is a key of dictionaries."""
    lists = ViewSpec(fill=[1, 2, 3], ops=list(OPS), erase_area=[0.02, 0.4], scale=[0.2, 1.0])  # type: ignore[arg-type]
    tuples = ViewSpec(fill=(1, 2, 3), ops=OPS, erase_area=(0.02, 0.4), scale=(0.2, 1.0))
    assert lists == tuples
    assert hash(lists) == hash(tuples)


def test_numpys_numbers_are_pythons() -> None:
    """The key of a cache is JSON."""
    op = ViewOp(op="rotate", prob=np.float32(0.5), low=np.int64(-9), high=np.int16(9))  # type: ignore[arg-type]
    spec = ViewSpec(size_px=np.int64(32), flip=np.float32(0.5), fill=[*np.array([1, 2, 3])], ops=(op,))  # type: ignore[arg-type]
    same = ViewSpec(size_px=32, fill=(1, 2, 3), ops=(ViewOp(op="rotate", prob=0.5, low=-9, high=9),))
    assert spec == same
    assert json.dumps(spec.key_values) == json.dumps(same.key_values)


def test_properties_follow_the_fields() -> None:
    spec = ViewSpec(jitter="uint8", brightness=0.4, hue=0.1)
    assert spec.jitters
    assert not spec.jitters_floats
    assert spec.row_ops == ((Op.BRIGHTNESS, Op.HUE),) * 2
    assert PAPER.jitters_floats
    assert ViewSpec(jitter="uint8", hue=0.1).row_ops == ((Op.HUE,),)
    assert ViewSpec(policy="three_augment").blur_radius == 6
    assert ViewSpec(ops=(ViewOp(op="blur", low=0.1, high=1.1),)).blur_radius == 4
    assert replace(PAPER, brightness=0, contrast=0, saturation=0).blur_radius == 0
    assert ViewSpec(mixup=0.8).mixes
    assert ViewSpec(cutmix=0.8).mixes
    assert not ViewSpec(cutmix=0.8, mix_prob=0.0).mixes
    assert not ViewSpec(erase_area=(0.1, 0.2)).erases


def test_later_fields_change_no_earlier_number() -> None:
    """Crop, flip and jitter are the same beside any operation."""
    later = replace(ViewSpec(), **CHANGES, hue=0.1, brightness=0.4, contrast=0.4, saturation=0.4)  # type: ignore[arg-type]
    ids = np.arange(50)
    views = draw_views(later, 3, 4, ids, as_stored([(300, 400)] * 50), ids[::-1])
    assert fields(views) == fields(drawn(PAPER, [(300, 400)] * 50, seed=3, view=4))
