"""FitNets: a student's middle layer is regressed onto the teacher's.

Letters: B batch, C channels, H W positions.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from udkd.losses.methods.attention import same_size
from udkd.losses.methods.registry import MethodInputs, MethodSetup, register_method
from udkd.utils.options import Positive, Section


def hint(regressed_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """The mean squared difference, over batch, channels and positions: a scalar.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (arXiv 1412.6550), equation 3; its half and its sum
    instead of a mean are left to the term's weight, which then does not depend on the size of the map.
    The paper trains on hints first and distils after that; here both are terms of one loss, as in later comparisons.
    """
    student_BCHW, teacher_BCHW = same_size(regressed_BCHW, teacher_BCHW)
    return F.mse_loss(student_BCHW, teacher_BCHW.detach())


def regressor(student_channels: int, teacher_channels: int) -> nn.Module:
    """A 1 x 1 convolution to the teacher's channels, batch norm and ReLU (the hint's own nonlinearity)."""
    return nn.Sequential(
        nn.Conv2d(student_channels, teacher_channels, 1, bias=False), nn.BatchNorm2d(teacher_channels), nn.ReLU()
    )


class FitnetsSection(Section):
    """A hint from one map. stage: 1 is the deepest size, 2 the one above."""

    weight: Positive = 100.0
    stage: int = Field(default=3, ge=1, le=64)


@register_method("fitnets", FitnetsSection, title="FitNets", needs="maps", depth="stage", single=True)
class Fitnets(nn.Module):
    """The loss method "fitnets": `hint` through a trained regressor."""

    def __init__(self, options: FitnetsSection, setup: MethodSetup) -> None:
        super().__init__()
        self.options = options
        self.regressor = regressor(setup.channels[0], setup.teacher_channels[0])

    def forward(self, inputs: MethodInputs) -> Tensor:
        """The term, a scalar."""
        return self.options.weight * hint(self.regressor(inputs.maps[0].float()), inputs.teacher_maps[0].float())
