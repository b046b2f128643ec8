"""A lower bound on a network's cost, from its layers' operations and bytes and the hardware's two peaks.

Perfect fusion is assumed: every convolution reads its input once and writes its output once, and batch norm, activation and
addition cost nothing more. Its backward pass reads the output's gradient, the output (for batch norm) and the input once,
writes the input's gradient once, and multiplies twice. Each pass of each layer takes the longer of its two times.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.timing import synchronize


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Operations and bytes per second that this machine reaches on a large matrix product and a large copy."""

    flops: float
    bytes_per_s: float

    @classmethod
    def measured(cls, device: torch.device, dtype: torch.dtype) -> "Peaks":
        """The best of several measurements."""
        side = 8192 if device.type == "cuda" else 1024
        a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        source = torch.rand(1 << (28 if device.type == "cuda" else 24), device=device)
        target = torch.empty_like(source)
        flops = 2 * side**3 / _best_seconds(lambda: a @ b, device)
        return cls(flops=flops, bytes_per_s=2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost per image. seconds: the sum over the layers, each at its peak."""

    flops: float
    bytes: float
    seconds: float


def network_cost(architecture: str, px: int, num_classes: int, peaks: Peaks, *, training: bool, item_bytes: int) -> Cost:
    """Sum the cost of a network's convolutions and linear layers; nothing is computed.

    training: forward and backward pass, else only the forward pass. item_bytes: size of an activation.
    """
    with torch.device("meta"):
        model = build_on_meta(architecture, num_classes)
        layers: list[tuple[float, float, float]] = []

        def add_layer(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            # Each output element is a sum over one filter.
            layers.append((2.0 * output.numel() * weight[0].numel(), float(inputs[0].numel()), float(output.numel())))

        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(add_layer)
        model.eval()(torch.empty(1, 3, px, px))
    total_flops = total_bytes = seconds = 0.0
    for index, (flops, read, written) in enumerate(layers):
        passes = [(flops, read + written)]
        if training:  # the images themselves need no gradient
            passes.append((2 * flops, 2 * written + 2 * read) if index else (flops, 2 * written + read))
        for work, values in passes:
            total_flops += work
            total_bytes += values * item_bytes
            seconds += max(work / peaks.flops, values * item_bytes / peaks.bytes_per_s)
    return Cost(flops=total_flops, bytes=total_bytes, seconds=seconds)


def build_on_meta(architecture: str, num_classes: int) -> nn.Module:
    """The network on the current default device, which callers set to "meta"."""
    import torchvision

    model: nn.Module = torchvision.models.get_model(architecture, weights=None, num_classes=num_classes)
    return model


def _best_seconds(run: Callable[[], Any], device: torch.device, times: int = 8) -> float:
    run()
    best = float("inf")
    for _ in range(times):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
