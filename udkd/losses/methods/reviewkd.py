"""Knowledge review: each stage of a student is fused with its deeper stages, then compared with the teacher's stage.

Letters: B batch, C channels, H W positions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udkd.losses.methods.attention import to_common_size
from udkd.losses.methods.options import ReviewkdSection
from udkd.losses.methods.registry import MethodInputs, MethodSetup

LEVELS = (4, 2, 1)
"""Sides of the averaged maps that are compared, too."""


def hierarchical_context(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """The weighted mean over levels of the mean squared difference of two maps: a scalar.

    The first level is the maps themselves; then come their averages at those LEVELS that are smaller than the maps, each with
    half the weight of the one before.

    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021 (arXiv 2104.09044), the hierarchical context
    loss.
    """
    student_BCHW, teacher_BCHW = to_common_size(student_BCHW, teacher_BCHW.detach())
    levels = [level for level in LEVELS if level < min(student_BCHW.shape[2:])]
    maps = [(student_BCHW, teacher_BCHW)]
    maps += [(F.adaptive_avg_pool2d(student_BCHW, level), F.adaptive_avg_pool2d(teacher_BCHW, level)) for level in levels]
    weights = [0.5**n for n in range(len(maps))]
    terms = [weight * F.mse_loss(one, other) for weight, (one, other) in zip(weights, maps, strict=True)]
    return torch.stack(terms).sum() / sum(weights)


class Fusion(nn.Module):
    """Attention-based fusion of a stage with the residual of the deeper ones (the paper's ABF).

    Input: a stage [B, channels, H, W] and the residual of the deeper stages [B, middle, h, w] (None for the deepest stage).
    Output: the map to compare with the teacher's [B, teacher_channels, H, W], and the residual [B, middle, H, W].
    """

    def __init__(self, channels: int, middle: int, teacher_channels: int, *, deepest: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(channels, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.outer = nn.Sequential(
            nn.Conv2d(middle, teacher_channels, 3, padding=1, bias=False), nn.BatchNorm2d(teacher_channels)
        )
        self.attention = None if deepest else nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid())

    def forward(self, stage_BCHW: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map to compare, and the residual for the next stage."""
        fused = self.inner(stage_BCHW)
        if self.attention is not None:
            assert residual is not None, "only the deepest stage has no residual"
            deeper = F.interpolate(residual, fused.shape[2:], mode="nearest")
            gates_B2HW = self.attention(torch.cat([fused, deeper], dim=1))
            fused = fused * gates_B2HW[:, :1] + deeper * gates_B2HW[:, 1:]
        return self.outer(fused), fused


class Review(nn.Module):
    """All fusions of a student. It returns a map to compare with each of the teacher's stages.

    student, teacher: channels of each stage, shallow to deep. Both have the same number of stages.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        middle = min(512, student[-1])  # the authors' choice
        last = len(student) - 1
        self.fusions = nn.ModuleList(
            Fusion(channels, middle, teacher_channels, deepest=index == last)
            for index, (channels, teacher_channels) in enumerate(zip(student, teacher, strict=True))
        )

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """A map for each of the student's stages, shallow to deep."""
        residual: Tensor | None = None
        maps: list[Tensor] = []
        for fusion, stage_BCHW in zip(reversed(self.fusions), reversed(stages), strict=True):
            compared, residual = fusion(stage_BCHW, residual)
            maps.append(compared)
        return maps[::-1]


def review_loss(maps: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The sum of `hierarchical_context` over stages, a scalar: the paper's review loss with residual learning."""
    return torch.stack([hierarchical_context(one, other) for one, other in zip(maps, teacher, strict=True)]).sum()


class ReviewTerm(nn.Module):
    """The loss method "reviewkd": `review_loss` of fused maps."""

    def __init__(self, options: ReviewkdSection, setup: MethodSetup) -> None:
        super().__init__()
        self.options = options
        self.review = Review(setup.channels, setup.teacher_channels)

    def forward(self, inputs: MethodInputs) -> Tensor:
        """The term, a scalar."""
        maps = self.review([map_BCHW.float() for map_BCHW in inputs.maps])
        return self.options.weight * review_loss(maps, [map_BCHW.float() for map_BCHW in inputs.teacher_maps])
