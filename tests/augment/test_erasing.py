"""Erased boxes: torchvision's RandomErasing in plain Python and by its distributions."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomErasing as RandomErasingV1
from torchvision.transforms import v2

from tests.augment.distributions import assert_frequencies, assert_same_distribution
from tests.utils.slow_hash import SlowStream
from udkd.augment.erasing import BOX_BITS, box_fractions, draw_erasing
from udkd.augment.views import ViewSpec
from udkd.utils.rng import key

DEFAULTS: dict[str, Any] = {"area": (0.02, 0.33), "ratio": (0.3, 3.3)}
RANGES = [
    (224, DEFAULTS),
    (32, DEFAULTS),
    (7, DEFAULTS),
    (1, DEFAULTS),
    (2, {"area": (0.001, 1.0), "ratio": (0.001, 1000.0)}),
    (48, {"area": (0.9, 1.0), "ratio": (0.2, 5.0)}),  # most tries fail
    (48, {"area": (0.0001, 0.001), "ratio": (0.3, 3.3)}),  # many boxes are empty
    (100, {"area": (0.1, 0.1), "ratio": (1.0, 1.0)}),
]


def in_pixels(box: np.ndarray, size_px: int) -> np.ndarray:
    """As udkd.augment.operations.inside rounds."""
    return (box.astype(np.int64) * size_px + (1 << (BOX_BITS - 1))) >> BOX_BITS


def drawn(count: int, size_px: int, prob: float = 1.0, **ranges: Any) -> np.ndarray:
    """Boxes in pixels, int64 [N, 4]."""
    box, noise = draw_erasing(key(3, 1, np.arange(count)), prob=prob, size_px=size_px, **ranges)
    assert (box.dtype, noise.dtype, box.shape, noise.shape) == (np.int32, np.int64, (count, 4), (count,))
    return in_pixels(box, size_px)


def slow_erasing(u: SlowStream, size_px: int, area: tuple[float, float], ratio: tuple[float, float]) -> list[int]:
    """torchvision.transforms.RandomErasing.get_params line by line, with its draws replaced."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(10):
        fraction, shape, down, across = (u[404 + 4 * attempt + k] for k in range(4))
        erase_area = size_px * size_px * (area[0] + fraction * (area[1] - area[0]))
        aspect = math.exp(low + shape * (high - low))
        h, w = round(math.sqrt(erase_area * aspect)), round(math.sqrt(erase_area / aspect))
        if not (h < size_px and w < size_px):
            continue
        top, left = int(down * (size_px - h + 1)), int(across * (size_px - w + 1))
        return [top, left, top + h, left + w]
    return [0, 0, 0, 0]


@pytest.mark.parametrize(("size_px", "ranges"), RANGES)
def test_boxes_are_torchvisions_line_by_line(size_px: int, ranges: dict[str, Any]) -> None:
    boxes = drawn(400, size_px, **ranges)
    assert boxes.tolist() == [slow_erasing(SlowStream(3, 1, n), size_px, **ranges) for n in range(400)]


@pytest.mark.parametrize(("size_px", "ranges"), RANGES)
def test_boxes_are_inside_and_smaller_than_the_view(size_px: int, ranges: dict[str, Any]) -> None:
    top, left, bottom, right = drawn(20_000, size_px, **ranges).T
    for low, high in ((top, bottom), (left, right)):
        assert (low >= 0).all()
        assert (high >= low).all()
        assert (high <= size_px).all()
        assert (high - low < size_px).all()


@pytest.mark.parametrize(("size_px", "ranges"), [RANGES[0], RANGES[1], RANGES[5]])
def test_boxes_are_distributed_as_torchvisions(size_px: int, ranges: dict[str, Any]) -> None:
    """Height, width, place, area and ratio; and how often ten tries fail."""
    count = 2_500
    theirs = v2.RandomErasing(p=1.0, scale=ranges["area"], ratio=ranges["ratio"])
    image = torch.empty(3, size_px, size_px, device="meta")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [theirs.make_params([image]) for _ in range(count)]
    wanted = np.array([[0] * 4 if p["v"] is None else [p["i"], p["j"], p["i"] + p["h"], p["j"] + p["w"]] for p in params])
    ours = drawn(10 * count, size_px, **ranges)
    failed = (wanted[:, 2] == 0).mean()
    assert_frequencies((ours[:, 2] == 0).astype(int)[:count], np.array([1 - failed, failed]))
    for box_of in (
        lambda box: box[:, 2] - box[:, 0],
        lambda box: box[:, 3] - box[:, 1],
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
        lambda box: (box[:, 2] - box[:, 0] + 0.5) / (box[:, 3] - box[:, 1] + 0.5),
    ):
        assert_same_distribution(box_of(ours), box_of(wanted))


def test_the_defaults_are_torchvisions() -> None:
    for theirs in (v2.RandomErasing(), RandomErasingV1()):
        assert (ViewSpec().erase_area, ViewSpec().erase_ratio) == (theirs.scale, theirs.ratio)


@pytest.mark.parametrize("prob", [0.0, 0.25, 1.0])
def test_probability(prob: float) -> None:
    erased = drawn(60_000, 224, prob, **DEFAULTS)[:, 2] > 0
    assert_frequencies(erased.astype(int), np.array([1 - prob, prob]))


def test_a_box_does_not_depend_on_the_probability_or_on_other_samples() -> None:
    keys = key(0, 0, np.arange(3_000))
    full, noise = draw_erasing(keys, prob=1.0, size_px=64, **DEFAULTS)
    some, same_noise = draw_erasing(keys[::-1], prob=0.3, size_px=64, **DEFAULTS)
    some, same_noise = some[::-1], same_noise[::-1]
    assert np.array_equal(noise, same_noise)
    assert np.array_equal(some[some[:, 2] > 0], full[some[:, 2] > 0])
    assert 700 < (some[:, 2] > 0).sum() < 1_100


def test_noise_keys_are_32_bits_and_spread() -> None:
    _, noise = draw_erasing(key(0, 0, np.arange(50_000)), prob=0.0, size_px=64, **DEFAULTS)
    assert noise.min() >= 0
    assert noise.max() < 1 << 32
    assert len(np.unique(noise)) > 49_990
    assert_same_distribution(noise / 2**32, np.linspace(0, 1, 50_000))


@pytest.mark.parametrize("size_px", [1, 2, 3, 7, 224, 331, 8191, 8192])
def test_fractions_of_the_side_give_the_same_pixels(size_px: int) -> None:
    pixels = np.arange(size_px + 1)
    assert np.array_equal(in_pixels(box_fractions(pixels, size_px), size_px), pixels)
    # In another size: to the nearest pixel, up to the rounding to 2**-16 of the side.
    other = in_pixels(box_fractions(pixels, size_px), 384)
    assert np.abs(other - pixels * 384 / size_px).max() <= 0.5 + 384 / 2**17
