"""Intervals of shares and of paired differences of shares, at 95 %."""

import math

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 2_000
Z = 1.959963984540054
"""The normal distribution's quantile at 0.975."""

Interval = tuple[float, float]


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's interval of a share, within [0, 1]; no trials leave all of it open.

    Source: Brown, Cai, DasGupta, "Interval estimation for a binomial proportion", 2001, equation 4.
    """
    if trials == 0:
        return 0.0, 1.0
    share, square = successes / trials, Z * Z
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    reach = Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2)) / (1 + square / trials)
    # At the ends the sums cancel to 0 and 1 but for a rounding.
    return 0.0 if successes == 0 else centre - reach, 1.0 if successes == trials else centre + reach


def paired(gained: int, lost: int, pairs: int) -> Interval:
    """The interval of (gained - lost) / pairs, within [-1, 1]: how far two shares lie apart on the same samples.

    It stays honest where few pairs differ, even where none does. Source: Bonett, Price, "Adjusted Wald confidence interval
    for a difference of binomial proportions based on paired data", 2012.
    """
    up, down = (gained + 1) / (pairs + 2), (lost + 1) / (pairs + 2)
    reach = Z * math.sqrt((up + down - (up - down) ** 2) / (pairs + 2))
    return max(-1.0, up - down - reach), min(1.0, up - down + reach)


def bootstrap(values: NDArray[np.integer] | NDArray[np.floating], seed: int, resamples: int = RESAMPLES) -> Interval:
    """The percentile bootstrap's interval of the mean of at least one value.

    Resampling n values of few kinds is drawing their counts from a multinomial distribution, whatever n is.
    Source: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    kinds, counts = np.unique(values, return_counts=True)
    drawn = np.random.Generator(np.random.PCG64(seed)).multinomial(len(values), counts / len(values), size=resamples)
    means = drawn @ kinds.astype(np.float64) / len(values)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
