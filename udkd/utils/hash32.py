"""A hash of 32-bit integers on any device, for random numbers that have no state."""

from torch import Tensor

_32_BITS = 0xFFFFFFFF


def hash32(x: Tensor) -> Tensor:
    """A 32-bit hash of the low 32 bits of int64 numbers. It is computed without overflow, as the multipliers are below 2**31.

    Source: github.com/skeeto/hash-prospector, the two-round function with the lowest known bias.
    """
    x = x & _32_BITS
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _32_BITS
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _32_BITS
    return x ^ (x >> 15)
