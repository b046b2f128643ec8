"""Attention transfer: where in the image a network is active."""

import torch.nn.functional as F
from torch import Tensor


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
