"""A view: the crop window of an image, whether it is flipped and how its colours are jittered, as numbers.

A view is a pure function of (seed, view, sample id). There is no generator state, so a sample gets the same view with every
worker, order, rank, resumed run and backend. Everything is drawn in the geometry of the *source* image and then scaled to
the stored one; windows are integers in units of 1/65536 canvas pixel.

Letters: N samples.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from udkd.utils.errors import ConfigError, DataError
from udkd.utils.rng import F64, U64, key, uniform

VERSION = 1
"""Raise it whenever any drawn number changes: caches made with another version are refused."""

SUBPIXELS = 1 << 16
"""Window coordinates count 1/65536 of a canvas pixel."""

Scheme = Literal["random_resized", "random", "centre", "centre_squash"]

BRIGHTNESS, CONTRAST, SATURATION = 0, 1, 2
_TRIES = 10
# The position of each number in a sample's stream. A new number takes a new position, so that old ones never change.
_TRY, _FLIP, _ORDER, _FACTOR, _OFFSET = 0, 64, 65, 70, 80


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """The distribution that views are drawn from.

    scheme:    random_resized (torchvision's RandomResizedCrop) | random (short side to resize_px, random crop of size_px) |
               centre (short side to resize_px, centre crop) | centre_squash (both sides to resize_px, centre crop).
    size_px:   side of the finished view.
    resize_px: the size before the crop; random_resized does not use it.
    scale, ratio: area fraction and aspect ratio of random_resized.
    flip:      probability of a horizontal flip.
    brightness, contrast, saturation: strength s of the colour jitter; a factor is uniform in [max(0, 1-s), 1+s].
    Raises ConfigError for a value out of range.
    """

    scheme: Scheme = "random_resized"
    size_px: int = 224
    resize_px: int = 256
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        if self.scheme not in get_args(Scheme):
            raise ConfigError(f"view scheme {self.scheme!r}; expected one of {', '.join(get_args(Scheme))}; change it")
        if self.size_px < 1:
            raise ConfigError(f"size_px {self.size_px}; expected 1 or more; change it")
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ConfigError(f"{name} [{low}, {high}]; expected a smaller and a larger number above 0; change it")
        if self.scale[1] > 1:
            raise ConfigError(f"scale up to {self.scale[1]}; expected a fraction of the image, at most 1; change it")
        if self.ratio[0] < 1e-3 or self.ratio[1] > 1e3:
            raise ConfigError(f"ratio {list(self.ratio)}; expected width over height from 0.001 to 1000; change it")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"flip {self.flip}; expected a probability, 0 to 1; change it")
        if not all(0 <= strength <= 100 for strength in (self.brightness, self.contrast, self.saturation)):
            strengths = f"{self.brightness}, {self.contrast} and {self.saturation}"
            raise ConfigError(f"brightness, contrast and saturation {strengths}; expected 0 to 100; change them")
        if self.scheme != "random_resized" and self.resize_px < self.size_px:
            raise ConfigError(f"resize_px {self.resize_px} below size_px {self.size_px}; expected at least as much; raise it")

    @property
    def jitters(self) -> bool:
        """Whether colours change at all."""
        return max(self.brightness, self.contrast, self.saturation) > 0


@dataclass(frozen=True, kw_only=True)
class Views:
    """The numbers of N views.

    window: int64 [N, 4], top, left, height, width of what becomes the view, in 1/65536 canvas px; it may reach past `bounds`.
    bounds: int64 [N, 4], top, left, bottom, right: pixels that the resampling may read, in 1/65536 canvas px.
    flip:   bool [N].
    kind:   int8 [N, 3], the colour operations in the order in which they apply (BRIGHTNESS, CONTRAST, SATURATION).
    factor: float32 [N, 3], the factor of each operation of `kind`.
    """

    window: NDArray[np.int64]
    bounds: NDArray[np.int64]
    flip: NDArray[np.bool_]
    kind: NDArray[np.int8]
    factor: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.flip)


def draw_views(spec: ViewSpec, seed: int, view: int, ids: NDArray[np.int64], sizes: NDArray[np.integer]) -> Views:
    """Draw view number `view` of the samples `ids`.

    ids:   int64 [N], sample ids.
    sizes: integers [N, 4], source height, source width, stored height, stored width.
    """
    assert sizes.shape == (len(ids), 4), f"sizes {sizes.shape} for {len(ids)} ids"
    keys = np.broadcast_to(key(seed, view, np.asarray(ids, np.int64)), (len(ids),))
    source = sizes[:, :2].astype(np.int64)
    stored = sizes[:, 2:].astype(np.int64)
    window, bounds = _source_window(spec, keys, source)
    # Rounding to the nearest 1/65536 px, in integers: floor((2 a b + c) / 2 c) = round(a b / c).
    rescale = np.concatenate([stored, stored], axis=1), np.concatenate([source, source], axis=1)
    window, bounds = _scaled(window, *rescale), _scaled(bounds, *rescale)
    # A source image over 65,536 times as long as the stored one may round to nothing: keep one unit.
    bounds[:, :2] = np.minimum(bounds[:, :2], stored * SUBPIXELS - 1)
    bounds[:, 2:] = np.maximum(bounds[:, 2:], bounds[:, :2] + 1)
    window[:, 2:] = np.maximum(window[:, 2:], 1)
    return Views(
        window=window,
        bounds=bounds,
        flip=uniform(keys, _FLIP) < spec.flip,
        **_jitter(spec, keys),
    )


def _scaled(value: NDArray[np.int64], numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.int64]:
    return (2 * value * numerator + denominator) // (2 * denominator)


def _source_window(spec: ViewSpec, keys: U64, source: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Window and bounds, int64 [N, 4], in 1/65536 source px."""
    if spec.scheme == "random_resized":
        top, left, height, width = _random_resized(spec, keys, source)
        window = np.stack([top, left, height, width], axis=1) * SUBPIXELS
        # torchvision crops first and resizes then, so nothing outside the window is read.
        return window, np.concatenate([window[:, :2], window[:, :2] + window[:, 2:]], axis=1)
    resized = _resized(spec, source)
    _check_fits(spec, source, resized)
    slack = resized - spec.size_px
    if spec.scheme == "random":
        fraction = np.stack([uniform(keys, _OFFSET), uniform(keys, _OFFSET + 1)], axis=1)
        offset = np.minimum((fraction * (slack + 1)).astype(np.int64), slack)
    else:
        offset = np.rint(slack / 2).astype(np.int64)  # torchvision's center_crop rounds half to even
    start = _scaled(offset * SUBPIXELS, source, resized)
    length = _scaled(np.full_like(offset, spec.size_px * SUBPIXELS), source, resized)
    # torchvision resizes first and crops then, so pixels beside the window count.
    return np.concatenate([start, length], axis=1), np.concatenate([np.zeros_like(source), source * SUBPIXELS], axis=1)


def _check_fits(spec: ViewSpec, source: NDArray[np.int64], resized: NDArray[np.int64]) -> None:
    """Raise DataError where coordinates of an image, once resized, would not fit in 64 bits."""
    over = (2.0 * SUBPIXELS * source * np.maximum(resized, spec.size_px) >= 2.0**62).any(axis=1)
    if over.any():
        height, width = source[over][0].tolist()
        raise DataError(
            f"an image of {height:,} x {width:,} px is too long and thin to be resized to {spec.resize_px} px; "
            "expected a smaller ratio of its sides; convert without it, or lower resize_px"
        )


def _resized(spec: ViewSpec, source: NDArray[np.int64]) -> NDArray[np.int64]:
    """Height and width after torchvision's Resize, int64 [N, 2]."""
    if spec.scheme == "centre_squash":
        return np.full_like(source, spec.resize_px)
    resized: NDArray[np.int64] = spec.resize_px * source // source.min(axis=1, keepdims=True)
    return resized


def _random_resized(spec: ViewSpec, keys: U64, source: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Top, left, height, width in source pixels, as torchvision's RandomResizedCrop: ten tries, then a centre crop."""
    top, left, height, width = _centre_fallback(spec, source)
    log_low, log_high = (math.log(bound) for bound in spec.ratio)
    waiting = np.arange(len(keys))
    for attempt in range(_TRIES):
        tried_keys, size = keys[waiting], source[waiting]
        area, shape, down, across = (uniform(tried_keys, _TRY + 4 * attempt + k) for k in range(4))
        target = (size[:, 0] * size[:, 1]) * (spec.scale[0] + area * (spec.scale[1] - spec.scale[0]))
        aspect = _exp(log_low + shape * (log_high - log_low))
        w = np.rint(np.sqrt(target * aspect)).astype(np.int64)
        h = np.rint(np.sqrt(target / aspect)).astype(np.int64)
        fits = (w > 0) & (h > 0) & (h <= size[:, 0]) & (w <= size[:, 1])
        rows, w, h, size = waiting[fits], w[fits], h[fits], size[fits]
        height[rows], width[rows] = h, w
        top[rows] = (down[fits] * (size[:, 0] - h + 1)).astype(np.int64)
        left[rows] = (across[fits] * (size[:, 1] - w + 1)).astype(np.int64)
        waiting = waiting[~fits]
        if not len(waiting):
            break
    return top, left, height, width


def _centre_fallback(spec: ViewSpec, source: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    height, width = source[:, 0].copy(), source[:, 1].copy()
    shape = width / height
    tall, wide = shape < spec.ratio[0], shape > spec.ratio[1]
    height[tall] = np.rint(width[tall] / spec.ratio[0]).astype(np.int64)
    width[wide] = np.rint(height[wide] * spec.ratio[1]).astype(np.int64)
    return (source[:, 0] - height) // 2, (source[:, 1] - width) // 2, height, width


def _exp(x: F64) -> F64:
    """e**x by its series on x/16: only additions and products, as np.exp's last bit depends on the processor's vector units."""
    y = x / 16
    total, term = np.ones_like(y), np.ones_like(y)
    for n in range(1, 16):
        term = term * y / n
        total = total + term
    for _ in range(4):
        total = total * total
    return total


def _jitter(spec: ViewSpec, keys: U64) -> dict[str, NDArray]:  # type: ignore[type-arg]
    order = np.argsort(np.stack([uniform(keys, _ORDER + k) for k in range(3)], axis=1), axis=1, kind="stable")
    strengths = (spec.brightness, spec.contrast, spec.saturation)
    factors = np.stack(
        [max(0.0, 1 - s) + uniform(keys, _FACTOR + k) * (1 + s - max(0.0, 1 - s)) for k, s in enumerate(strengths)], axis=1
    )
    return {
        "kind": order.astype(np.int8),
        "factor": np.take_along_axis(factors, order, axis=1).astype(np.float32),
    }
