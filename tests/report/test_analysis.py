"""Statistics over samples, against independent slow implementations and against their definitions."""

import math
from fractions import Fraction
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udkd.report.analysis.agreement import agreement, patterns
from udkd.report.analysis.calibration import (
    adaptive_calibration_error,
    calibration_error,
    calibration_error_by_chance,
    reliability,
)
from udkd.report.analysis.gain import gain
from udkd.report.analysis.groups import by_class, tenths
from udkd.report.analysis.intervals import bootstrap, paired, wilson
from udkd.report.analysis.separation import separation

MARKS = st.lists(st.booleans(), min_size=1, max_size=60)


@st.composite
def confidences(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, some on bin edges and some equal, and whether each prediction is correct."""
    size = draw(st.integers(1, 80))
    edges = st.sampled_from([k / 15 for k in range(16)])
    values = draw(st.lists(st.one_of(st.floats(0, 1, width=32), edges), min_size=size, max_size=size))
    correct = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return np.array(values), np.array(correct)


def slow_error(bins: list[list[tuple[float, bool]]]) -> float:
    """ECE from lists, as in equation 3 of Guo et al."""
    n = sum(len(part) for part in bins)
    total = Fraction(0)
    for part in filter(None, bins):
        accuracy = Fraction(sum(correct for _, correct in part), len(part))
        confidence = sum((Fraction(value) for value, _ in part), Fraction(0)) / len(part)
        total += Fraction(len(part), n) * abs(accuracy - confidence)
    return float(total)


@given(confidences())
def test_calibration_error_by_its_equation(case: tuple[np.ndarray, np.ndarray]) -> None:
    pairs = list(zip(case[0].tolist(), case[1].tolist(), strict=True))
    bins = [[pair for pair in pairs if (m == 1 or pair[0] > (m - 1) / 15) and pair[0] <= m / 15] for m in range(1, 16)]
    bins[-1] += [pair for pair in pairs if pair[0] > 1]
    assert calibration_error(*case) == pytest.approx(slow_error(bins), abs=1e-12)
    result = reliability(*case)
    assert result.count.tolist() == [len(part) for part in bins]
    assert result.correct.tolist() == [sum(correct for _, correct in part) for part in bins]
    ranked = sorted(pairs, key=lambda pair: pair[0])
    sizes = [len(ranked) // 15 + (m < len(ranked) % 15) for m in range(15)]
    starts = np.cumsum([0, *sizes]).tolist()
    equal = [ranked[start : start + size] for start, size in zip(starts, sizes, strict=False)]
    assert adaptive_calibration_error(*case) == pytest.approx(slow_error(equal), abs=1e-12)


def test_calibration_error_of_known_classifiers() -> None:
    assert calibration_error(np.ones(50), np.ones(50, bool)) == 0
    assert calibration_error(np.ones(50), np.zeros(50, bool)) == 1
    assert calibration_error(np.full(4, 0.75), np.array([True, True, True, False])) == pytest.approx(0)
    assert calibration_error(np.array([0.4]), np.array([True])) == pytest.approx(0.6)


def test_calibration_error_by_chance() -> None:
    rng = np.random.default_rng(5)
    confidence = rng.uniform(0.3, 1, 400)
    errors = [calibration_error(confidence, rng.random(400) < confidence) for _ in range(400)]
    standard_error = float(np.std(errors)) / math.sqrt(200)
    assert calibration_error_by_chance(confidence) == pytest.approx(float(np.mean(errors)), abs=5 * standard_error)
    assert calibration_error_by_chance(confidence) == calibration_error_by_chance(confidence.copy())
    assert calibration_error_by_chance(confidence, seed=1) != calibration_error_by_chance(confidence)
    assert calibration_error_by_chance(np.ones(3)) == 0


@given(st.integers(0, 200), st.integers(0, 200))
def test_wilson_bounds_solve_its_equation(hits: int, misses: int) -> None:
    """At its ends the statistic of the score test is the normal quantile."""
    n = hits + misses
    low, high = wilson(hits, n)
    if n == 0:
        assert (low, high) == (0, 1)
        return
    z = NormalDist().inv_cdf(0.975)
    for bound in (low, high):
        if 0 < bound < 1:
            assert abs(hits / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-9)
    assert 0 <= low <= hits / n <= high <= 1


def test_published_wilson_intervals() -> None:
    """R's prop.test(x, n, correct = FALSE) gives these."""
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 10) == pytest.approx((0, 0.2775328), abs=1e-6)


def test_paired_intervals_have_their_nominal_coverage() -> None:
    """Over all outcomes of a trinomial, in exact sums; Bonett and Price report coverage near the nominal level."""
    n, up, down = 30, 0.2, 0.1
    same = 1 - up - down
    covered = 0.0
    for gained, lost in product(range(n + 1), repeat=2):
        if gained + lost <= n:
            rest = n - gained - lost
            ways = math.comb(n, gained) * math.comb(n - gained, lost)
            low, high = paired(gained, lost, n)
            covered += ways * up**gained * down**lost * same**rest * (low <= up - down <= high)
    assert 0.93 < covered < 0.985
    assert paired(0, 0, 5)[0] == -paired(0, 0, 5)[1] < 0
    assert paired(3, 0, 3)[0] < 0, "three samples prove nothing"
    assert all(-1 <= bound <= 1 for case in ((1, 0, 1), (0, 1, 1), (0, 0, 0)) for bound in paired(*case))


