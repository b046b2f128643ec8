"""Knowledge review: a student's stages, fused with its deeper ones, are compared with the teacher's.

Letters: B batch, C channels, H W positions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from udkd.losses.methods.attention import same_size
from udkd.losses.methods.registry import MethodInputs, MethodSetup, register_method
from udkd.utils.options import Positive, Section

LEVELS = (4, 2, 1)
"""Sides to which maps are averaged for further comparisons."""


def hierarchical_context(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Mean squared difference of two maps and of their averages over LEVELS, each level with half the weight of the one before.

    A scalar, divided by the sum of the weights; levels not below the map's side are left out.

    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021 (arXiv 2104.09044), the hierarchical context
    loss.
    """
    student_BCHW, teacher_BCHW = same_size(student_BCHW, teacher_BCHW.detach())
    levels = [level for level in LEVELS if level < min(student_BCHW.shape[2:])]
    maps = [(student_BCHW, teacher_BCHW)]
    maps += [(F.adaptive_avg_pool2d(student_BCHW, level), F.adaptive_avg_pool2d(teacher_BCHW, level)) for level in levels]
    weights = [0.5**n for n in range(len(maps))]
    terms = [weight * F.mse_loss(one, other) for weight, (one, other) in zip(weights, maps, strict=True)]
    return torch.stack(terms).sum() / sum(weights)


class Fusion(nn.Module):
    """Attention-based fusion of a stage with the residual of the deeper ones (the paper's ABF).

    Takes a stage [B, channels, H, W] and the deeper stages' residual [B, middle, h, w] (None at the deepest); gives the map to
    compare with the teacher's [B, teacher_channels, H, W] and the residual for the next stage [B, middle, H, W].
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
    """All fusions of a student: maps to compare with each of the teacher's stages.

    student, teacher: channels of each stage, shallow to deep, the same number of stages.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        middle = min(512, student[-1])  # the authors' choice
        last = len(student) - 1
        self.fusions = nn.ModuleList(
            Fusion(channels, middle, wanted, deepest=index == last)
            for index, (channels, wanted) in enumerate(zip(student, teacher, strict=True))
        )

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """A map for each of the student's stages (shallow to deep)."""
        residual: Tensor | None = None
        maps: list[Tensor] = []
        for fusion, stage_BCHW in zip(reversed(self.fusions), reversed(stages), strict=True):
            compared, residual = fusion(stage_BCHW, residual)
            maps.append(compared)
        return maps[::-1]


def review(maps: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The sum over stages of `hierarchical_context`: a scalar, the paper's review loss with residual learning."""
    return torch.stack([hierarchical_context(one, other) for one, other in zip(maps, teacher, strict=True)]).sum()


class ReviewkdSection(Section):
    """Knowledge review over the deepest maps of each of the `stages` smallest sizes."""

    weight: Positive = 1.0
    stages: int = Field(default=4, ge=1, le=64)


@register_method("reviewkd", ReviewkdSection, title="ReviewKD", needs="maps", depth="stages")
class ReviewTerm(nn.Module):
    """The loss method "reviewkd": `review` of fused maps."""

    def __init__(self, options: ReviewkdSection, setup: MethodSetup) -> None:
        super().__init__()
        self.options = options
        self.review = Review(setup.channels, setup.teacher_channels)

    def forward(self, inputs: MethodInputs) -> Tensor:
        """The term, a scalar."""
        maps = self.review([map_BCHW.float() for map_BCHW in inputs.maps])
        return self.options.weight * review(maps, [map_BCHW.float() for map_BCHW in inputs.teacher_maps])
