"""Draws the operations of a view as numbers: RandAugment and its kin, colour jitter in integers, and operations by name.

Each sample has R rows, and each row is one operation and its magnitude, two integers. The rows are drawn as everything in
udkd.augment.views is, by a pure function of (seed, view, id); udkd.augment.operations applies them.

Letters: N samples, R rows.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from numbers import Real
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from udkd.utils.errors import ConfigError
from udkd.utils.portable import cos_sin
from udkd.utils.rng import F64, U64, uniform

Policy = Literal["none", "rand_augment", "timm_rand_augment", "trivial_augment_wide", "auto_augment", "three_augment"]

FACTOR_BITS = 13
"""Factors of brightness, contrast, saturation and sharpness are multiples of 2**-13 below 8: float32 products are exact."""
HUE_BITS = 12
"""Shifts of the hue are multiples of 2**-12 of a turn."""
FRACTION_BITS = 16
"""Angles, shears, translations and blurs are in units of 2**-16: see `encode`."""


_Row = tuple[NDArray[np.int8], NDArray[np.int32]]
"""Operations int8 [N] and magnitudes int32 [N, 2]."""


class Op(IntEnum):
    """The operations, as a view's rows name them. Never change a number: golden values and caches depend on it."""

    IDENTITY = 0
    BRIGHTNESS = 1
    CONTRAST = 2
    SATURATION = 3
    HUE = 4
    SHARPNESS = 5
    SOLARIZE = 6
    SOLARIZE_ADD = 7
    POSTERIZE = 8
    INVERT = 9
    AUTOCONTRAST = 10
    EQUALIZE = 11
    GRAYSCALE = 12
    BLUR = 13
    ROTATE = 14
    SHEAR_X = 15
    SHEAR_Y = 16
    TRANSLATE_X = 17
    TRANSLATE_Y = 18


WARPS = (Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y)
FACTORS = (Op.BRIGHTNESS, Op.CONTRAST, Op.SATURATION, Op.SHARPNESS)

OpName = Literal[
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "sharpness",
    "solarize",
    "solarize_add",
    "posterize",
    "invert",
    "autocontrast",
    "equalize",
    "grayscale",
    "blur",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
]

_RANGES: dict[Op, tuple[float, float]] = {
    **dict.fromkeys(FACTORS, (0.0, 7.9)),
    Op.HUE: (-0.5, 0.5),
    Op.SOLARIZE: (0, 256),
    Op.SOLARIZE_ADD: (0, 255),
    Op.POSTERIZE: (0, 8),
    Op.BLUR: (0.1, 10.0),
    Op.ROTATE: (-180, 180),
    Op.SHEAR_X: (-4, 4),
    Op.SHEAR_Y: (-4, 4),
    Op.TRANSLATE_X: (-1, 1),
    Op.TRANSLATE_Y: (-1, 1),
}
"""The magnitudes that an operation takes, in the units of `encode`; operations that are not listed take none."""


