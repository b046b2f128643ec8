"""Statistics of a cache's targets, computed from its files alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udkd.augment.mixing import partners
from udkd.augment.views import ViewSpec, draw_shares
from udkd.losses.sample_weight import entropy_weight
from udkd.teacher.cache.key import CacheKey
from udkd.teacher.cache.reader import Cache
from udkd.teacher.cache.view_file import ViewFile
from udkd.utils.errors import CacheError

_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class CacheSummary:
    """Means over all targets of all views.

    num_targets: (sample, view) pairs. mean_weight: in [0, 1]. mean_entropy: nats; max_entropy is ln C.
    mean_others: of the other stored uncertainties, by name.
    top1, top5: the teacher's accuracy in percent over all targets; None without labels. Of mixed samples each label counts by
    its share.
    """

    num_views: int
    num_targets: int
    num_bytes: int
    mean_weight: float
    mean_entropy: float
    max_entropy: float
    mean_others: Mapping[str, float]
    top1: float | None
    top5: float | None


def summarise_cache(cache: Cache, labels_N: NDArray[np.integer] | None = None) -> CacheSummary:
    """Read every view once. labels_N: class indices of the split that the cache was built from, for the accuracies.

    CacheError: labels of another number of rows.
    """
    if labels_N is not None and len(labels_N) != cache.num_rows:
        raise CacheError(
            f"{cache.folder} holds {cache.num_rows} rows and the split {len(labels_N)}; "
            "expected the same number; build the cache again"
        )
    count, weight, entropy, first, fifth = 0, 0.0, 0.0, 0.0, 0.0
    others = dict.fromkeys(cache.key.uncertainties[1:], 0.0)
    for view in cache.views:
        file = cache.view_file(view)
        entropy_N = file.uncertainties["entropy"]
        mixing = None if labels_N is None else _mixing(cache.key, view, np.flatnonzero(~np.isnan(entropy_N)), cache.num_rows)
        for start in range(0, cache.num_rows, _ROWS_AT_ONCE):
            rows = np.flatnonzero(~np.isnan(entropy_N[start : start + _ROWS_AT_ONCE])) + start
            entropy_B = entropy_N[rows]
            count += len(rows)
            entropy += float(entropy_B.sum(dtype=np.float64))
            weight += float(entropy_weight(entropy_B, cache.num_classes).sum(dtype=np.float64))
            for name in others:
                others[name] += float(file.uncertainties[name][rows].astype(np.float64).sum())
            for labels_B, share_B in [] if labels_N is None else _shared_labels(labels_N, mixing, rows):
                rank_B = _label_rank(file, rows, labels_B)
                first, fifth = first + float(share_B[rank_B < 1].sum()), fifth + float(share_B[rank_B < 5].sum())
    return CacheSummary(
        num_views=len(cache.views),
        num_targets=count,
        num_bytes=cache.num_bytes,
        mean_weight=weight / max(count, 1),
        mean_entropy=entropy / max(count, 1),
        max_entropy=math.log(cache.num_classes),
        mean_others={name: total / max(count, 1) for name, total in others.items()},
        top1=None if labels_N is None else 100 * first / max(count, 1),
        top5=None if labels_N is None else 100 * fifth / max(count, 1),
    )


def _mixing(
    key: CacheKey, view: int, ids: NDArray[np.int64], num_rows: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    """Whom each id is mixed with in a view, int64 [num_rows], and the share of its own label, float32; None where none are."""
    if not key.mixes:
        return None
    seed = key.seed or 0
    partner = partners(seed, view, ids, num_rows)
    return partner, draw_shares(ViewSpec.from_key_values(key.views), seed, view, np.arange(num_rows, dtype=np.int64), partner)


def _shared_labels(
    labels_N: NDArray[np.integer],
    mixing: tuple[NDArray[np.int64], NDArray[np.float32]] | None,
    rows: NDArray[np.int64],
) -> list[tuple[NDArray[np.integer], NDArray[np.float64]]]:
    """The labels of some rows, [B] each, with their shares, float64 [B]."""
    if mixing is None:
        return [(labels_N[rows], np.ones(len(rows)))]
    partner, share = mixing[0][rows], mixing[1][rows].astype(np.float64)
    return [(labels_N[rows], share), (labels_N[partner], 1 - share)]


def _label_rank(file: ViewFile, rows: NDArray[np.int64], labels_B: NDArray[np.integer]) -> NDArray[np.int64]:
    if "classes" not in file.arrays:
        return label_rank(file.logits[rows], labels_B)
    return kept_label_rank(file.logits[rows], file.arrays["classes"][rows], labels_B)


def label_rank(logits_BC: np.ndarray, labels_B: NDArray[np.integer]) -> NDArray[np.int64]:
    """How many classes rank above the label, int64 [B]; of equal logits, which rounding causes, the lower index ranks first."""
    label_B1 = np.take_along_axis(logits_BC, labels_B[:, None].astype(np.int64), axis=1)
    before_BC = np.arange(logits_BC.shape[1]) < labels_B[:, None]
    rank: NDArray[np.int64] = ((logits_BC > label_B1) | ((logits_BC == label_B1) & before_BC)).sum(axis=1)
    return rank


def kept_label_rank(logits_Bk: np.ndarray, classes_Bk: NDArray[np.integer], labels_B: NDArray[np.integer]) -> NDArray[np.int64]:
    """`label_rank` in the top-k form: classes that were not kept rank below the kept ones, in the order of their indices."""
    label_B1 = labels_B[:, None]
    is_label_Bk, before_Bk = classes_Bk == label_B1, classes_Bk < label_B1
    label_logit_B1 = np.where(is_label_Bk, logits_Bk, -np.inf).max(axis=1, keepdims=True)  # -inf where it was not kept
    above_B = ((logits_Bk > label_logit_B1) | ((logits_Bk == label_logit_B1) & before_Bk)).sum(axis=1)
    others_B = labels_B - before_Bk.sum(axis=1)  # lower indices that were not kept
    rank: NDArray[np.int64] = np.where(is_label_Bk.any(axis=1), above_B, logits_Bk.shape[1] + others_B)
    return rank


def weight_histogram(cache: Cache, bins: int) -> NDArray[np.int64]:
    """Histogram of the entropy weights of all views' targets: int64 [bins], equal bins from 0 to 1."""
    counts = np.zeros(bins, np.int64)
    for view in cache.views:
        entropy_N = cache.view_file(view).uncertainties["entropy"]
        weight_N = entropy_weight(entropy_N[~np.isnan(entropy_N)], cache.num_classes)
        counts += np.histogram(weight_N, bins=bins, range=(0.0, 1.0))[0]
    return counts
