"""splitmix64 on the device: the bits of udkd.utils.rng for draws that are too many for the host."""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def mix(z: Tensor) -> Tensor:
    """`udkd.utils.rng.mix` of the same 64 bits, held as int64 (whose arithmetic wraps)."""
    z = z + _GOLDEN
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


def integers(keys_B: Tensor, count: int, below_B: Tensor) -> Tensor:
    """`count` integers of each key's stream, in [0, below): int64 [B, count].

    keys_B: int64 [B], bits of `udkd.utils.rng.key`. below_B: int64 [B] or [], 1 to 2^31.
    The k-th is floor(below u), u the upper 31 bits of number k of the stream that `udkd.utils.rng.uniform` reads.
    """
    counter = torch.arange(count, device=keys_B.device)
    bits_BK = mix(keys_B[:, None] + counter * _GOLDEN)
    return (_shift(bits_BK, 33) * below_B.reshape(-1, 1)) >> 31


def _shift(z: Tensor, places: int) -> Tensor:
    """To the right, zeros coming in: int64's own shift repeats the sign."""
    return (z >> places) & ((1 << (64 - places)) - 1)
