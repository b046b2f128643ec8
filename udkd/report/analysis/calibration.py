"""Reliability and expected calibration error (ECE): whether confidence equals accuracy.

Letters: n samples, M bins. confidence: the top-1 probability; correct: whether the top-1 class is the label.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udkd.report.analysis.intervals import Interval
from udkd.utils.statistics import LEVEL

BINS = 15
DRAWS = 200
ECE_RESAMPLES = 1_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """Samples in bins of confidence. Empty bins have confidence and accuracy 0.

    count: int64 [M]; correct: int64 [M]; confidence: float64 [M], the mean; accuracy: float64 [M].
    """

    count: NDArray[np.int64]
    correct: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """ECE: the mean distance between accuracy and confidence, bins weighted by their samples."""
        return float((self.count * np.abs(self.accuracy - self.confidence)).sum() / self.count.sum())


def reliability(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Bins ((m - 1) / M, m / M] of equal width; the first includes 0.

    Source: Guo et al., "On calibration of modern neural networks", 2017, section 2.
    """
    edges = np.arange(1, bins) / bins
    return _binned(confidence, correct, np.searchsorted(edges, confidence, side="left"), bins)


def calibration_error(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS) -> float:
    """ECE over bins of equal width, in [0, 1]. Source: Guo et al., 2017, equation 3."""
    return reliability(confidence, correct, bins).error


def calibration_error_interval(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], seed: int = 0, bins: int = BINS
) -> Interval:
    """The percentile bootstrap's 95 % interval of the ECE over resampled images, in [0, 1]; deterministic per seed.

    With few images the ECE is biased upward, and repeated images add to that, so the interval may be above the ECE.
    Source: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    random, n = np.random.Generator(np.random.PCG64(seed)), len(correct)
    bin_of = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    gap: NDArray[np.float64] = correct - confidence.astype(np.float64)
    errors = np.empty(ECE_RESAMPLES)
    for draw in range(ECE_RESAMPLES):
        rows = random.integers(0, n, n)
        errors[draw] = np.abs(np.bincount(bin_of[rows], weights=gap[rows], minlength=bins)).sum() / n
    low, high = np.quantile(errors, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def adaptive_calibration_error(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS) -> float:
    """ECE over bins of (nearly) equal counts; of equal confidences the earlier sample comes first.

    Source: Nguyen, O'Connor, "Posterior calibration and exploratory analysis for natural language processing models", 2015.
    """
    order = np.argsort(confidence, kind="stable")
    bin_of = np.empty(len(order), np.int64)
    for index, part in enumerate(np.array_split(order, min(bins, len(order)))):
        bin_of[part] = index
    return _binned(confidence, correct, bin_of, bins).error


def calibration_error_by_chance(confidence: NDArray[np.floating], seed: int = 0, bins: int = BINS) -> float:
    """The mean ECE of a perfectly calibrated classifier with these confidences, over DRAWS simulations."""
    random = np.random.Generator(np.random.PCG64(seed))
    p = confidence.astype(np.float64)
    bin_of = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    expected = np.bincount(bin_of, weights=p, minlength=bins)
    total = 0.0
    for _ in range(DRAWS):
        hits = np.bincount(bin_of, weights=random.random(len(p)) < p, minlength=bins)
        total += float(np.abs(hits - expected).sum()) / len(p)
    return total / DRAWS


def _binned(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], bin_of: NDArray[np.integer], bins: int
) -> Reliability:
    count = np.bincount(bin_of, minlength=bins).astype(np.int64)
    hits = np.bincount(bin_of, weights=correct, minlength=bins).astype(np.int64)
    confidence_sum = np.bincount(bin_of, weights=confidence.astype(np.float64), minlength=bins)
    divisor = np.maximum(count, 1)
    return Reliability(count=count, correct=hits, confidence=confidence_sum / divisor, accuracy=hits / divisor)
