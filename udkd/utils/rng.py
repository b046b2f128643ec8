"""Counter-based random numbers: pure functions of integer keys, by splitmix64, vectorised in NumPy.

They use only integer operations and correctly rounded float64, so a key gives the same bits on every processor.
Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (the finaliser of splitmix64).
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
F64 = NDArray[np.float64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Stream(IntEnum):
    """The purpose of a random stream. It is the second part of the key, so that equal seeds give unrelated numbers.

    Never change these values: runs, caches and reports would no longer be reproducible to the bit. The views are older than
    this enum: the second part of their key is the number of the view.
    """

    INITIAL_WEIGHTS = 1
    DROPOUT = 2
    SAMPLE_ORDER = 3
    CONNECTOR = 5
    CRD_MEMORY = 6
    BOOTSTRAP = 6  # an alias of CRD_MEMORY, used with another seed; a new number would change published intervals
    INT8_CALIBRATION = 7
    PARTNER = 8
    WEIGHT_SHUFFLE = 0x5F
    MC_DROPOUT = 0xD0


def mix(z: U64) -> U64:
    """The finaliser of splitmix64: a bijection of 64-bit integers in which every input bit affects every output bit."""
    with np.errstate(over="ignore"):
        z = z + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        return z ^ (z >> np.uint64(31))


def key(*parts: int | NDArray[np.int64]) -> U64:
    """Hash `parts` (integers, or int64 arrays [N] that broadcast) into 64-bit keys: uint64 [N], or [1] for integers alone."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        as_u64 = np.atleast_1d(np.asarray(part, np.int64)).view(np.uint64)
        state = mix(state ^ mix(as_u64))
    return state


def uniform(keys: U64, counter: int) -> F64:
    """Number `counter` of each key's stream: float64 [N] in [0, 1), 53 bits."""
    with np.errstate(over="ignore"):
        bits = mix(keys + np.uint64(counter) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(ids: NDArray[np.int64], *parts: int) -> NDArray[np.int64]:
    """Shuffle `ids`, int64 [N]. The order is a pure function of the key's `parts` and of the set of ids."""
    return ids[np.argsort(key(*parts, ids), kind="stable")]
