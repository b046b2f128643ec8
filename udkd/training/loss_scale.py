"""The dynamic loss scale of float16 training, entirely on the device."""

from typing import final

import torch
from torch import Tensor

_FIRST, _GROWTH, _BACKOFF, _INTERVAL = 65536.0, 2.0, 0.5, 2000
MIN_SCALE = 1.0
"""Below it, gradients that are not finite come from the network, not from the scale."""


@final
class LossScale:
    """A factor on the loss that keeps float16 gradients in range: halved after a step whose gradients overflow.

    The rules and numbers are those of torch.amp.GradScaler, which makes the host wait for optimizers that are not fused.
    scale: float32 []. growth: int32 [], steps without overflow since the scale last changed; at 2,000 it doubles.
    """

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.full((), _FIRST, device=device)
        self.growth = torch.zeros((), dtype=torch.int32, device=device)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The state by name, as checkpoints hold it."""
        return {"loss_scale.scale": self.scale, "loss_scale.growth": self.growth}

    @torch.no_grad()
    def unscale(self, gradients: list[Tensor]) -> Tensor:
        """Divide gradients by the scale, in place. Returns 1 if any is not finite, else 0: float32 []."""
        found_inf = torch.zeros_like(self.scale)
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found_inf, self.scale.double().reciprocal().float())
        return found_inf

    @torch.no_grad()
    def update(self, found_inf_N: Tensor) -> None:
        """Adjust the scale after a step. found_inf_N: of each student."""
        torch._amp_update_scale_(self.scale, self.growth, found_inf_N.amax(), _GROWTH, _BACKOFF, _INTERVAL)
