"""Portable functions: their accuracy, and that views are drawn with nothing whose last bit depends on the processor."""

import ast
import hashlib
import inspect
import math
from itertools import pairwise

import numpy as np
import pytest

import udkd.augment.erasing
import udkd.augment.mixing
import udkd.augment.policies
import udkd.augment.views
import udkd.utils.portable
import udkd.utils.rng
from udkd.utils.portable import cos_sin, exp, log, wide_exp

EXACT = """
    arange argsort array asarray atleast_1d broadcast_to ceil clip concatenate copysign diff empty empty_like errstate
    flatnonzero floor frexp full full_like ldexp lexsort maximum minimum ones ones_like rint searchsorted sort sqrt
    stack take_along_axis trunc where zeros zeros_like integer generic bool_ int8 int32 int64 uint64 float32 float64
"""
"""NumPy's functions that round correctly (IEEE 754), only move or compare values, or are exact; and its types."""
MODULES = (
    udkd.utils.portable,
    udkd.utils.rng,
    udkd.augment.policies,
    udkd.augment.erasing,
    udkd.augment.mixing,
    udkd.augment.views,
)
OTHER_LIBRARIES = {"udkd.augment.policies": {"math.pi"}, "udkd.augment.views": {"math.log", "math.ceil"}}
"""math.log bounds the aspect ratio of a crop since views version 1: it must stay. Its last bit could move a rounding only."""


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_views_are_drawn_with_correctly_rounded_functions_only(module: object) -> None:
    """No np.exp, np.power, np.sum, matrix product and the like: their last bit depends on the processor."""
    tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]
    used, others, methods = set(), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
            used.add(node.attr)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "math":
            others.add(f"math.{node.attr}")
        elif isinstance(node, ast.Attribute):
            methods.add(node.attr)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            assert isinstance(node.left, ast.Constant), "a constant power of two, which is exact"
            assert node.left.value == 2.0
            assert isinstance(node.right, ast.Constant | ast.UnaryOp)
        assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult))
    assert used <= set(EXACT.split()), f"{used - set(EXACT.split())}: not known to be correctly rounded"
    assert others == OTHER_LIBRARIES.get(module.__name__, set())  # type: ignore[attr-defined]
    assert not methods & {"sum", "mean", "std", "var", "prod", "cumsum", "cumprod", "dot", "linalg", "random"}


def exact(function: object, x: np.ndarray) -> np.ndarray:
    return np.array([function(value) for value in x.tolist()])  # type: ignore[operator]


RNG = np.random.default_rng(0)


def test_exp() -> None:
    x = np.concatenate([np.linspace(-8, 8, 20_001), [0.0, math.log(3 / 4), math.log(4 / 3), 5e-324, -1e-17]])
    error = np.abs(exp(x) / exact(math.exp, x) - 1)
    assert error.max() < 6e-12
    assert error[np.abs(x) < 3].max() < 1.2e-14
    assert (exp(np.zeros(3)) == 1).all()
    assert all(one < other for one, other in pairwise(exp(np.linspace(-8, 8, 1_000))))


def test_wide_exp() -> None:
    x = np.concatenate([RNG.uniform(-700, 700, 20_000), np.linspace(-700, 700, 1_401), RNG.uniform(-1, 1, 2_000)])
    assert np.abs(wide_exp(x) / exact(math.exp, x) - 1).max() < 2e-13
    assert wide_exp(np.array([0.0, -600.0, 600.0])).tolist()[0] == 1


def test_log() -> None:
    x = np.concatenate([RNG.uniform(0, 1, 20_000), 10.0 ** RNG.uniform(-300, 300, 20_000), 1 + RNG.uniform(-1e-6, 1e-6, 2_000)])
    x = np.concatenate([x, 2.0 ** np.arange(-53, 54), [2.0**-53, 1 - 2.0**-53, 1e-3, 1e3, 5e-324, 1.7e308]])
    got, want = log(x), exact(math.log, x)
    assert np.abs(got - want).max() < 3e-13
    assert (np.abs(got - want) <= 1e-15 * np.abs(want) + 1e-16 + 2e-16 * (np.abs(want) > 0.3)).all()
    assert log(np.ones(1))[0] == 0


def test_cos_and_sin() -> None:
    x = np.concatenate([np.linspace(-math.pi, math.pi, 20_001), RNG.uniform(-4, 4, 5_000), [0.0]])
    cos, sin = cos_sin(x)
    assert np.abs(cos - exact(math.cos, x)).max() < 1e-14
    assert np.abs(sin - exact(math.sin, x)).max() < 1e-14
    assert (cos[-1], sin[-1]) == (1, 0)


GOLDEN = "c0604b8a232701ccee6516d45173083f35060543f8d819e9ad0719b548854dc6"


def test_golden_bits() -> None:
    """All four on fixed arguments: another processor or version must give the same bits."""
    x = np.ldexp(np.arange(-4096, 4097, dtype=np.float64), -10)
    values = [exp(x), wide_exp(x * 150), log(np.abs(x) + 2.0**-60), *cos_sin(x)]
    assert hashlib.sha256(np.concatenate(values).astype("<f8").tobytes()).hexdigest() == GOLDEN
