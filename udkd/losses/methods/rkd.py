"""Relational knowledge distillation (RKD): compares distances and angles between the samples of a batch.

Letters: B batch, D and E sizes of the student's and the teacher's features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udkd.losses.methods.options import RkdSection
from udkd.losses.methods.registry import MethodInputs, MethodSetup


def distance_term(student_BD: Tensor, teacher_BE: Tensor) -> Tensor:
    """Huber loss of pairwise distances, a scalar: the mean over pairs of distinct samples.

    The distances of each network are divided by their mean.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068), section 3.2.1, with a mean instead
    of the sum.
    """
    student_BB, teacher_BB = _distances(student_BD), _distances(teacher_BE.detach())
    return F.smooth_l1_loss(student_BB, teacher_BB, reduction="sum") / _choices(len(student_BD), 2)


def angle_term(student_BD: Tensor, teacher_BE: Tensor) -> Tensor:
    """Huber loss of the cosines of the angles in triangles of samples, a scalar: the mean over triples of distinct samples.

    Memory grows with B^3: 512 samples take 0.5 GB per network in float32.

    Source: Park et al. (arXiv 1904.05068), section 3.2.2, with a mean instead of the sum.
    """
    student_BBB, teacher_BBB = _angles(student_BD), _angles(teacher_BE.detach())
    # Triples that are not distinct add nothing: both cosines are 0 if an end is the corner, and 1 if the ends are one sample.
    return F.smooth_l1_loss(student_BBB, teacher_BBB, reduction="sum") / _choices(len(student_BD), 3)


def _distances(e_BD: Tensor) -> Tensor:
    # Not from the Gram matrix, which cancels. The norm's gradient at 0 (the distance of a sample to itself) is 0.
    d_BB: Tensor = torch.linalg.vector_norm(e_BD[:, None] - e_BD[None], dim=-1)
    mean = d_BB.sum() / _choices(len(e_BD), 2)
    return d_BB / mean.clamp_min(torch.finfo(d_BB.dtype).tiny)


def _angles(e_BD: Tensor) -> Tensor:
    """The cosine of the angle at one sample between two others: [B, B, B], indexed by corner, end, other end."""
    direction_BBD = F.normalize(e_BD[None] - e_BD[:, None], dim=-1)
    return direction_BBD @ direction_BBD.transpose(1, 2)


def _choices(count: int, of: int) -> int:
    """The number of ordered pairs or triples of distinct samples, at least 1."""
    return max(1, count * (count - 1) * (count - 2 if of == 3 else 1))


class Rkd(nn.Module):
    """The sum of `distance_term` and `angle_term`."""

    def __init__(self, options: RkdSection, setup: MethodSetup) -> None:
        super().__init__()
        self.options = options

    def forward(self, inputs: MethodInputs) -> Tensor:
        """The term, a scalar."""
        student_BD, teacher_BE = inputs.pooled_pair
        term = self.options.distance * distance_term(student_BD, teacher_BE)
        return term + self.options.angle * angle_term(student_BD, teacher_BE) if self.options.angle else term
