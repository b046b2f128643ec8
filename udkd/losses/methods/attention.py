"""Attention transfer: a student imitates where in the image its teacher is active."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udkd.losses.methods.options import AttentionSection
from udkd.losses.methods.registry import MethodInputs, MethodSetup


def attention_map(map_BCHW: Tensor) -> Tensor:
    """The mean square over channels at each position, normalised to length 1: [B, HW].

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928), section 3.1: F_sum^2.
    The mean replaces the sum: after normalisation they are equal, and a mean of 2,048 squares does not overflow.
    """
    return F.normalize(map_BCHW.square().mean(1).flatten(1), dim=1)


def attention_transfer(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """The mean squared difference of two attention maps over batch and positions: a scalar. The channels may differ.

    This is the paper's equation 2 for one pair of layers. Its factor beta / 2 is "10^3 divided by number of elements in
    attention map and batch size", that is, a mean times 1,000. The larger map is averaged down to the size of the smaller.
    """
    student_BCHW, teacher_BCHW = to_common_size(student_BCHW, teacher_BCHW)
    return (attention_map(student_BCHW) - attention_map(teacher_BCHW)).square().mean()


def to_common_size(one_BCHW: Tensor, other_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Average both maps [B, C, H, W] down to the smaller height and the smaller width."""
    one, other = one_BCHW.shape[2:], other_BCHW.shape[2:]
    size = (min(one[0], other[0]), min(one[1], other[1]))
    maps = [x if tuple(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size) for x in (one_BCHW, other_BCHW)]
    return maps[0], maps[1]


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
