"""Attention transfer: where in the image a network is active."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from udkd.losses.methods.registry import MethodInputs, MethodSetup, register_method
from udkd.utils.options import Positive, Section


def attention_map(map_BCHW: Tensor) -> Tensor:
    """The mean of squares over channels, as a vector of length 1 over positions: [B, HW].

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928), section 3.1: F_sum^2
    (a mean instead of the sum: the length is 1 either way, and 2,048 squares do not overflow).
    """
    return F.normalize(map_BCHW.square().mean(1).flatten(1), dim=1)


def attention_transfer(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """The mean squared difference of two attention maps, over batch and positions: a scalar; channels may differ.

    The paper's equation 2 for one pair of layers; its factor beta / 2 is "10^3 divided by number of elements in attention map
    and batch size", which a mean times 1,000 is. The larger of two maps is averaged down to the smaller one's size.
    """
    student_BCHW, teacher_BCHW = same_size(student_BCHW, teacher_BCHW)
    return (attention_map(student_BCHW) - attention_map(teacher_BCHW)).square().mean()


def same_size(one_BCHW: Tensor, other_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller height and width, by averaging."""
    one, other = one_BCHW.shape[2:], other_BCHW.shape[2:]
    size = (min(one[0], other[0]), min(one[1], other[1]))
    maps = [x if tuple(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size) for x in (one_BCHW, other_BCHW)]
    return maps[0], maps[1]


class AttentionSection(Section):
    """Attention transfer between the deepest maps of each of the `stages` smallest sizes."""

    weight: Positive = 1000.0
    stages: int = Field(default=4, ge=1, le=64)


@register_method("attention", AttentionSection, title="attention transfer", needs="maps", depth="stages")
class Attention(nn.Module):
    """The sum of `attention_transfer` over stages."""

    def __init__(self, options: AttentionSection, setup: MethodSetup) -> None:
        super().__init__()
        self.options = options

    def forward(self, inputs: MethodInputs) -> Tensor:
        """The term, a scalar."""
        pairs = zip(inputs.maps, inputs.teacher_maps, strict=True)
        terms = [attention_transfer(student.float(), teacher.float()) for student, teacher in pairs]
        return self.options.weight * torch.stack(terms).sum()
