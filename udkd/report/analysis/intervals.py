"""95 % intervals of proportions and of their paired differences."""

import math

import numpy as np
from numpy.typing import NDArray

from udkd.utils.statistics import LEVEL

RESAMPLES = 2_000
Z = 1.959963984540054
"""The normal distribution's quantile at 0.975."""

Interval = tuple[float, float]


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's interval of a proportion, within [0, 1]; [0, 1] without trials.

    Source: Brown, Cai, DasGupta, "Interval estimation for a binomial proportion", 2001, equation 4.
    """
    if trials == 0:
        return 0.0, 1.0
    p, square = successes / trials, Z * Z
    centre = (p + square / (2 * trials)) / (1 + square / trials)
    margin = Z * math.sqrt(p * (1 - p) / trials + square / (4 * trials**2)) / (1 + square / trials)
    # At the ends the sums are 0 and 1 up to rounding.
    return 0.0 if successes == 0 else centre - margin, 1.0 if successes == trials else centre + margin


def paired(gained: int, lost: int, pairs: int) -> Interval:
    """The interval of (gained - lost) / pairs, within [-1, 1]: a paired difference of two proportions.

    It keeps its coverage where few pairs differ, or none. Source: Bonett, Price, "Adjusted Wald confidence interval
    for a difference of binomial proportions based on paired data", 2012.
    """
    up, down = (gained + 1) / (pairs + 2), (lost + 1) / (pairs + 2)
    margin = Z * math.sqrt((up + down - (up - down) ** 2) / (pairs + 2))
    return max(-1.0, up - down - margin), min(1.0, up - down + margin)


def bootstrap(values: NDArray[np.integer] | NDArray[np.floating], seed: int, resamples: int = RESAMPLES) -> Interval:
    """Percentile bootstrap interval of the mean of at least one value.

    Of n values few are distinct, so their counts in a resample are drawn from a multinomial distribution.
    Source: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.Generator(np.random.PCG64(seed)).multinomial(len(values), counts / len(values), size=resamples)
    means = drawn @ distinct.astype(np.float64) / len(values)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