def plain(value: object) -> object:
    """Tuples for lists, which dictionaries' keys may hold, and Python's numbers for NumPy's, which JSON lacks."""
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True, kw_only=True)
class ViewOp:
    """One operation on a view, with a random magnitude.

    op: its name. prob: how probable it is for each view. low, high: the magnitude is uniform between them; in the units of
    torchvision's function of that name: a factor (brightness, contrast, saturation, sharpness), turns in [-0.5, 0.5] (hue), a
    threshold (solarize), bits (posterize), sigma in pixels (blur), degrees counterclockwise (rotate), the tangent of the angle
    (shear_x, shear_y), a fraction of the side (translate_x, translate_y), or what is added below 128 (solarize_add).
    invert, autocontrast, equalize and grayscale have none. Raises ConfigError for what does not fit together.
    """

    op: OpName
    prob: float = 1.0
    low: float = 0.0
    high: float = 0.0

    def __post_init__(self) -> None:
        if self.op not in get_args(OpName):
            raise ConfigError(f"op is {self.op!r}; expected one of {', '.join(get_args(OpName))}; change it")
        for name in ("prob", "low", "high"):
            object.__setattr__(self, name, plain(getattr(self, name)))
            if not isinstance(getattr(self, name), Real):
                raise ConfigError(f"{name} of {self.op} is {getattr(self, name)!r}; expected a number; change it")
        if not 0 <= self.prob <= 1:
            raise ConfigError(f"prob of {self.op} is {self.prob}; expected a probability, 0 to 1; change it")
        if self.code not in _RANGES and (self.low or self.high):
            raise ConfigError(
                f"{self.op} has low {self.low} and high {self.high}; expected neither, as it has no magnitude; leave them out"
            )
        low, high = _RANGES.get(self.code, (0, 0))
        if not low <= self.low <= self.high <= high:
            raise ConfigError(
                f"{self.op} has low {self.low} and high {self.high}; expected low <= high from {low} to {high}; change them"
            )

    @property
    def code(self) -> Op:
        """The operation's number."""
        return Op[self.op.upper()]


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """What the rows are drawn from: the fields of udkd.augment.views.ViewSpec with the same names, and the view's size."""

    policy: Policy
    policy_ops: int
    policy_magnitude: float
    policy_spread: float
    jitter: tuple[float, float, float, float]
    ops: tuple[ViewOp, ...]
    size_px: int

    @property
    def policy_rows(self) -> int:
        """Rows of a policy that chooses from one list of operations."""
        return self.policy_ops if self.policy in ("rand_augment", "timm_rand_augment") else 1


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """An operation of a policy. value: its magnitude at a level in [0, 1]. signed: its sign is random; a factor is 1 + it."""

    op: Op
    value: Callable[[F64], F64] = np.zeros_like
    signed: bool = False


def row_ops(settings: PolicySettings) -> tuple[tuple[Op, ...], ...]:
    """The operations that each of the R rows can hold, apart from IDENTITY: what a compiled graph has to compute."""
    rows: list[tuple[Op, ...]] = []
    if settings.policy == "auto_augment":
        rows += [tuple(dict.fromkeys(pair[row].op for pair in _SUB_POLICIES)) for row in range(2)]
    elif settings.policy != "none":
        choices = _choices(settings)
        rows += [tuple(choice.op for choice in choices if choice.op != Op.IDENTITY)] * settings.policy_rows
    jitters = tuple(op for op, strength in zip(_JITTERS, settings.jitter, strict=True) if strength)
    rows += [jitters] * len(jitters)
    return (*rows, *((each.code,) for each in settings.ops))