def test_bootstrap_against_resampling_by_hand() -> None:
    rng = np.random.default_rng(3)
    values = rng.choice([-1, 0, 0, 0, 1], 150)
    means = [float(values[rng.integers(0, 150, 150)].mean()) for _ in range(8000)]
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap(values, 0) == pytest.approx(expected, abs=0.012)
    assert bootstrap(values, 0) == bootstrap(values[::-1], 0), "a function of the values, not of their order"
    assert bootstrap(values, 1) != bootstrap(values, 0)
    assert bootstrap(np.array([1]), 0) == (1, 1)


@given(MARKS, st.randoms(use_true_random=False))
def test_gain_by_hand(marks: list[bool], random) -> None:  # type: ignore[no-untyped-def]
    other = [random.random() < 0.5 for _ in marks]
    result = gain(np.array(marks), np.array(other))
    gained = sum(a and not b for a, b in zip(marks, other, strict=True))
    lost = sum(b and not a for a, b in zip(marks, other, strict=True))
    assert (result.samples, result.gained, result.lost) == (len(marks), gained, lost)
    assert result.points == pytest.approx(100 * (sum(marks) - sum(other)) / len(marks))
    assert result.low <= result.points <= result.high
    claims = {"improves": result.low > 0, "worsens": result.high < 0, "no clear difference": result.low <= 0 <= result.high}
    assert claims[result.verdict]
    differences = np.array(marks).astype(int) - np.array(other).astype(int)
    assert result.low <= 100 * bootstrap(differences, 0)[0]
    assert result.high >= 100 * bootstrap(differences, 0)[1]


def test_gain_needs_evidence() -> None:
    true, false = np.ones(3, bool), np.zeros(3, bool)
    assert gain(true, false).verdict == "no clear difference"
    assert gain(np.ones(60, bool), np.zeros(60, bool)).verdict == "improves"
    assert gain(np.zeros(60, bool), np.ones(60, bool)).verdict == "worsens"
    assert gain(true, true).verdict == "no clear difference"
    assert gain(true[:0], true[:0]).verdict == "no clear difference"
    verdicts = [gain(np.arange(300) < changed, np.zeros(300, bool)).verdict for changed in (1, 5, 6)]
    assert verdicts == ["no clear difference", "no clear difference", "improves"]  # as least_claim does for studies


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3, st.booleans()), max_size=60))
def test_agreement_by_hand(rows: list[tuple[int, int, int, bool]]) -> None:
    a, b, labels = (np.array([row[k] for row in rows], int) for k in range(3))
    among = np.array([row[3] for row in rows], bool)
    result = agreement(a, b, labels, among)
    kept = [row for row in rows if row[3]]
    assert result.both == sum(x == y == z for x, y, z, _ in kept)
    assert result.first == sum(x == z != y for x, y, z, _ in kept)
    assert result.second == sum(y == z != x for x, y, z, _ in kept)
    assert result.neither == sum(x != z and y != z for x, y, z, _ in kept)
    assert result.same == sum(x == y != z for x, y, z, _ in kept)
    assert result.samples == len(kept)
    counted = patterns(np.stack([a == labels, b == labels]), among)
    assert counted.tolist() == [result.neither, result.first, result.second, result.both]


@pytest.mark.parametrize("classifiers", [1, 2, 3, 4])
def test_patterns_by_hand(classifiers: int) -> None:
    rng = np.random.default_rng(classifiers)
    correct, among = rng.random((classifiers, 200)) < 0.6, rng.random(200) < 0.7
    result = patterns(correct, among)
    for code in range(1 << classifiers):
        expected = [bool(code >> s & 1) for s in range(classifiers)]
        assert result[code] == sum(correct[:, n].tolist() == expected for n in range(200) if among[n])


@given(st.lists(st.floats(0, 3, width=16), min_size=1, max_size=60), st.integers(1, 12))
def test_tenths_by_hand(entropies: list[float], groups: int) -> None:
    ids = np.arange(len(entropies)) * 7 % 61
    result = tenths(np.array(entropies), ids, groups)
    ranked = sorted(range(len(entropies)), key=lambda row: (-entropies[row], ids[row]))
    assert [row for part in result for row in part.tolist()] == ranked
    sizes = [len(part) for part in result]
    assert len(sizes) == min(groups, len(ranked))
    assert max(sizes) - min(sizes) <= 1


def test_classes_without_samples_are_empty() -> None:
    result = by_class(np.array([3, 1, 3, 0]), 5)
    assert [part.tolist() for part in result] == [[3], [1], [], [0, 2], []]
    assert [len(part) for part in by_class(np.array([], int), 2)] == [0, 0]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_separation_is_the_fraction_of_ordered_pairs(rows: list[tuple[int, bool]]) -> None:
    hits = [value for value, correct in rows if correct]
    misses = [value for value, correct in rows if not correct]
    result = separation(np.array([value for value, _ in rows], float), np.array([correct for _, correct in rows]))
    if not hits or not misses:
        assert result is None
        return
    won = sum((a > b) + 0.5 * (a == b) for a in hits for b in misses)
    assert result == pytest.approx(won / (len(hits) * len(misses)))
