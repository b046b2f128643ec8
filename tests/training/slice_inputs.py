"""What test_exchange and its processes add up: for every slice tensors whose sums depend on the order."""

import numpy as np
import torch
from torch import Tensor

COUNTS = (1, 2, 4, 8, 16)
SHAPES = ((7, 3, 3, 3), (101,), (), (16, 5))
LIKE = [torch.empty(shape) for shape in SHAPES]
LIKE[0] = LIKE[0].to(memory_format=torch.channels_last)
MORE = 5


def slice_tensors(step: int, index: int) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of a slice, as `LIKE`, and MORE numbers: float32, of magnitudes from 1e-4 to 1e4 and both signs."""
    rng = np.random.default_rng((step, index))

    def drawn(shape: tuple[int, ...]) -> Tensor:
        values = rng.standard_normal(shape) * 10.0 ** rng.uniform(-4, 4, shape)
        return torch.from_numpy(np.asarray(values, dtype=np.float32))

    tensors = [drawn(shape) for shape in SHAPES]
    tensors[0] = tensors[0].to(memory_format=torch.channels_last)
    return tensors, [drawn((3,)), drawn((2,))]
