"""Replacements for PyTorch modules that compute the same values and gradients in another way.

Each exists because torch.compile moves more memory than necessary for the original. Measure on your GPU whether it helps.
Letters: B batch, C channels, H W the input's pixels, P Q the pooled ones.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udkd.utils.errors import ConfigError

INDUCTOR_OPTIONS: dict[str, Any] = {"realize_opcount_threshold": 1000}
"""Inductor options that `use_gathered_pool` needs: by default inductor stores the result after 30 fused operations."""


def use_saved_relu6(model: nn.Module) -> nn.Module:
    """Replace every ReLU6 in a model with SavedReLU6."""
    return _replaced(model, nn.ReLU6, lambda relu: SavedReLU6())


def use_gathered_pool(model: nn.Module) -> nn.Module:
    """Replace every 2-d max-pool in a model with GatheredMaxPool, except with dilation, ceil_mode or return_indices."""

    def gathered(pool: nn.MaxPool2d) -> nn.Module:
        sizes = (pool.kernel_size, pool.stride, pool.padding)
        plain = all(isinstance(size, int) for size in sizes) and pool.dilation == 1 and not pool.ceil_mode
        return GatheredMaxPool(*map(int, sizes)) if plain and not pool.return_indices else pool  # type: ignore[arg-type]

    return _replaced(model, nn.MaxPool2d, gathered)


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode with each batch norm folded into the preceding convolution.

    Raises ConfigError if this version of PyTorch lacks torch.fx's function for it, or torch.fx cannot trace the model.
    """
    assert not model.training, "batch statistics cannot be folded"
    try:
        from torch.fx.experimental.optimization import fuse
    except ImportError:
        raise ConfigError(
            f"PyTorch {torch.__version__} has no torch.fx.experimental.optimization.fuse, which teacher.fold_bn needs; "
            "expected PyTorch 2.11 to 2.14; use --set teacher.fold_bn=false"
        ) from None
    try:
        folded: nn.Module = fuse(model)
    except Exception as error:  # torch.fx raises many kinds, and runs the network's own code
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"teacher.fold_bn is true and torch.fx cannot trace {type(model).__name__} ({reason}); expected a network without "
            "control flow on its input; set teacher.fold_bn to false"
        ) from error
    return folded.eval()


class SavedReLU6(nn.Module):
    """ReLU6 whose backward pass reads its output instead of its input.

    The next convolution saves the output anyway, so that the input (batch norm's output) need not be saved at all. For
    PyTorch's ReLU6, inductor recomputes the input in float32 and stores it.
    """

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _SavedReLU6.apply(x)
        return y


class _SavedReLU6(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.relu6(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        # PyTorch's own kernel: no gradient at or beyond 0 and 6, which the output shows as well as the input.
        grad: Tensor = torch.ops.aten.hardtanh_backward(grads[0], y, 0.0, 6.0)
        return grad


class GatheredMaxPool(nn.Module):
    """Max-pool whose backward pass is a sum over the windows of each pixel, in their order: deterministic, no atomics."""

    def __init__(self, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y: Tensor = _GatheredMaxPool.apply(x_BCHW, self.kernel_size, self.stride, self.padding)
        return y


class _GatheredMaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
        y_BCPQ, index_BCPQ = F.max_pool2d(x_BCHW, kernel_size, stride, padding, return_indices=True)
        height, width = x_BCHW.shape[2:]
        rows, columns = (torch.arange(n, device=x_BCHW.device) * stride - padding for n in y_BCPQ.shape[2:])
        row_BCPQ = torch.div(index_BCPQ, width, rounding_mode="floor") - rows[:, None]
        offset_BCPQ = row_BCPQ * kernel_size + index_BCPQ % width - columns  # within its window: a byte instead of eight
        ctx.save_for_backward(offset_BCPQ.to(torch.int8))
        ctx.geometry = (height, width, kernel_size, stride, padding)
        return y_BCPQ

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (offset_BCPQ,) = ctx.saved_tensors
        height, width, kernel_size, stride, padding = ctx.geometry
        grad_BCHW = grads[0].new_zeros(())
        # Sum over the windows that contain a pixel, in PyTorch's order. Compiled, no intermediate sum is stored.
        for row_H, down_H in _windows(height, grads[0].shape[2], kernel_size, stride, padding, grads[0].device):
            for column_W, right_W in _windows(width, grads[0].shape[3], kernel_size, stride, padding, grads[0].device):
                chosen_BCHW = offset_BCPQ[:, :, row_H[:, None], column_W] == down_H[:, None] * kernel_size + right_W
                grad_BCHW = grad_BCHW + torch.where(chosen_BCHW, grads[0][:, :, row_H[:, None], column_W], 0.0)
        return grad_BCHW, None, None, None


def _windows(
    size: int, count: int, kernel_size: int, stride: int, padding: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the windows that contain each of `size` pixels along one axis, in order.

    Each item is a window's index below `count`, and the pixel's offset in the window, both int64 [size]. If there is no such
    window, the offset is so negative that no offset along the other axis can make the sum match.
    """
    pixel = torch.arange(size, device=device) + padding
    for back in reversed(range(-(-kernel_size // stride))):
        window = torch.div(pixel, stride, rounding_mode="floor") - back
        offset = pixel - window * stride
        outside = (window < 0) | (window >= count) | (offset >= kernel_size)
        yield window.clamp(0, count - 1), torch.where(outside, -(kernel_size**2), offset)


def _replaced(model: nn.Module, kind: type[nn.Module], make: Any) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is kind:
                setattr(parent, name, make(child))
    return model
