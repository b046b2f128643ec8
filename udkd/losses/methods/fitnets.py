"""FitNets: a hidden layer of the student learns to predict a hidden layer of the teacher.

Letters: B batch, C channels, H W positions.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from udkd.losses.methods.attention import to_common_size
from udkd.losses.methods.options import FitnetsSection
from udkd.losses.methods.registry import MethodInputs, MethodSetup


def hint_loss(regressed_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """The mean squared difference of two feature maps over batch, channels and positions: a scalar.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (arXiv 1412.6550), equation 3, with a mean instead of
    half the sum, so that the term's weight does not depend on the size of the map. The paper trains on hints first and then
    distils; here both are terms of one loss, as in later comparisons.
    """
    student_BCHW, teacher_BCHW = to_common_size(regressed_BCHW, teacher_BCHW)
    return F.mse_loss(student_BCHW, teacher_BCHW.detach())


def regressor(student_channels: int, teacher_channels: int) -> nn.Module:
    """A 1 x 1 convolution to the teacher's channels, batch norm and ReLU, the nonlinearity of the teacher's map."""
    return nn.Sequential(
        nn.Conv2d(student_channels, teacher_channels, 1, bias=False), nn.BatchNorm2d(teacher_channels), nn.ReLU()
    )


class Fitnets(nn.Module):
    """The loss method "fitnets": `hint_loss` through a trained regressor."""

    def __init__(self, options: FitnetsSection, setup: MethodSetup) -> None:
        super().__init__()
        self.options = options
        self.regressor = regressor(setup.channels[0], setup.teacher_channels[0])

    def forward(self, inputs: MethodInputs) -> Tensor:
        """The term, a scalar."""
        return self.options.weight * hint_loss(self.regressor(inputs.maps[0].float()), inputs.teacher_maps[0].float())
