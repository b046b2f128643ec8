"""What a network expects of its input: the interpolation of its views, and the mean and std of their normalisation."""

from dataclasses import dataclass
from typing import Literal

from udkd.utils.errors import ConfigError

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a view becomes a network's input: resized with `interpolation`, then (x / 255 - mean) / std for each channel.

    mean, std: of red, green and blue in [0, 1]; the default is ImageNet's, which torchvision's and most of timm's networks were
    trained with. interpolation: of the antialiased resize, as Pillow and torchvision define bilinear and bicubic.
    Raises ConfigError for values that no image has.

        udkd.Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic")
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(0 <= value <= 1 for value in values) or (name == "std" and min(values) == 0):
                raise ConfigError(
                    f"{name} {list(values)}; expected red, green and blue in [0, 1], as pixels are divided by 255; change it"
                )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(f"interpolation {self.interpolation!r}; expected bilinear or bicubic; change it")

    @property
    def key_values(self) -> dict[str, object]:
        """Plain values for the key of a cache; without bilinear, which was the only interpolation of earlier caches."""
        values: dict[str, object] = {"mean": list(self.mean), "std": list(self.std)}
        return values if self.interpolation == "bilinear" else values | {"interpolation": self.interpolation}


IMAGENET = Preprocessing()


@dataclass(frozen=True, kw_only=True)
class NetworkInput:
    """The input of one network: square images of size_px pixels, and their preprocessing."""

    size_px: int
    preprocessing: Preprocessing = IMAGENET
