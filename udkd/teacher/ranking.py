"""The most probable classes, in an order that does not depend on the device."""

import torch
from torch import Tensor


def top_k(log_p_BC: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and classes of the `count` most probable classes, both [B, min(count, C)].

    Of equal values, which are common in bfloat16 logits, the lower class comes first; torch.topk leaves that to the kernel.
    """
    ranked = torch.sort(log_p_BC, dim=-1, descending=True, stable=True)
    return ranked.values[:, :count], ranked.indices[:, :count]
