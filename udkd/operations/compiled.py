"""The eager loss through torch.compile: the same function, fewer passes over memory."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from udkd.words.losses import LossSettings, Terms, distill

Loss = Callable[[Sequence[Tensor], Tensor, Tensor | None, Tensor | None], Terms]


def eager_loss(settings: LossSettings) -> Loss:
    """The oracle with its settings bound."""
    return partial(distill, settings=settings)


def compiled_loss(settings: LossSettings) -> Loss:
    """The same signature, compiled whole (no graph break); the first call compiles."""
    compiled: Loss = torch.compile(partial(distill, settings=settings), fullgraph=True, dynamic=False)
    return compiled
