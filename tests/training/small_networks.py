"""Networks of a few thousand weights, `tests.training.small_networks:NAME` in a recipe: a step takes milliseconds."""

from itertools import pairwise

from torch import Tensor, nn


class Small(nn.Module):
    """Three convolutions at three resolutions."""

    def __init__(self, num_classes: int, *, norm: bool, dropout: float) -> None:
        super().__init__()
        widths = (3, 8, 16, 32)
        self.blocks = nn.Sequential()
        for before, width in pairwise(widths):
            # No bias before batch norm: its gradient would be rounding only.
            layers = [nn.Conv2d(before, width, 3, stride=2, padding=1, bias=not norm), nn.ReLU()]
            self.blocks.append(nn.Sequential(layers[0], nn.BatchNorm2d(width) if norm else nn.Identity(), layers[1]))
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BC: Tensor = self.fc(self.drop(self.blocks(x_BCHW)).mean((2, 3)))
        return logits_BC


def dropped(num_classes: int) -> nn.Module:
    """With dropout and without batch norm."""
    return Small(num_classes, norm=False, dropout=0.3)


def normed(num_classes: int) -> nn.Module:
    """With batch norm and without dropout."""
    return Small(num_classes, norm=True, dropout=0.0)


def network(name: str, settings: str = "lr=0.05") -> str:
    """A student of a recipe."""
    return f"{{architecture='{__name__}:{name}', name='{name}', {settings}}}"


def students(first: str = "lr=0.05", second: str = "lr=0.05") -> str:
    """Both, with settings of each."""
    return f"students=[{network('dropped', first)}, {network('normed', second)}]"