def draw_ops(settings: PolicySettings, keys: U64) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
    """Operations int8 [N, R] and magnitudes int32 [N, R, 2] for the samples of `keys`, uint64 [N]. See `encode`."""
    count = len(row_ops(settings))
    ops, magnitudes = np.zeros((len(keys), count), np.int8), np.zeros((len(keys), count, 2), np.int32)
    for start in range(0, len(keys), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        for row, (op, magnitude) in enumerate(_rows(settings, keys[chunk])):
            ops[chunk, row], magnitudes[chunk, row] = op, magnitude
    return ops, magnitudes


def _rows(settings: PolicySettings, keys: U64) -> Iterator[_Row]:
    """The rows, one after the other."""
    if settings.policy == "auto_augment":
        yield from _auto_augment(settings, keys)
    elif settings.policy != "none":
        for row in range(settings.policy_rows):
            yield _chosen(settings, keys, _POLICY + _ROW * row)
    yield from _jitter_rows(settings, keys)
    for index, each in enumerate(settings.ops):
        counter = _OPS + _OP * index
        applied = uniform(keys, counter) < each.prob
        value = each.low + uniform(keys, counter + 1) * (each.high - each.low)
        yield _row(each.code, applied, encode(each.code, value, settings.size_px))


# Positions in a sample's stream of numbers; those of udkd.augment.views end at 81. Never change one.
_HUE_ORDER, _HUE_FACTOR = 68, 73
_JITTER_ORDER, _JITTER_FACTOR = 65, 70
_POLICY, _ROW = 100, 20
_CHOICE, _LEVEL, _SIGN, _APPLY, _SPREAD = 0, 1, 2, 3, 4  # the spread takes 12
_OPS, _OP = 1000, 2

MAX_POLICY_OPS = 8
MAX_OPS = 16
_CHUNK = 1 << 14  # samples drawn at once: their numbers stay in the processor's cache


def encode(op: Op, value: F64, size_px: int) -> NDArray[np.int32]:
    """Magnitudes float64 [N] in an operation's own units as two integers each, int32 [N, 2].

    Factors: in 2**-13. Hue: in 2**-12 turns. Solarize: the smallest inverted value. Posterize: bits. Solarize_add: the sum.
    Blur: log2(e) / (2 sigma**2) in 2**-16. Rotate: cosine and sine, shear: the tangent, translate: the fraction of the side,
    at most all of it, in 2**-16; translations are whole pixels of a view of size_px, rounded towards 0 as torchvision's are.
    """
    second = np.zeros_like(value)
    if op in FACTORS:
        first = value * (1 << FACTOR_BITS)
    elif op == Op.HUE:
        first = value * (1 << HUE_BITS)
    elif op == Op.SOLARIZE:
        first = np.ceil(value - _LAST_BITS)
    elif op == Op.BLUR:
        first = LOG2_E / (2 * value * value) * (1 << FRACTION_BITS)
    elif op == Op.ROTATE:
        first, second = (each * (1 << FRACTION_BITS) for each in cos_sin(value * (math.pi / 180)))
    elif op in (Op.SHEAR_X, Op.SHEAR_Y):
        first = value * (1 << FRACTION_BITS)
    elif op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
        px = np.trunc(value * size_px + np.copysign(_LAST_BITS, value))
        first = np.clip(px / size_px, -1, 1) * (1 << FRACTION_BITS)
    else:
        first = value
    return np.stack([np.rint(first), np.rint(second)], axis=1).astype(np.int32)


LOG2_E = 1.4426950408889634
_LAST_BITS = 2.0**-20
"""How far a whole number may have been missed by rounding: 255 * (1 - 8 / 30) is 187, and 187.00000000000003 in float64."""
_JITTERS = (Op.BRIGHTNESS, Op.CONTRAST, Op.SATURATION, Op.HUE)


def _row(op: Op | NDArray[np.int8], applied: NDArray[np.bool_], magnitude: NDArray[np.int32]) -> _Row:
    """A row with an operation where it is applied, IDENTITY elsewhere."""
    return np.asarray(op, np.int8) * applied, magnitude * applied[:, None]  # IDENTITY is 0


def _jitter_rows(settings: PolicySettings, keys: U64) -> list[_Row]:
    """Torchvision's ColorJitter: brightness, contrast, saturation and hue in random order; those of strength 0 are left out."""
    used = [k for k, strength in enumerate(settings.jitter) if strength]
    if not used:
        return []
    counters = (_JITTER_ORDER, _JITTER_ORDER + 1, _JITTER_ORDER + 2, _HUE_ORDER)
    order = np.argsort(np.stack([uniform(keys, counters[k]) for k in used], axis=1), axis=1, kind="stable")
    magnitudes = []
    for k in used:
        strength = settings.jitter[k]
        low, high = (-strength, strength) if k == 3 else (max(0.0, 1 - strength), 1 + strength)
        drawn = uniform(keys, _HUE_FACTOR if k == 3 else _JITTER_FACTOR + k)
        magnitudes.append(encode(_JITTERS[k], low + drawn * (high - low), settings.size_px))
    all_ops = np.array([_JITTERS[k] for k in used], np.int8)
    all_magnitudes = np.stack(magnitudes, axis=1)
    ordered = np.take_along_axis(all_magnitudes, order[:, :, None], axis=1)
    return [(all_ops[order[:, row]], ordered[:, row]) for row in range(len(used))]


def _chosen(settings: PolicySettings, keys: U64, counter: int) -> _Row:
    """A row of RandAugment, TrivialAugmentWide or 3-Augment: one of the policy's operations, all as probable."""
    choices = _choices(settings)
    chosen = np.minimum((uniform(keys, counter + _CHOICE) * len(choices)).astype(np.int8), len(choices) - 1)
    level = _level(settings, keys, counter)
    sign = np.where(uniform(keys, counter + _SIGN) < 0.5, 1.0, -1.0)
    applied = uniform(keys, counter + _APPLY) < (0.5 if settings.policy == "timm_rand_augment" else 1.0)
    op = np.array([choice.op for choice in choices], np.int8)[chosen]
    # Sorted by their operation: slices are faster than a mask for each.
    order = np.argsort(chosen, kind="stable")
    level, sign = level[order], sign[order]
    ends = np.searchsorted(chosen[order], np.arange(len(choices) + 1))
    magnitude = np.empty((len(keys), 2), np.int32)
    for choice, start, end in zip(choices, ends, ends[1:], strict=False):
        value = _signed(choice, choice.value(level[start:end]), sign[start:end])
        magnitude[order[start:end]] = encode(choice.op, value, settings.size_px)
    return _row(op, applied, magnitude)


def _signed(choice: _Choice, value: F64, sign: F64) -> F64:
    if choice.op in FACTORS:
        factor = 1 + sign * value if choice.signed else 1 + value
        return np.maximum(factor, 0.0)
    return sign * value if choice.signed else value


def _level(settings: PolicySettings, keys: U64, counter: int) -> F64:
    """The level in [0, 1] of a policy's magnitudes."""
    if settings.policy == "three_augment":
        return uniform(keys, counter + _LEVEL)
    if settings.policy == "trivial_augment_wide":
        bins = _TORCHVISION_BINS
        return np.floor(uniform(keys, counter + _LEVEL) * bins) / (bins - 1)
    top = 10.0 if settings.policy == "timm_rand_augment" else _TORCHVISION_BINS - 1.0
    level = np.full(len(keys), settings.policy_magnitude)
    if settings.policy_spread:
        # The sum of twelve uniform numbers: mean 6, variance 1, and no logarithm whose last bit depends on the processor.
        total = np.zeros(len(keys))
        for k in range(12):
            total = total + uniform(keys, counter + _SPREAD + k)
        level = level + settings.policy_spread * (total - 6)
    clipped: F64 = np.clip(level, 0, top)
    return clipped / top


_TORCHVISION_BINS = 31


def _times(most: float) -> Callable[[F64], F64]:
    return lambda level: level * most


def _posterize(kept: int, dropped: int) -> Callable[[F64], F64]:
    return lambda level: kept - np.rint(level * dropped)


def _torchvision(
    *, shear: float, translate: float, rotate: float, factor: float, dropped_bits: int, identity: bool = True
) -> dict[Op, _Choice]:
    """Torchvision's operations, as its RandAugment, TrivialAugmentWide and AutoAugment define their largest magnitudes."""
    choices = [
        *([_Choice(op=Op.IDENTITY)] if identity else []),
        _Choice(op=Op.SHEAR_X, value=_times(shear), signed=True),
        _Choice(op=Op.SHEAR_Y, value=_times(shear), signed=True),
        _Choice(op=Op.TRANSLATE_X, value=_times(translate), signed=True),
        _Choice(op=Op.TRANSLATE_Y, value=_times(translate), signed=True),
        _Choice(op=Op.ROTATE, value=_times(rotate), signed=True),
        _Choice(op=Op.BRIGHTNESS, value=_times(factor), signed=True),
        _Choice(op=Op.SATURATION, value=_times(factor), signed=True),
        _Choice(op=Op.CONTRAST, value=_times(factor), signed=True),
        _Choice(op=Op.SHARPNESS, value=_times(factor), signed=True),
        _Choice(op=Op.POSTERIZE, value=_posterize(8, dropped_bits)),
        _Choice(op=Op.SOLARIZE, value=lambda level: 255 * (1 - level)),
        _Choice(op=Op.AUTOCONTRAST),
        _Choice(op=Op.EQUALIZE),
    ]
    return {choice.op: choice for choice in choices}


_RAND_AUGMENT = _torchvision(shear=0.3, translate=150 / 331, rotate=30.0, factor=0.9, dropped_bits=4)

_TIMM = (
    _Choice(op=Op.AUTOCONTRAST),
    _Choice(op=Op.EQUALIZE),
    _Choice(op=Op.INVERT),
    _Choice(op=Op.ROTATE, value=_times(30.0), signed=True),
    _Choice(op=Op.POSTERIZE, value=lambda level: 4 - np.trunc(level * 4)),
    _Choice(op=Op.SOLARIZE, value=lambda level: 256 - np.trunc(level * 256)),
    _Choice(op=Op.SOLARIZE_ADD, value=lambda level: np.trunc(level * 110)),
    _Choice(op=Op.SATURATION, value=_times(0.9), signed=True),
    _Choice(op=Op.CONTRAST, value=_times(0.9), signed=True),
    _Choice(op=Op.BRIGHTNESS, value=_times(0.9), signed=True),
    _Choice(op=Op.SHARPNESS, value=_times(0.9), signed=True),
    _Choice(op=Op.SHEAR_X, value=_times(0.3), signed=True),
    _Choice(op=Op.SHEAR_Y, value=_times(0.3), signed=True),
    _Choice(op=Op.TRANSLATE_X, value=_times(0.45), signed=True),
    _Choice(op=Op.TRANSLATE_Y, value=_times(0.45), signed=True),
)
"""Timm's _RAND_INCREASING_TRANSFORMS, the operations of rand-m9-mstd0.5-inc1.

Here translations are whole pixels, rounded towards 0, and timm's are not. Timm fills with ImageNet's mean colour and chooses
bilinear or bicubic interpolation at random: set `fill` and `warp`.
"""

_THREE = (
    _Choice(op=Op.GRAYSCALE),
    _Choice(op=Op.SOLARIZE, value=lambda level: np.full_like(level, 128)),
    _Choice(op=Op.BLUR, value=lambda level: 0.1 + 1.9 * level),
)
"""3-Augment of Touvron et al., DeiT III, arXiv 2204.07118."""


def _choices(settings: PolicySettings) -> Sequence[_Choice]:
    if settings.policy == "rand_augment":
        return tuple(_RAND_AUGMENT.values())
    if settings.policy == "timm_rand_augment":
        return _TIMM
    if settings.policy == "three_augment":
        return _THREE
    # Torchvision translates by up to 32 pixels, whatever the image's size.
    wide = _torchvision(shear=0.99, translate=32 / settings.size_px, rotate=135.0, factor=0.99, dropped_bits=6)
    return tuple(wide.values())


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One of the two operations of a sub-policy of AutoAugment: its probability and its level of 0 to 9."""

    op: Op
    prob: float
    level: int


def _pair(first: tuple[Op, float, int], second: tuple[Op, float, int]) -> tuple[_Step, _Step]:
    return tuple(_Step(op=op, prob=prob, level=level) for op, prob, level in (first, second))  # type: ignore[return-value]


_SUB_POLICIES = (
    _pair((Op.POSTERIZE, 0.4, 8), (Op.ROTATE, 0.6, 9)),
    _pair((Op.SOLARIZE, 0.6, 5), (Op.AUTOCONTRAST, 0.6, 0)),
    _pair((Op.EQUALIZE, 0.8, 0), (Op.EQUALIZE, 0.6, 0)),
    _pair((Op.POSTERIZE, 0.6, 7), (Op.POSTERIZE, 0.6, 6)),
    _pair((Op.EQUALIZE, 0.4, 0), (Op.SOLARIZE, 0.2, 4)),
    _pair((Op.EQUALIZE, 0.4, 0), (Op.ROTATE, 0.8, 8)),
    _pair((Op.SOLARIZE, 0.6, 3), (Op.EQUALIZE, 0.6, 0)),
    _pair((Op.POSTERIZE, 0.8, 5), (Op.EQUALIZE, 1.0, 0)),
    _pair((Op.ROTATE, 0.2, 3), (Op.SOLARIZE, 0.6, 8)),
    _pair((Op.EQUALIZE, 0.6, 0), (Op.POSTERIZE, 0.4, 6)),
    _pair((Op.ROTATE, 0.8, 8), (Op.SATURATION, 0.4, 0)),
    _pair((Op.ROTATE, 0.4, 9), (Op.EQUALIZE, 0.6, 0)),
    _pair((Op.EQUALIZE, 0.0, 0), (Op.EQUALIZE, 0.8, 0)),
    _pair((Op.INVERT, 0.6, 0), (Op.EQUALIZE, 1.0, 0)),
    _pair((Op.SATURATION, 0.6, 4), (Op.CONTRAST, 1.0, 8)),
    _pair((Op.ROTATE, 0.8, 8), (Op.SATURATION, 1.0, 2)),
    _pair((Op.SATURATION, 0.8, 8), (Op.SOLARIZE, 0.8, 7)),
    _pair((Op.SHARPNESS, 0.4, 7), (Op.INVERT, 0.6, 0)),
    _pair((Op.SHEAR_X, 0.6, 5), (Op.EQUALIZE, 1.0, 0)),
    _pair((Op.SATURATION, 0.4, 0), (Op.EQUALIZE, 0.6, 0)),
    _pair((Op.EQUALIZE, 0.4, 0), (Op.SOLARIZE, 0.2, 4)),
    _pair((Op.SOLARIZE, 0.6, 5), (Op.AUTOCONTRAST, 0.6, 0)),
    _pair((Op.INVERT, 0.6, 0), (Op.EQUALIZE, 1.0, 0)),
    _pair((Op.SATURATION, 0.6, 4), (Op.CONTRAST, 1.0, 8)),
    _pair((Op.EQUALIZE, 0.8, 0), (Op.EQUALIZE, 0.6, 0)),
)
"""The ImageNet policy of Cubuk et al., arXiv 1805.09501, as torchvision lists it."""


def _auto_augment(settings: PolicySettings, keys: U64) -> Iterator[_Row]:
    chosen = np.minimum((uniform(keys, _POLICY) * len(_SUB_POLICIES)).astype(np.int64), len(_SUB_POLICIES) - 1)
    choices: Mapping[Op, _Choice] = _RAND_AUGMENT | {Op.INVERT: _Choice(op=Op.INVERT)}
    for row in range(2):
        counter = _POLICY + _ROW * (row + 1)
        steps = [pair[row] for pair in _SUB_POLICIES]
        negative = (uniform(keys, counter + _SIGN) >= 0.5).astype(np.int64)
        applied = uniform(keys, counter + _APPLY) < np.array([step.prob for step in steps])[chosen]
        op = np.array([step.op for step in steps], np.int8)[chosen]
        signs = np.array([1.0, -1.0])
        magnitude = np.empty((len(steps), 2, 2), np.int32)
        for index, step in enumerate(steps):
            choice = choices[step.op]
            value = _signed(choice, choice.value(np.full(2, step.level / 9)), signs)
            magnitude[index] = encode(step.op, value, settings.size_px)
        yield _row(op, applied, magnitude[chosen, negative])
