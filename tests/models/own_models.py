"""Classifiers of a user's own, by the names `tests.models.own_models:FUNCTION`."""

import torch.nn.functional as F
from torch import Tensor, nn


class TwoLayers(nn.Module):
    """A small convolutional network with a batch norm. One of its submodules has the name of a wrapper's prefix."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.pretrained_cfg = {
            "input_size": (3, 40, 40),
            "mean": (0.5, 0.4, 0.3),
            "std": (0.25, 0.5, 0.2),
            "interpolation": "bicubic",
        }
        self.module = nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BC: Tensor = self.fc(self.module(x_BCHW).mean((2, 3)))
        return logits_BC


class FunctionalDropout(TwoLayers):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BC: Tensor = self.fc(F.dropout(self.module(x_BCHW).mean((2, 3)), 0.5, self.training))
        return logits_BC


class RepeatedDropout(TwoLayers):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BC: Tensor = self.fc(self.module[3](self.module(x_BCHW)).mean((2, 3)))
        return logits_BC


def repeated(num_classes: int) -> nn.Module:
    return RepeatedDropout(num_classes)


def make(num_classes: int) -> nn.Module:
    return TwoLayers(num_classes)


def random(num_classes: int) -> nn.Module:
    return FunctionalDropout(num_classes)


def bare(num_classes: int) -> nn.Module:
    """Without a pretrained_cfg."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))


class Tied(nn.Module):
    """Two convolutions of one weight."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1)
        self.second.weight = self.first.weight
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BC: Tensor = self.fc(self.second(self.first(x_BCHW).relu()).mean((2, 3)))
        return logits_BC


def tied(num_classes: int) -> nn.Module:
    return Tied(num_classes)


def failing(num_classes: int) -> nn.Module:
    raise KeyError("width")


def failing_later(num_classes: int) -> nn.Module:
    model = TwoLayers(num_classes)
    model.register_forward_pre_hook(lambda module, inputs: [inputs][2])
    return model


def fixed(num_classes: int) -> nn.Module:
    return TwoLayers(7)


def no_module(num_classes: int) -> str:
    return "weights"


def raises(num_classes: int) -> nn.Module:
    raise ValueError("my mistake")
