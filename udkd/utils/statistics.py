"""Statistics of small samples: mean and standard deviation, paired differences with intervals, rank correlation.

Letters: n repetitions (seeds) or samples, R resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from udkd.utils.rng import Stream, key, uniform

LEVEL = 0.95
RESAMPLES = 10_000
MIN_RUNS = 3
MIN_IMAGES = 6
"""If two classifiers differ on six images, chance favours the same one on all six once in 32 times (two-sided sign test)."""

METHOD = (
    f"{LEVEL:.0%} intervals of the mean paired difference on equal seeds: the percentile bootstrap over seeds ({RESAMPLES:,} "
    "resamples, seed 0), and Student’s t. With few seeds the bootstrap interval is too short, as it cannot reach beyond the "
    f"smallest and the largest difference. A verdict therefore needs both intervals to exclude 0, and at least {MIN_RUNS} "
    f"seeds, as two may agree by chance. It also needs a mean difference of at least {MIN_IMAGES} validation images: a smaller "
    "one can come from the choice of the images, even if all seeds agree."
)

Verdict = Literal["improves", "worsens", "no clear difference", "too few runs", "too few images"]
CLAIMS = ("improves", "worsens")


@dataclass(frozen=True, kw_only=True)
class MeanStd:
    """Mean and sample standard deviation of n numbers (n - 1 in the denominator; None if n < 2)."""

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean difference over n pairs. bootstrap, student_t: intervals (low, high), None if n < 2.

    least: the smallest absolute mean difference that can be claimed.
    """

    spread: MeanStd  # a key of study.json
    bootstrap: tuple[float, float] | None
    student_t: tuple[float, float] | None
    least: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """The conclusion if higher is better. A claim needs MIN_RUNS pairs, a mean of `least`, and intervals that exclude 0."""
        if self.bootstrap is None or self.student_t is None or self.spread.n < MIN_RUNS:
            return "too few runs"
        low, high = min(self.bootstrap[0], self.student_t[0]), max(self.bootstrap[1], self.student_t[1])
        if low <= 0 <= high:
            return "no clear difference"
        if abs(self.spread.mean) < self.least * (1 - 1e-9):  # 6 of 300 images are 2 points, up to rounding
            return "too few images"
        return "improves" if low > 0 else "worsens"


def mean_std(values: Sequence[float]) -> MeanStd:
    """Mean and standard deviation of at least one number."""
    n, mean = len(values), math.fsum(values) / len(values)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
    return MeanStd(n=n, mean=mean, sd=sd)


def min_claim(images: int) -> float:
    """The smallest difference to claim, in percentage points: MIN_IMAGES out of `images`. Infinite if there are no images."""
    return 100 * MIN_IMAGES / images if images else math.inf


def paired_difference(values: Sequence[float], baseline: Sequence[float], least: float = 0.0) -> Difference:
    """The difference values[i] - baseline[i] over seeds i. least: see Difference."""
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    enough = len(differences) > 1
    return Difference(
        spread=mean_std(differences),
        bootstrap=bootstrap_interval(differences) if enough else None,
        student_t=t_interval(differences) if enough else None,
        least=least,
    )


def bootstrap_interval(
    values: Sequence[float], level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; the draws are a pure function of seed, resamples and n.

    Source: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    keys = key(seed, Stream.BOOTSTRAP, np.arange(resamples, dtype=np.int64))
    picks_Rn = np.stack([(uniform(keys, index) * len(values)).astype(np.int64) for index in range(len(values))], axis=1)
    means_R = np.asarray(values, np.float64)[picks_Rn].mean(axis=1)
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Student's interval of the mean of n >= 2 numbers: mean ± t sd / sqrt(n)."""
    sample = mean_std(values)
    assert sample.sd is not None, "an interval needs two numbers"
    margin = t_quantile((1 + level) / 2, sample.n - 1) * sample.sd / math.sqrt(sample.n)
    return sample.mean - margin, sample.mean + margin


def t_quantile(probability: float, dof: int) -> float:
    """The quantile of Student's t for a probability in [0.5, 1) and an integer number of degrees of freedom, by bisection."""
    # Not scipy.stats.t.ppf, whose last bits differ: stored studies hold intervals of these, and its import takes a second.
    low, high = 0.0, 1.0
    while _t_central(high, dof) < 2 * probability - 1:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_central(middle, dof) < 2 * probability - 1 else (low, middle)
    return (low + high) / 2


def _t_central(t: float, dof: int) -> float:
    """P(|T| < t), in closed form. Source: Abramowitz, Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(dof))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = dof % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(2 if odd else 1, dof, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Ranks from 1, float64 [n]; equal values get the mean of their ranks."""
    _, group, count = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    mean_rank: NDArray[np.float64] = np.cumsum(count) - (count - 1) / 2
    return mean_rank[group]


def rank_correlation(one: ArrayLike, other: ArrayLike) -> float:
    """Spearman's rho with ties: Pearson's correlation of the ranks. NaN if either side is constant."""
    # Not scipy.stats.spearmanr, for the reason in t_quantile.
    a, b = (side - side.mean() for side in (ranks(one), ranks(other)))
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else math.nan
