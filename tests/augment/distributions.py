"""Comparisons of distributions, with chances of a false alarm below one in a thousand; all seeds are fixed."""

import numpy as np


def ks_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Kolmogorov and Smirnov's: the largest gap between two empirical distribution functions."""
    places = np.concatenate([one, other])
    gaps = [np.searchsorted(np.sort(values), places, side="right") / len(values) for values in (one, other)]
    return float(np.abs(gaps[0] - gaps[1]).max())


def assert_same_distribution(one: np.ndarray, other: np.ndarray, what: object = "") -> None:
    """By Kolmogorov and Smirnov's distance: 1.95 sqrt((n + m) / nm) is exceeded once in a thousand."""
    bound = 1.95 * ((len(one) + len(other)) / (len(one) * len(other))) ** 0.5
    assert ks_distance(one, other) < bound, what


def assert_frequencies(drawn: np.ndarray, expected: np.ndarray, what: object = "") -> None:
    """drawn: int [N], outcomes. expected: float [K], the probability of each. Within five standard deviations, plus five."""
    assert abs(expected.sum() - 1) < 1e-9, what
    counts = np.bincount(drawn, minlength=len(expected))
    assert len(counts) == len(expected), what
    assert not counts[expected == 0].any(), f"{what}: outcomes {np.flatnonzero((expected == 0) & (counts > 0))} are impossible"
    room = 5 * np.sqrt(len(drawn) * expected * (1 - expected)) + 5
    gap = np.abs(counts - len(drawn) * expected)
    assert (gap <= room).all(), f"{what}: outcomes {np.flatnonzero(gap > room)} are drawn {counts[gap > room]} times"
