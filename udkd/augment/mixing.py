"""Draws how samples are mixed, by MixUp or CutMix: the pairs, and each pair's share or box.

Sources: MixUp, Zhang et al., arXiv 1710.09412; CutMix, Yun et al., arXiv 1905.04899; switching between them as timm's Mixup.
Both samples of a pair are mixed with the other one, with the same share and the same box.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from udkd.augment.erasing import box_fractions
from udkd.utils.errors import ConfigError
from udkd.utils.portable import log, wide_exp
from udkd.utils.rng import F64, U64, Stream, permutation, uniform

if TYPE_CHECKING:
    from torch import Tensor

BLEND_BITS = 12
"""MixUp's shares are multiples of 2**-12."""

# Positions in a pair's stream of numbers: the stream of its smaller id. Never change one.
_APPLY, _SWITCH, _DOWN, _ACROSS, _BETA = 500, 501, 502, 503, 510
_TRIES = 64


class MixedLabels(NamedTuple):
    """The labels of mixed samples: `own`, int64 [B], has the share `share`, float32 [B], and `other`, int64 [B], the rest."""

    own: "Tensor"
    other: "Tensor"
    share: "Tensor"

    def rows(self, chosen: slice) -> "MixedLabels":
        """The labels of some of the batch's samples."""
        return MixedLabels(*(tensor[chosen] for tensor in self))


def partners(seed: int, view: int, ids: NDArray[np.int64], num_samples: int) -> NDArray[np.int64]:
    """Whom each sample is mixed with in a view: int64 [num_samples], a random perfect matching of `ids`, int64 [n].

    partners[partners[i]] == i. Of an odd number one id is its own partner; so are all that are not in `ids`.
    """
    partner = np.arange(num_samples, dtype=np.int64)
    shuffled = permutation(np.sort(ids), seed, Stream.PARTNER, view)
    pairs = shuffled[: len(ids) // 2 * 2].reshape(-1, 2)
    partner[pairs[:, 0]], partner[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    return partner


def pairs_together(order: NDArray[np.int64], partner: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ids of an epoch's order, int64 [n], with each pair side by side, at the place of the first of the two.

    An id that is its own partner comes last. Batches of an even size then hold pairs only. Raises ConfigError for an order
    that has only one of a pair.
    """
    place = np.full(len(partner), -1)
    place[order] = np.arange(len(order))
    own, other = place[order], place[partner[order]]
    if (other < 0).any():
        sample = int(order[other < 0][0])
        raise ConfigError(
            f"the order has sample {sample}, which is mixed with sample {int(partner[sample])}, and not the latter; expected "
            "both of each pair; leave no sample out"
        )
    alone = own == other
    return order[np.lexsort((own, np.minimum(own, other), alone))]


def draw_mixing(
    keys: U64, *, mixup: float, cutmix: float, prob: float, switch_prob: float, size_px: int
) -> dict[str, NDArray[np.generic]]:
    """How the pairs of `keys`, uint64 [N], are mixed: `blend`, `mix_box` and `share` of udkd.augment.views.Views.

    The share of a sample itself is drawn from Beta(alpha, alpha). CutMix's box has the rest of the area where it fits, and its
    label's share is the exact area that is left.
    """
    applied = uniform(keys, _APPLY) < prob
    cuts = applied & (uniform(keys, _SWITCH) < switch_prob if mixup and cutmix else bool(cutmix))
    blends = applied & ~cuts
    own = np.ones(len(keys))
    for rows, alpha in ((blends, mixup), (cuts, cutmix)):
        own[rows] = _beta(keys[rows], alpha)
    one = 1 << BLEND_BITS
    blend = np.where(blends, np.rint(own * one), one).astype(np.int32)
    box = np.where(cuts[:, None], _box(keys, own, size_px), 0)
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    share = np.where(cuts, 1 - area / (size_px * size_px), blend / one)
    return {"blend": blend, "mix_box": box_fractions(box, size_px), "share": share.astype(np.float32)}


def _box(keys: U64, own: F64, size_px: int) -> NDArray[np.int64]:
    """CutMix's boxes in pixels, int64 [N, 4], as torchvision's CutMix draws them: any centre, cut off at the border."""
    half = (size_px * np.sqrt(1 - own)).astype(np.int64)[:, None] // 2
    centre = (np.stack([uniform(keys, _DOWN), uniform(keys, _ACROSS)], axis=1) * size_px).astype(np.int64)
    return np.concatenate([np.maximum(centre - half, 0), np.minimum(centre + half, size_px)], axis=1)


def _beta(keys: U64, alpha: float) -> F64:
    """Beta(alpha, alpha) by Jöhnk's rejection: float64 [N]. Below 1e-5 of the pairs find no value in 64 tries for alpha = 2."""
    drawn = np.full(len(keys), 0.5)
    alpha = max(alpha, 1e-300)  # a smaller one gives infinite logarithms, whose difference is no number
    waiting = np.arange(len(keys))
    for attempt in range(_TRIES):
        tried = keys[waiting]
        # 1 - u is above 0, which has no logarithm.
        x, y = (log(1 - uniform(tried, _BETA + 2 * attempt + k)) / alpha for k in range(2))  # logarithms
        fits = wide_exp(np.maximum(x, -600)) + wide_exp(np.maximum(y, -600)) <= 1
        drawn[waiting[fits]] = 1 / (1 + wide_exp(np.clip(y - x, -600, 600)[fits]))
        waiting = waiting[~fits]
        if not len(waiting):
            break
    return drawn
