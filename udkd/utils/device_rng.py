"""splitmix64 in PyTorch: the same bits as udkd.utils.rng, for more draws than the host could make."""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def mix(z: Tensor) -> Tensor:
    """`udkd.utils.rng.mix` on int64 tensors, whose arithmetic wraps around: the same 64 bits."""
    z = z + _GOLDEN
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


def integers(keys_B: Tensor, count: int, below_B: Tensor) -> Tensor:
    """Draw `count` integers in [0, below) from each key's stream: int64 [B, count].

    keys_B: int64 [B], the bits of `udkd.utils.rng.key`. below_B: int64 [B] or [], 1 to 2^31.
    Integer k is floor(below u / 2^31), where u is the upper 31 bits from which `udkd.utils.rng.uniform` makes number k.
    """
    counter = torch.arange(count, device=keys_B.device)
    bits_BK = mix(keys_B[:, None] + counter * _GOLDEN)
    return (_shift(bits_BK, 33) * below_B.reshape(-1, 1)) >> 31


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; int64's own shift repeats the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
