"""Whether a classifier is right as often as it says: reliability and expected calibration error.

Letters: n samples, M bins. confidence: the probability of the first guess; right: whether that guess is the label.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udkd.report.analysis.intervals import LEVEL, Interval

BINS = 15
DRAWS = 200
RESAMPLES = 1_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """Samples by confidence. Of an empty bin confidence and accuracy are 0.

    count: int64 [M]; right: int64 [M]; confidence: float64 [M], its mean; accuracy: float64 [M].
    """

    count: NDArray[np.int64]
    correct: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of accuracy from confidence, bins weighted by their samples."""
        return float((self.count * np.abs(self.accuracy - self.confidence)).sum() / self.count.sum())


def reliability(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Bins ((m - 1) / M, m / M] of equal width; the first holds 0 too.

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
    """The percentile bootstrap's 95 % interval of the ECE over images drawn anew, in [0, 1]; the draws follow from the seed.

    Few images raise an ECE, and those drawn twice raise it further, so that the interval may lie above what was found.
    Source: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    random, n = np.random.Generator(np.random.PCG64(seed)), len(correct)
    place = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    apart: NDArray[np.float64] = correct - confidence.astype(np.float64)
    errors = np.empty(RESAMPLES)
    for draw in range(RESAMPLES):
        rows = random.integers(0, n, n)
        errors[draw] = np.abs(np.bincount(place[rows], weights=apart[rows], minlength=bins)).sum() / n
    low, high = np.quantile(errors, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def adaptive_calibration_error(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS) -> float:
    """ECE over bins of (nearly) equal counts; of equal confidences the earlier sample comes first.

    Source: Nguyen, O'Connor, "Posterior calibration and exploratory analysis for natural language processing models", 2015.
    """
    order = np.argsort(confidence, kind="stable")
    place = np.empty(len(order), np.int64)
    for index, part in enumerate(np.array_split(order, min(bins, len(order)))):
        place[part] = index
    return _binned(confidence, correct, place, bins).error


def calibration_error_by_chance(confidence: NDArray[np.floating], seed: int = 0, bins: int = BINS) -> float:
    """The mean ECE of a perfectly calibrated classifier of these confidences: what so few samples give by chance alone."""
    random = np.random.Generator(np.random.PCG64(seed))
    p = confidence.astype(np.float64)
    place = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    said = np.bincount(place, weights=p, minlength=bins)
    total = 0.0
    for _ in range(DRAWS):
        was = np.bincount(place, weights=random.random(len(p)) < p, minlength=bins)
        total += float(np.abs(was - said).sum()) / len(p)
    return total / DRAWS


def _binned(confidence: NDArray[np.floating], correct: NDArray[np.bool_], place: NDArray[np.integer], bins: int) -> Reliability:
    count = np.bincount(place, minlength=bins).astype(np.int64)
    hits = np.bincount(place, weights=correct, minlength=bins).astype(np.int64)
    said = np.bincount(place, weights=confidence.astype(np.float64), minlength=bins)
    held = np.maximum(count, 1)
    return Reliability(count=count, correct=hits, confidence=said / held, accuracy=hits / held)
