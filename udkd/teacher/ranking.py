"""The likeliest classes, in an order that does not depend on the device."""

import torch
from torch import Tensor


def top_k(log_p_BC: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and classes of the `count` (at most C) likeliest, [B, min(count, C)] both.

    Of equal ones, which bfloat16 logits often are, the lower class comes first; topk leaves that to the kernel.
    """
    ranked = torch.sort(log_p_BC, dim=-1, descending=True, stable=True)
    return ranked.values[:, :count], ranked.indices[:, :count]
