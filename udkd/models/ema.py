"""A moving average of a network's weights, which is often better than the newest ones."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class WeightEMA:
    """model: a copy of the network, in evaluation mode, with averaged weights and statistics."""

    model: nn.Module

    @classmethod
    def of(cls, model: nn.Module) -> "WeightEMA":
        """Begin at the weights as they are."""
        return cls(model=copy.deepcopy(model).eval().requires_grad_(False))

    @torch.no_grad()
    def update(self, model: nn.Module, share: Tensor) -> None:
        """Move towards `model` by `share`, a scalar on the device: average += share x (newest - average)."""
        averages, newest = list(self.model.state_dict().values()), list(model.state_dict().values())
        floating = [(a, b) for a, b in zip(averages, newest, strict=True) if a.is_floating_point()]
        ours = [a for a, _ in floating]
        steps = torch._foreach_sub([b for _, b in floating], ours)
        torch._foreach_mul_(steps, share)
        torch._foreach_add_(ours, steps)
        for average, new in zip(averages, newest, strict=True):
            if not average.is_floating_point():  # batch norm's count of batches
                average.copy_(new)
