"""The hash: splitmix64 against its published values, the same numbers in any process, even and independent."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.utils.slow_hash import GOLDEN, MASK, slow_key, slow_uniform
from udkd.utils.rng import key, mix, permutation, uniform

PARTS = st.integers(-(2**63), 2**63 - 1)


def test_published_sequence() -> None:
    # The first five outputs of splitmix64.c for the seed 1234567, as Rosetta Code and many test suites print them.
    state = np.array([(1234567 + n * GOLDEN) & MASK for n in range(5)], np.uint64)
    assert mix(state).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_golden_values() -> None:
    """Views, orders, initial weights and dropout depend on these; a change invalidates every cache and run."""
    assert [int(key(*parts)[0]) for parts in ((0,), (7,), (1, 2, 3), (3, 2, 1), (-1,))] == [
        12035550249420947055,
        13309476754707697221,
        9812528628958509896,
        2995386836916236264,
        6755974106381971767,
    ]
    drawn = [float(uniform(key(1, 2, 3), counter)[0]).hex() for counter in (0, 1, 64)]
    assert drawn == ["0x1.b072abcf1e9a0p-3", "0x1.6cb1cbdd2702cp-2", "0x1.178e69a57017ep-2"]
    assert permutation(np.arange(12), 0, 3, 0).tolist() == [8, 1, 0, 3, 10, 4, 9, 11, 5, 2, 7, 6]
    assert permutation(np.arange(12), 0, 3, 1).tolist() == [4, 3, 11, 9, 10, 0, 1, 5, 6, 7, 2, 8]


@given(parts=st.lists(PARTS, min_size=1, max_size=4), counter=st.integers(0, 2**32))
def test_equals_python_integers(parts: list[int], counter: int) -> None:
    keys = key(*parts)
    assert keys.tolist() == [slow_key(*parts)]
    assert uniform(keys, counter).tolist() == [slow_uniform(int(keys[0]), counter)]


@given(ids=st.lists(PARTS, min_size=1, max_size=30), parts=st.lists(PARTS, max_size=3))
def test_rows_are_independent(ids: list[int], parts: list[int]) -> None:
    rows = np.array(ids, np.int64)
    assert key(*parts, rows).tolist() == [slow_key(*parts, row) for row in ids]
    assert key(rows, *parts).tolist() == [slow_key(row, *parts) for row in ids]


def test_the_largest_number_is_below_one() -> None:
    """Windows are floor(u x n): u = 1 would leave the image. The key that hashes to all ones gives the largest u."""
    z = MASK  # undo the finaliser: each step is a bijection
    for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        z = z ^ (z >> shift) ^ (z >> 2 * shift)
        z = (z * pow(factor, -1, 1 << 64)) & MASK
    largest = uniform(np.array([(z - GOLDEN) & MASK], np.uint64), 0)
    assert largest.tolist() == [1 - 2**-53]
    for size in (1, 2, 3, 5, 224, 255, 257, 65_500):
        assert int(largest[0] * size) == size - 1


@given(count=st.integers(0, 300), parts=st.lists(PARTS, max_size=3))
def test_permutation_is_one_and_is_pure(count: int, parts: list[int]) -> None:
    ids = np.arange(count, dtype=np.int64) * 3 + 5
    dealt = permutation(ids, *parts)
    assert sorted(dealt.tolist()) == ids.tolist()
    assert dealt.tolist() == sorted(ids.tolist(), key=lambda i: slow_key(*parts, i))
    assert permutation(ids[::-1], *parts).tolist() == dealt.tolist(), "whatever the order before"
    kept = dealt % 2 == 1  # an excluded sample moves no other sample
    assert permutation(ids[ids % 2 == 1], *parts).tolist() == dealt[kept].tolist()


def test_the_same_in_a_new_process() -> None:
    program = "import numpy as np; from udkd.utils.rng import *; print(permutation(np.arange(50), 9, 9).tolist())"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == str(permutation(np.arange(50), 9, 9).tolist())


@pytest.mark.parametrize("what", ["ids", "seeds", "views", "counters"])
def test_even_and_uncorrelated(what: str) -> None:
    """Consecutive ids, seeds, views and counters give independent numbers: chi-square and lag 1."""
    n = np.arange(100_000, dtype=np.int64)
    zero = np.zeros_like(n)
    parts = {"ids": (0, 0, n), "seeds": (n, 0, zero), "views": (0, n, zero)}
    if what == "counters":
        u = np.array([uniform(key(4, 5, 6), counter)[0] for counter in range(10_000)])
    else:
        u = uniform(key(*parts[what]), 0)
    assert u.min() >= 0
    assert u.max() < 1
    bins = np.bincount((u * 256).astype(int), minlength=256)
    chi_square = ((bins - len(u) / 256) ** 2 / (len(u) / 256)).sum()
    assert 160 < chi_square < 370, "255 degrees of freedom: mean 255, deviation 22.6"
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / len(u) ** 0.5
    low_bits = (u * 2**53).astype(np.int64) & 0xFF
    assert abs(low_bits.mean() - 127.5) < 5 * 73.9 / len(u) ** 0.5


def test_every_bit_of_a_part_changes_about_half_of_the_key() -> None:
    base = int(key(12, 34, 56)[0])
    for index in range(3):
        for bit in range(63):
            parts = [12, 34, 56]
            parts[index] ^= 1 << bit
            assert 10 < (int(key(*parts)[0]) ^ base).bit_count() < 54
