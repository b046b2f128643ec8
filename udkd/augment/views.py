"""Draws views as numbers: crop window, flip, colour jitter, operations, the erased box, and the sample it is mixed with.

A view is a pure function of (seed, view, sample id). There is no generator state, so a sample gets the same view whatever the
worker, order, rank and backend, also in a resumed run. Everything is drawn in the geometry of the *source* image and then
scaled to the stored one; windows are integers in units of 1/65536 canvas pixel.

Letters: N samples.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from udkd.augment.erasing import EraseFill, draw_erasing
from udkd.augment.mixing import draw_mixing
from udkd.augment.policies import MAX_OPS, MAX_POLICY_OPS, Op, Policy, PolicySettings, ViewOp, draw_ops, plain, row_ops
from udkd.utils.errors import ConfigError, DataError
from udkd.utils.portable import exp
from udkd.utils.rng import U64, key, uniform

VERSION = 1
"""Raise it whenever any drawn number changes: caches made with another version are refused."""

OPS_VERSION = 1
"""The same for the fields of ViewSpec that came after VERSION 1, from `policy` on: raise it whenever a number or a pixel of
theirs changes. It is part of a cache's key only where one of these fields is set."""

MAX_OPS_PX = 8192
"""Side of a view with operations, at most: their coordinates are 32-bit integers."""

SUBPIXELS = 1 << 16
"""Window coordinates count 1/65536 of a canvas pixel."""

Scheme = Literal["random_resized", "random", "centre", "centre_squash"]
Warp = Literal["nearest", "bilinear"]
Jitter = Literal["float", "uint8"]

BRIGHTNESS, CONTRAST, SATURATION = 0, 1, 2
_TRIES = 10
# The position of each drawn number in a sample's stream. A new kind of number takes a new position: the others must not change.
_TRY, _FLIP, _ORDER, _FACTOR, _OFFSET = 0, 64, 65, 70, 80


