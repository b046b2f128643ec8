"""What a view does to an image, as plain values and in words: the numbers of udkd.augment.views in their own units.

Letters: N samples.
"""

import math
from dataclasses import dataclass

import numpy as np

from udkd.augment.erasing import BOX_BITS
from udkd.augment.mixing import BLEND_BITS
from udkd.augment.policies import FACTOR_BITS, FACTORS, FRACTION_BITS, HUE_BITS, LOG2_E, Op
from udkd.augment.views import SUBPIXELS, Views, ViewSpec

_WORDS = {
    **dict.fromkeys(FACTORS, "× {:.2f}"),
    Op.HUE: "{:+.3f} turns",
    Op.SOLARIZE: "from {:.0f}",
    Op.SOLARIZE_ADD: "{:.0f}",
    Op.POSTERIZE: "to {:.0f}-bit",
    Op.BLUR: "σ {:.2f} px",
    Op.ROTATE: "{:+.1f}°",
    Op.SHEAR_X: "{:+.2f}",
    Op.SHEAR_Y: "{:+.2f}",
    Op.TRANSLATE_X: "{:+.0f} px",
    Op.TRANSLATE_Y: "{:+.0f} px",
}


@dataclass(frozen=True, kw_only=True)
class AppliedOp:
    """An operation of a view. value: its magnitude in the units of udkd.augment.policies.ViewOp, translations in pixels."""

    op: str
    value: float | None

    def __str__(self) -> str:
        return self.op if self.value is None else f"{self.op} {_WORDS[Op[self.op.upper()]].format(self.value)}"


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """How a view is mixed with another sample's. share: of the sample's own label. box: CutMix's, which shows the partner."""

    partner: int
    share: float
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True, kw_only=True)
class Described:
    """One view of one sample. Boxes are top, left, height and width: of `crop` in fractions of the image, else in pixels."""

    id: int
    crop: tuple[float, float, float, float]
    flip: bool
    ops: tuple[AppliedOp, ...]
    erased: tuple[int, int, int, int] | None
    mixed: Mixed | None

    def words(self) -> list[str]:
        """Crop and flip, each operation, and the erased box, in the order in which they apply."""
        area = 100 * self.crop[2] * self.crop[3]
        crop = f"crop {area:.0f} %" if area >= 9.5 else f"crop {area:.2g} %"
        erased = [f"erased {self.erased[3]} × {self.erased[2]} px"] if self.erased else []
        return [crop, *(["flipped"] if self.flip else []), *map(str, self.ops), *erased]

    def mixed_words(self) -> list[str]:
        """How it is mixed, with the share of each label; empty where the views mix no samples."""
        if self.mixed is None:
            return []
        if self.mixed.partner == self.id:
            return ["not mixed: without a partner"]
        if self.mixed.share == 1 and self.mixed.box is None:
            return ["not mixed"]
        how = "MixUp" if self.mixed.box is None else "CutMix"
        return [f"{how}: {self.mixed.share:.3f} id {self.id}", f"+ {1 - self.mixed.share:.3f} id {self.mixed.partner}"]


def described(spec: ViewSpec, views: Views, ids: np.ndarray, sizes: np.ndarray, size_px: int) -> list[Described]:
    """Describe N views of the samples `ids`, int64 [N], drawn from `spec` and shown in size_px.

    sizes: integers [N, 4], source height, source width, stored height, stored width, pixels.
    """
    return [_described(spec, views, n, int(ids[n]), sizes[n], size_px) for n in range(len(views))]


def _described(spec: ViewSpec, views: Views, n: int, sample_id: int, size: np.ndarray, size_px: int) -> Described:
    top, left, height, width = (views.window[n] / SUBPIXELS / [size[2], size[3], size[2], size[3]]).tolist()
    return Described(
        id=sample_id,
        crop=(top, left, height, width),
        flip=bool(views.flip[n]),
        ops=_ops(views, n, size_px) + _float_jitter(spec, views, n),
        erased=None if views.erase_box is None else _box(views.erase_box[n], size_px),
        mixed=_mixed(views, n, sample_id, size_px),
    )


def _ops(views: Views, n: int, size_px: int) -> tuple[AppliedOp, ...]:
    if views.op is None or views.magnitude is None:
        return ()
    rows = zip(views.op[n].tolist(), views.magnitude[n].tolist(), strict=True)
    return tuple(
        AppliedOp(op=Op(code).name.lower(), value=decode(Op(code), first, second, size_px))
        for code, (first, second) in rows
        if code != Op.IDENTITY
    )


def _float_jitter(spec: ViewSpec, views: Views, n: int) -> tuple[AppliedOp, ...]:
    if not spec.jitters_floats:
        return ()
    names, strengths = ("brightness", "contrast", "saturation"), (spec.brightness, spec.contrast, spec.saturation)
    pairs = zip(views.kind[n].tolist(), views.factor[n].tolist(), strict=True)
    return tuple(AppliedOp(op=names[kind], value=factor) for kind, factor in pairs if strengths[kind])


def _mixed(views: Views, n: int, sample_id: int, size_px: int) -> Mixed | None:
    if views.partner is None or views.share is None or views.mix_box is None or views.blend is None:
        return None
    box, blend = _box(views.mix_box[n], size_px), int(views.blend[n])
    assert box is None or blend == 1 << BLEND_BITS, "MixUp or CutMix"
    return Mixed(partner=int(views.partner[n]), share=float(views.share[n]), box=box)


def _box(box: np.ndarray, size_px: int) -> tuple[int, int, int, int] | None:
    """A box of 2**-16 of the side in pixels, as udkd.augment.operations.inside rounds it; None for an empty one."""
    top, left, bottom, right = ((box.astype(np.int64) * size_px + (1 << (BOX_BITS - 1))) >> BOX_BITS).tolist()
    return (top, left, bottom - top, right - left) if bottom > top and right > left else None


def decode(op: Op, first: int, second: int, size_px: int) -> float | None:
    """The inverse of udkd.augment.policies.encode: a magnitude in its own units, None for an operation without one.

    Translations are in pixels of a view of size_px, positive to the right and down.
    """
    if op in FACTORS:
        return first / (1 << FACTOR_BITS)
    if op == Op.HUE:
        return first / (1 << HUE_BITS)
    if op == Op.BLUR:
        return math.sqrt(LOG2_E / (2 * first / (1 << FRACTION_BITS)))
    if op == Op.ROTATE:
        return math.degrees(math.atan2(second, first))
    if op in (Op.SHEAR_X, Op.SHEAR_Y):
        return first / (1 << FRACTION_BITS)
    if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
        return float((first * size_px + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS)
    return float(first) if op in _WORDS else None
