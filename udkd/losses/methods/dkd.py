"""Decoupled knowledge distillation (DKD): separately weighted divergences of the target class and of the other classes.

Letters: B batch, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udkd.losses.distill import at_least_float32, kl
from udkd.losses.methods.options import DkdSection
from udkd.losses.methods.registry import MethodInputs, MethodSetup


def dkd(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    target: float = 1.0,
    others: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """t^2 (target KL(b_T || b_S) + others KL(p_T || p_S)), batch mean: a scalar.

    b: the probabilities of the target class and of all other classes together. p: softmax over the other classes.
    student_BC, teacher_BC: logits of any float dtype, the teacher's up to a constant per row and without gradient.
    labels_B: int64 [B]. target, others: the paper's alpha and beta.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022 (arXiv 2203.08679), equations 5 to 7.
    """
    parts = [
        _parts(z_BC / temperature, labels_B) for z_BC in (at_least_float32(teacher_BC).detach(), at_least_float32(student_BC))
    ]
    (teacher_b, teacher_p), (student_b, student_p) = parts
    return temperature**2 * (target * kl(teacher_b, student_b) + others * kl(teacher_p, student_p)).mean()


def _parts(z_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (target, all others) [B, 2], and of each other class among the others [B, C - 1].

    The target's column is left out by a gather: the common mask of -inf gives NaN in a divergence.
    """
    column = torch.arange(z_BC.shape[1] - 1, device=z_BC.device)
    others_BC = z_BC.gather(1, column + (column >= labels_B[:, None]))
    # log p and log (1 - p) of the target, both precise in the tails; computing 1 - p from p would cancel.
    margin_B = z_BC.gather(1, labels_B[:, None])[:, 0] - others_BC.logsumexp(-1)
    return torch.stack([F.logsigmoid(margin_B), F.logsigmoid(-margin_B)], dim=-1), others_BC.log_softmax(-1)


class Dkd(nn.Module):
    """The loss method "dkd": `dkd` with its options."""

    def __init__(self, options: DkdSection, setup: MethodSetup) -> None:
        super().__init__()
        self.options = options

    def forward(self, inputs: MethodInputs) -> Tensor:
        """The term, a scalar."""
        return dkd(inputs.logits, inputs.teacher_logits, inputs.labels, **self.options.model_dump())
