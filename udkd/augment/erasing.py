"""Draws the boxes of random erasing, which udkd.augment.operations fills with one colour or with noise.

Source: Zhong et al., arXiv 1708.04896; the box is drawn as torchvision's RandomErasing draws it.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from udkd.utils.portable import exp, log
from udkd.utils.rng import U64, uniform

EraseFill = Literal["mean", "noise"]

BOX_BITS = 16
"""Boxes are in 2**-16 of a view's side, so that they fit views of any size."""

# Positions in a sample's stream of numbers. Never change one.
_APPLY, _TRY, _NOISE = 400, 404, 401
_TRIES = 10


def draw_erasing(
    keys: U64, *, prob: float, area: tuple[float, float], ratio: tuple[float, float], size_px: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Boxes int32 [N, 4], top, left, bottom, right in 2**-16 of the side, and keys of the noise, int64 [N] of 32 bits.

    Ten tries, as torchvision's: a box must be smaller than the view on both sides. Where none is or is wanted, it is empty.
    area: the fractions of the view between which the box's is uniform. ratio: of height over width, uniform in its logarithm.
    """
    box = np.zeros((len(keys), 4), np.int64)
    log_low, log_high = log(np.array(ratio))
    waiting = np.flatnonzero(uniform(keys, _APPLY) < prob)
    for attempt in range(_TRIES):
        tried = keys[waiting]
        fraction, shape, down, across = (uniform(tried, _TRY + 4 * attempt + k) for k in range(4))
        target = size_px * size_px * (area[0] + fraction * (area[1] - area[0]))
        aspect = exp(log_low + shape * (log_high - log_low))
        height = np.rint(np.sqrt(target * aspect)).astype(np.int64)
        width = np.rint(np.sqrt(target / aspect)).astype(np.int64)
        fits = (height < size_px) & (width < size_px)
        rows, height, width = waiting[fits], height[fits], width[fits]
        top = (down[fits] * (size_px - height + 1)).astype(np.int64)
        left = (across[fits] * (size_px - width + 1)).astype(np.int64)
        box[rows] = np.stack([top, left, top + height, left + width], axis=1)
        waiting = waiting[~fits]
        if not len(waiting):
            break
    noise = (uniform(keys, _NOISE) * 2.0**32).astype(np.int64)
    return box_fractions(box, size_px), noise


def box_fractions(box_px: NDArray[np.int64], size_px: int) -> NDArray[np.int32]:
    """Boxes in pixels of a view of size_px as fractions of the side, from which `inside` gives the same pixels."""
    return ((2 * box_px * (1 << BOX_BITS) + size_px) // (2 * size_px)).astype(np.int32)
