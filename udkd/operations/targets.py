"""A teacher's logits as they are stored, cached and live alike.

Both ways go through `pack`, so that a live target and a cached one are the same bits. Letters: B batch, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from udkd.words.uncertainty import entropy

_LOWEST = torch.finfo(torch.float16).min


@dataclass(frozen=True, kw_only=True)
class PackedTargets:
    """What a teacher says about B views.

    logits:  float16 (float32 on request) [B, C], with each row's maximum subtracted.
    entropy: float32 [B], of the unrounded distribution at temperature 1, in nats.
    """

    logits: Tensor
    entropy: Tensor


def pack(logits_BC: Tensor, dtype: torch.dtype = torch.float16) -> PackedTargets:
    """Round a teacher's logits [B, C] to what a cache stores; no row depends on another.

    Subtracting the row's maximum keeps softmax and spends float16's precision where the probability is: an error of at
    most 1.1e-4 in any probability (bfloat16: 7.5e-3).
    """
    logits_BC = logits_BC.float()
    centred_BC = logits_BC - logits_BC.amax(dim=-1, keepdim=True)
    # Beyond float16's range the probability is 0 either way, but an infinity would turn a student || teacher KL into NaN.
    return PackedTargets(logits=centred_BC.clamp(min=_LOWEST).to(dtype), entropy=entropy(logits_BC))