def _check_type(name: str, value: object, default: object) -> None:
    """Raise ConfigError unless a field's value is of the kind of its default: a name, a number, or as many numbers."""
    if name == "ops":
        good, expected = isinstance(value, tuple) and all(isinstance(each, ViewOp) for each in value), "a tuple of ViewOp"
    elif isinstance(default, tuple):
        kind = Integral if isinstance(default[0], int) else Real
        good = isinstance(value, tuple) and len(value) == len(default) and all(isinstance(each, kind) for each in value)
        expected = f"{len(default)} {'whole ' * (kind is Integral)}numbers, such as {list(default)}"
    elif isinstance(default, str):
        good, expected = isinstance(value, str), f"a name, such as {default!r}"
    elif isinstance(default, int):
        good, expected = isinstance(value, Integral), f"a whole number, such as {default}"
    else:
        good, expected = isinstance(value, Real), f"a number, such as {default}"
    if not good:
        raise ConfigError(f"{name} {value!r}; expected {expected}; change it")


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

    What follows is computed in integers, on the uint8 view, in this order:

    policy:    rand_augment, trivial_augment_wide, auto_augment (torchvision's classes; auto_augment is its ImageNet policy),
               timm_rand_augment (timm's rand-mM-mstdS-inc1) or three_augment (DeiT III). policy_ops: operations per view of
               the two RandAugments. policy_magnitude: theirs, of 30 in torchvision's and of 10 in timm's. policy_spread: the
               standard deviation of the magnitude, timm's mstd; 0 for none.
    warp:      interpolation of rotations, shears and translations. fill: red, green and blue of what they uncover, 0 to 255.
    jitter:    "float": brightness, contrast and saturation are computed in float32, and nothing else follows them; "uint8": in
               integers. hue: strength of the hue's jitter, in turns, of jitter "uint8".
    ops:       further operations, one after the other.
    erase_prob: probability that a box is erased (torchvision's RandomErasing). erase_area, erase_ratio: its area fraction, and
               its height over its width. erase_fill: "mean", ImageNet's mean colour, or "noise", normal with its mean and
               deviation.
    mixup, cutmix: the parameter alpha of the Beta distribution that a sample's own share is drawn from; 0 for none. Samples are
               mixed in pairs. mix_prob: probability that a pair is mixed. mix_switch_prob: that CutMix does it, where both are
               set.

    Boxes and translations are fractions of the side: a view in another size shows the same. Lists become tuples.
    Raises ConfigError for a value of the wrong type or out of range.
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
    policy: Policy = "none"
    policy_ops: int = 2
    policy_magnitude: float = 9.0
    policy_spread: float = 0.0
    warp: Warp = "nearest"
    fill: tuple[int, int, int] = (0, 0, 0)
    jitter: Jitter = "float"
    hue: float = 0.0
    ops: tuple[ViewOp, ...] = ()
    erase_prob: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.33)
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    erase_fill: EraseFill = "mean"
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch_prob: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = plain(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            _check_type(field.name, value, field.default)
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
        self._check_later_fields()
        # Not a cached_property: it has a lock in Python 3.11, which torch.compile cannot trace.
        object.__setattr__(self, "_row_ops", row_ops(self._policy_settings))

    def _check_later_fields(self) -> None:
        """The fields from `policy` on."""
        for name, allowed in (("policy", Policy), ("warp", Warp), ("jitter", Jitter), ("erase_fill", EraseFill)):
            if getattr(self, name) not in get_args(allowed):
                found = getattr(self, name)
                raise ConfigError(f"{name} {found!r}; expected one of {', '.join(get_args(allowed))}; change it")
        top, whose = (10, " of timm_rand_augment") if self.policy == "timm_rand_augment" else (30, "")
        later = asdict(self)
        for name, low, high in (
            ("policy_ops", 1, MAX_POLICY_OPS),
            ("policy_magnitude", 0, top),
            ("policy_spread", 0, 100),
            ("hue", 0, 0.5),
            ("erase_prob", 0, 1),
            ("mixup", 0, 2),
            ("cutmix", 0, 2),
            ("mix_prob", 0, 1),
            ("mix_switch_prob", 0, 1),
        ):
            if not low <= later[name] <= high:
                extra = whose if name == "policy_magnitude" else ""
                raise ConfigError(f"{name} {later[name]}{extra}; expected {low} to {high}; change it")
        if not all(0 <= value <= 255 for value in self.fill):
            raise ConfigError(f"fill {list(self.fill)}; expected red, green and blue from 0 to 255; change it")
        if not 0 < self.erase_area[0] <= self.erase_area[1] <= 1:
            raise ConfigError(f"erase_area {list(self.erase_area)}; expected two rising fractions above 0, up to 1; change it")
        if not 1e-3 <= self.erase_ratio[0] <= self.erase_ratio[1] <= 1e3:
            raise ConfigError(f"erase_ratio {list(self.erase_ratio)}; expected two rising numbers, 0.001 to 1000; change it")
        if len(self.ops) > MAX_OPS:
            raise ConfigError(f"{len(self.ops)} ops; expected at most {MAX_OPS}; leave some out")
        if self.jitter == "float" and self.jitters and (self.policy != "none" or self.ops or self.erases or self.mixes):
            raise ConfigError(
                'jitter is "float" and comes last, after policy, ops, erase_prob, mixup or cutmix; expected "uint8" beside '
                'them; set jitter to "uint8", or brightness, contrast and saturation to 0'
            )
        if self.jitter == "float" and self.hue:
            raise ConfigError(f'hue {self.hue} and jitter "float"; expected jitter "uint8", which has a hue; set it')
        if self.jitter == "uint8" and max(self.brightness, self.contrast, self.saturation) > 6.9:
            raise ConfigError(
                f"brightness, contrast and saturation {self.brightness}, {self.contrast} and {self.saturation} and jitter "
                '"uint8"; expected at most 6.9, so that factors are below 8; lower them'
            )
        if self.later_fields and self.size_px > MAX_OPS_PX:
            raise ConfigError(f"size_px {self.size_px} and operations; expected at most {MAX_OPS_PX}; lower it")

    @property
    def jitters(self) -> bool:
        """Whether brightness, contrast and saturation change."""
        return max(self.brightness, self.contrast, self.saturation) > 0

    @property
    def jitters_floats(self) -> bool:
        """Whether colours are jittered in float32, after everything else."""
        return self.jitter == "float" and self.jitters

    @property
    def erases(self) -> bool:
        """Whether boxes are erased."""
        return self.erase_prob > 0

    @property
    def mixes(self) -> bool:
        """Whether pairs of samples are mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_prob > 0

    @property
    def row_ops(self) -> tuple[tuple[Op, ...], ...]:
        """The operations that each row of a view can hold, see udkd.augment.policies.row_ops; empty without rows."""
        rows: tuple[tuple[Op, ...], ...] = self._row_ops  # type: ignore[attr-defined]
        return rows

    @property
    def blur_radius(self) -> int:
        """How many pixels a blur reaches: three times the largest sigma."""
        largest = [each.high for each in self.ops if each.op == "blur"] + [2.0] * (self.policy == "three_augment")
        return math.ceil(3 * max(largest, default=0))

    @property
    def _policy_settings(self) -> PolicySettings:
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        return PolicySettings(
            policy=self.policy,
            policy_ops=self.policy_ops,
            policy_magnitude=self.policy_magnitude,
            policy_spread=self.policy_spread,
            jitter=strengths if self.jitter == "uint8" else (0.0, 0.0, 0.0, 0.0),
            ops=self.ops,
            size_px=self.size_px,
        )

    @property
    def later_fields(self) -> dict[str, object]:
        """The fields from `policy` on that are not at their default, as plain values."""
        values = asdict(self)
        return {
            field.name: values[field.name]
            for field in fields(self)[_FIRST_LATER:]
            if getattr(self, field.name) != field.default
        }

    @property
    def key_values(self) -> dict[str, object]:
        """Plain values for the key of a cache. Later fields are left out at their default: earlier caches do not have them."""
        values = {name: value for name, value in asdict(self).items() if name in FIRST_FIELDS}
        return values | self.later_fields | ({"ops_version": OPS_VERSION} if self.later_fields else {})

    @classmethod
    def from_key_values(cls, values: Mapping[str, Any]) -> "ViewSpec":
        """The inverse of `key_values`. Raises TypeError or ConfigError for what no spec has."""
        values = {name: value for name, value in values.items() if name != "ops_version"}
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list | tuple)}
        if "ops" in tuples:
            tuples["ops"] = tuple(ViewOp(**each) for each in tuples["ops"])
        return cls(**(values | tuples))


_FIRST_LATER = 9
FIRST_FIELDS = tuple(field.name for field in fields(ViewSpec)[:_FIRST_LATER])
"""The fields that every cache's key has."""
LATER_DEFAULTS = {field.name: field.default for field in fields(ViewSpec)[_FIRST_LATER:]} | {"ops_version": OPS_VERSION}
"""What a key without one of the later fields means."""
VIEW_FIELDS = (*(field.name for field in fields(ViewSpec)), "ops_version")
"""All that a cache's key may have."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """The numbers of N views.

    window: int64 [N, 4], top, left, height, width of the crop, in 1/65536 canvas px; it may extend beyond `bounds`.
    bounds: int64 [N, 4], top, left, bottom, right of the area that resampling may read, in 1/65536 canvas px.
    flip:   bool [N].
    kind:   int8 [N, 3], the colour operations in the order in which they apply (BRIGHTNESS, CONTRAST, SATURATION).
    factor: float32 [N, 3], the factor of each operation of `kind`.

    None where the spec has nothing of the kind:
    op, magnitude: int8 [N, R] and int32 [N, R, 2], the operations, see udkd.augment.policies.
    erase_box: int32 [N, 4], top, left, bottom, right in 1/65536 of the side; no area for none. noise_key: int64 [N].
    partner: int64 [N], the id that each sample is mixed with. blend: int32 [N], MixUp's share of the sample itself in 1/4096.
    mix_box: int32 [N, 4], as erase_box: what comes from the partner. share: float32 [N], the share of the sample's own label.
    """

    window: NDArray[np.int64]
    bounds: NDArray[np.int64]
    flip: NDArray[np.bool_]
    kind: NDArray[np.int8]
    factor: NDArray[np.float32]
    op: NDArray[np.int8] | None = None
    magnitude: NDArray[np.int32] | None = None
    erase_box: NDArray[np.int32] | None = None
    noise_key: NDArray[np.int64] | None = None
    partner: NDArray[np.int64] | None = None
    blend: NDArray[np.int32] | None = None
    mix_box: NDArray[np.int32] | None = None
    share: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.flip)


def draw_views(
    spec: ViewSpec,
    seed: int,
    view: int,
    ids: NDArray[np.int64],
    sizes: NDArray[np.integer],
    partner: NDArray[np.int64] | None = None,
) -> Views:
    """Draw view number `view` of the samples `ids`. Raises DataError for an image too long and thin to be resized.

    ids:   int64 [N], sample ids.
    sizes: integers [N, 4], source height, source width, stored height, stored width, pixels.
    partner: int64 [N], the ids that they are mixed with, from udkd.augment.mixing.partners; where spec.mixes.
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
        **_later(spec, keys, seed, view, ids, partner),
    )


def _later(
    spec: ViewSpec, keys: U64, seed: int, view: int, ids: NDArray[np.int64], partner: NDArray[np.int64] | None
) -> dict[str, Any]:
    """What the fields from `policy` on add to a view."""
    drawn: dict[str, Any] = {}
    if spec.row_ops:
        drawn["op"], drawn["magnitude"] = draw_ops(spec._policy_settings, keys)
    if spec.erases:
        drawn["erase_box"], drawn["noise_key"] = draw_erasing(
            keys, prob=spec.erase_prob, area=spec.erase_area, ratio=spec.erase_ratio, size_px=spec.size_px
        )
    if spec.mixes:
        assert partner is not None, "samples are mixed in pairs"
        drawn |= {"partner": partner, **_mixing(spec, seed, view, ids, partner)}
    return drawn


def draw_shares(
    spec: ViewSpec, seed: int, view: int, ids: NDArray[np.int64], partner: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The share of each sample's own label, float32 [N], as `draw_views` draws it; where spec.mixes."""
    share: NDArray[np.float32] = _mixing(spec, seed, view, ids, partner)["share"].astype(np.float32)
    return share


def _mixing(
    spec: ViewSpec, seed: int, view: int, ids: NDArray[np.int64], partner: NDArray[np.int64]
) -> dict[str, NDArray[np.generic]]:
    return draw_mixing(
        key(seed, view, np.minimum(ids, partner)),
        mixup=spec.mixup,
        cutmix=spec.cutmix,
        prob=spec.mix_prob,
        switch_prob=spec.mix_switch_prob,
        size_px=spec.size_px,
    )


def _scaled(value: NDArray[np.int64], numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.int64]:
    return (2 * value * numerator + denominator) // (2 * denominator)


def _source_window(spec: ViewSpec, keys: U64, source: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Window and bounds, int64 [N, 4], in 1/65536 source px."""
    if spec.scheme == "random_resized":
        top, left, height, width = _random_resized(spec, keys, source)
        window = np.stack([top, left, height, width], axis=1) * SUBPIXELS
        # torchvision crops before it resizes, so nothing outside the window is read.
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
    # torchvision resizes before it crops, so pixels outside the window contribute.
    return np.concatenate([start, length], axis=1), np.concatenate([np.zeros_like(source), source * SUBPIXELS], axis=1)


def _check_fits(spec: ViewSpec, source: NDArray[np.int64], resized: NDArray[np.int64]) -> None:
    """Raise DataError if the coordinates of a resized image would not fit in 64 bits."""
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
        aspect = exp(log_low + shape * (log_high - log_low))
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
