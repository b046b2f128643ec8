"""How unsure a teacher is of a sample, and the weight that follows.

Letters: B batch, C classes.
"""

import math

import torch
from torch import Tensor


def entropy(logits_BC: Tensor) -> Tensor:
    """Entropy of softmax(logits) at temperature 1, in nats: float32 [B], in [0, ln C].

    Source: arXiv 2511.18826, the uncertainty of the teacher's prediction.
    """
    log_p_BC = torch.log_softmax(logits_BC.float(), dim=-1)
    return -(log_p_BC.exp() * log_p_BC).sum(-1)


def entropy_weight(entropy_B: Tensor, num_classes: int) -> Tensor:
    """The confidence weight w = 1 - H / ln C, clipped to [0, 1]: float32 [B].

    Source: arXiv 2511.18826; it multiplies the teacher term of a sample.
    """
    return (1.0 - entropy_B / math.log(num_classes)).clamp(0.0, 1.0)
