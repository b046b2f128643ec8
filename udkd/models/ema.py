"""An exponential moving average (EMA) of a network's weights."""

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
        """Start an average at the current weights."""
        return cls(model=copy.deepcopy(model).eval().requires_grad_(False))

    @torch.no_grad()
    def update(self, model: nn.Module, rate: Tensor) -> None:
        """Average += rate * (weights of `model` - average); integers are copied. rate: a tensor [] on the device."""
        averages, newest = _tensors(self.model), _tensors(model)
        floating = [(a, b) for a, b in zip(averages, newest, strict=True) if a.is_floating_point()]
        averaged = [a for a, _ in floating]
        steps = torch._foreach_sub([b for _, b in floating], averaged)
        torch._foreach_mul_(steps, rate)
        torch._foreach_add_(averaged, steps)
        for average, new in zip(averages, newest, strict=True):
            if not average.is_floating_point():  # batch norm's num_batches_tracked
                average.copy_(new)


def _tensors(model: nn.Module) -> list[Tensor]:
    """Weights and statistics, each once: tied weights have several names and would move several times as far."""
    values = model.state_dict(keep_vars=True).values()
    return list({id(value): value for value in values}.values())
