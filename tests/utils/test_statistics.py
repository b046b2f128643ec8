"""Statistics against hand computation, Python's module, printed tables and slow enumeration."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udkd.utils.statistics import (
    CLAIMS,
    bootstrap_interval,
    mean_std,
    min_claim,
    paired_difference,
    rank_correlation,
    ranks,
    t_interval,
    t_quantile,
)

numbers = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 6)), min_size=2, max_size=8)


@given(numbers)
def test_spread_is_that_of_the_standard_library(values: list[float]) -> None:
    sample = mean_std(values)
    assert sample.n == len(values)
    assert sample.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert sample.sd == pytest.approx(statistics.stdev(values), rel=1e-9, abs=1e-9)


def test_one_number_has_no_spread() -> None:
    sample = mean_std([3.5])
    assert (sample.n, sample.mean, sample.sd) == (1, 3.5, None)


# Fisher and Yates's table of t, as every textbook prints it (two-sided 5 % and 1 %).
@pytest.mark.parametrize(
    ("dof", "five", "one"),
    [
        (1, 12.706, 63.657),
        (2, 4.303, 9.925),
        (3, 3.182, 5.841),
        (4, 2.776, 4.604),
        (5, 2.571, 4.032),
        (9, 2.262, 3.250),
        (10, 2.228, 3.169),
        (30, 2.042, 2.750),
    ],
)
def test_quantiles_of_t(dof: int, five: float, one: float) -> None:
    assert t_quantile(0.975, dof) == pytest.approx(five, abs=6e-4)
    assert t_quantile(0.995, dof) == pytest.approx(one, abs=6e-4)


@pytest.mark.parametrize("dof", [1, 2, 3, 6, 11])
def test_quantiles_of_t_against_its_density(dof: int) -> None:
    t = t_quantile(0.95, dof)
    x = np.linspace(-t, t, 200_001)
    log_scale = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(dof * math.pi)
    density = np.exp(log_scale - (dof + 1) / 2 * np.log1p(x**2 / dof))
    assert float(np.trapezoid(density, x)) == pytest.approx(0.9, abs=1e-8)


def test_interval_of_t_by_hand() -> None:
    # mean 2, sd 1, n 3: 2 ± 4.3027 / sqrt(3)
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((-0.4841, 4.4841), abs=1e-4)


def test_bootstrap_against_all_resamples() -> None:
    values = [0.3, -0.4, 1.2, 2.0, 0.9]
    every = sorted(statistics.fmean(pick) for pick in itertools.product(values, repeat=len(values)))
    expected = np.quantile(every, [0.025, 0.975])
    assert bootstrap_interval(values) == pytest.approx(tuple(expected), abs=0.03)
    assert bootstrap_interval(values, level=0.5) == pytest.approx(tuple(np.quantile(every, [0.25, 0.75])), abs=0.03)


def test_bootstrap_is_seeded_and_stays_within_the_values() -> None:
    values = [1.0, 2.0, 4.0]
    assert bootstrap_interval(values) == bootstrap_interval(values) == (1.0, 4.0)
    many = list(np.random.default_rng(0).normal(size=40))
    assert bootstrap_interval(many, seed=1) != bootstrap_interval(many, seed=2)


def test_bootstrap_intervals_have_their_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        low, high = bootstrap_interval(rng.normal(1.0, 2.0, 40).tolist(), resamples=500)
        hits += low <= 1.0 <= high
    assert 0.90 < hits / 300 < 0.985


def test_differences_are_paired_by_position() -> None:
    difference = paired_difference([80.0, 82.0, 84.0], [79.0, 80.0, 81.0])
    assert difference.spread.mean == pytest.approx(2.0)
    assert difference.spread.sd == pytest.approx(1.0)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        paired_difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([2.0, 2.1, 1.9], "improves"),
        ([-2.0, -2.1, -1.9], "worsens"),
        ([2.0, 0.5, 1.0], "no clear difference"),  # the bootstrap alone would call this an improvement
        ([0.0, 0.0, 0.0], "no clear difference"),
        ([1.0, -1.0, 0.5], "no clear difference"),
        ([1.0, 1.0], "too few runs"),
        ([-5.0, -5.0], "too few runs"),
        ([5.0], "too few runs"),
    ],
)
def test_verdicts(values: list[float], verdict: str) -> None:
    assert paired_difference(values, [0.0] * len(values)).verdict == verdict


@pytest.mark.parametrize(
    ("images", "changed", "verdict"),
    [
        (12, 1, "too few images"),
        (300, 1, "too few images"),
        (300, -5, "too few images"),
        (300, 6, "improves"),
        (300, -6, "worsens"),
        (5_000, 6, "improves"),
        (1, 1, "too few images"),
        (0, 1, "too few images"),
        (300, 0, "no clear difference"),
    ],
)
def test_seeds_that_agree_claim_no_more_than_the_images_show(images: int, changed: int, verdict: str) -> None:
    correct = min(images, 100)
    accuracy, base = (100 * number / max(images, 1) for number in (correct + changed, correct))
    assert paired_difference([accuracy] * 3, [base] * 3, min_claim(images)).verdict == verdict


@given(numbers)
def test_no_claim_where_an_interval_holds_zero(values: list[float]) -> None:
    difference = paired_difference(values, [0.0] * len(values))
    assert difference.bootstrap
    assert difference.student_t
    holds_zero = any(low <= 0 <= high for low, high in (difference.bootstrap, difference.student_t))
    assert (difference.verdict in CLAIMS) == (not holds_zero and len(values) >= 3)


def test_ranks_with_ties() -> None:
    assert ranks([10.0, 30.0, 20.0, 20.0]).tolist() == [1.0, 4.0, 2.5, 2.5]


def test_rank_correlation_by_hand() -> None:
    # Without ties rho = 1 - 6 sum d^2 / n (n^2 - 1); here d = 1, -1, 1, -1, 0.
    one, other = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 4.0, 3.0, 5.0]
    assert rank_correlation(one, other) == pytest.approx(1 - 6 * 4 / 120)
    assert rank_correlation(one, [x**3 for x in one]) == pytest.approx(1.0)
    assert rank_correlation(one, [-x for x in one]) == pytest.approx(-1.0)
    assert math.isnan(rank_correlation(one, [1.0] * 5))


def test_rank_correlation_with_ties_is_the_correlation_of_ranks() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 5, 50), rng.integers(0, 5, 50)
    slow = [[1 + sum(y < x for y in side) + (sum(y == x for y in side) - 1) / 2 for x in side] for side in (one, other)]
    assert rank_correlation(one, other) == pytest.approx(statistics.correlation(slow[0], slow[1]))
