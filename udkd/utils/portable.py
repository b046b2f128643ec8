"""Elementary functions whose bits do not depend on the processor: NumPy's own differ in the last bit between processors.

They use only additions, products, divisions and square roots of float64, which IEEE 754 rounds correctly everywhere.
"""

import numpy as np

from udkd.utils.rng import F64

_LN_2 = 0.6931471805599453


def exp(x: F64) -> F64:
    """e**x, for |x| up to about 8, by its series at x / 16. Views are drawn with it: its bits must not change."""
    y = x / 16
    total, term = np.ones_like(y), np.ones_like(y)
    for n in range(1, 16):
        term = term * y / n
        total = total + term
    for _ in range(4):
        total = total * total
    return total


def wide_exp(x: F64) -> F64:
    """e**x, for any x from -700 to 700."""
    exponent = np.rint(x / _LN_2)
    return np.ldexp(exp(x - exponent * _LN_2), exponent.astype(np.int64))


def log(x: F64) -> F64:
    """Ln x, for x > 0: the series of atanh at the mantissa, plus the exponent times ln 2."""
    mantissa, exponent = np.frexp(x)  # exact; the mantissa is in [0.5, 1)
    low = mantissa < 0.7071067811865476
    mantissa, exponent = np.where(low, 2 * mantissa, mantissa), exponent - low
    t = (mantissa - 1) / (mantissa + 1)
    square, total = t * t, np.zeros_like(t)
    for n in range(23, 0, -2):
        total = total * square + 1 / n
    natural: F64 = 2 * t * total + exponent * _LN_2
    return natural


def cos_sin(x: F64) -> tuple[F64, F64]:
    """Cos x and sin x, for |x| up to about 4, by their series."""
    cos, sin = np.zeros_like(x), np.zeros_like(x)
    term = np.ones_like(x)
    for n in range(1, 41):
        cos, sin = (cos + term, sin) if n % 2 else (cos, sin + term)
        term = term * x / n * (1 if n % 2 else -1)
    return cos, sin
