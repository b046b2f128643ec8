"""Feature maps of any torchvision classifier, captured by forward hooks.

Letters: B batch, C channels, H W positions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer

from udkd.utils.errors import ConfigError

_HEADS = ("classifier", "head", "heads", "fc")
_NO_MAPS = (nn.AdaptiveAvgPool2d, nn.Flatten)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The deepest feature map of one size. module: name of the module that outputs it. channels: C. size: (H, W)."""

    module: str
    channels: int
    size: tuple[int, int]


def stages(model: nn.Module, image_px: int) -> list[Stage]:
    """The deepest feature map of each size, large to small; for a ResNet the outputs of its stem and its four layers.

    The model runs once on zeros in evaluation mode; its mode is restored. Raises ConfigError for a network without maps
    [B, C, H, W], such as a vision transformer.
    """
    by_size: dict[tuple[int, int], Stage] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            # The input is square, and so are maps: others are tokens, or maps with their channels last.
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] == output.shape[3]:
                size = (output.shape[2], output.shape[3])
                by_size.pop(size, None)  # so that the size moves to the end of the dict
                by_size[size] = Stage(module=name, channels=output.shape[1], size=size)

        return hook

    if isinstance(model, SwinTransformer | VisionTransformer):
        raise _no_maps(model)
    handles = [module.register_forward_hook(record(name)) for name, module in _trunk(model)]
    weight, training = next(model.parameters()), model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, image_px, image_px, device=weight.device, dtype=weight.dtype))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if not by_size:
        raise _no_maps(model)
    return list(by_size.values())


def _no_maps(model: nn.Module) -> ConfigError:
    return ConfigError(
        f"{type(model).__name__} has no feature maps [channels, height, width]; expected a convolutional network; "
        "choose another architecture, or a loss.method that needs logits alone"
    )


def _trunk(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """A network's blocks in order: its children, with nn.Sequential expanded, and without the head and the final pooling."""
    for name, child in model.named_children():
        if not prefix and name in _HEADS:
            continue
        if type(child) is nn.Sequential:
            yield from _trunk(child, f"{prefix}{name}.")
        elif not isinstance(child, _NO_MAPS):
            yield f"{prefix}{name}", child


class FeatureExtractor:
    """Wraps a network to return feature maps too: x [B, 3, O, O] -> (logits [B, C], maps). It adds hooks to the network.

    modules: names of the submodules whose outputs are the maps, in this order.
    """

    def __init__(self, model: nn.Module, modules: list[str]) -> None:
        self._model = model
        self._maps: list[Tensor | None] = [None] * len(modules)
        for index, name in enumerate(modules):
            model.get_submodule(name).register_forward_hook(self._keep(index))

    def __call__(self, x_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits_BC = self._model(x_BCHW)
        maps = [map_BCHW for map_BCHW in self._maps if map_BCHW is not None]
        for index in range(len(self._maps)):
            self._maps[index] = None
        return logits_BC, maps

    def _keep(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._maps[index] = output

        return hook


def pooled(map_BCHW: Tensor) -> Tensor:
    """The mean over positions, float32 [B, C]. For the deepest map this is the input of a ResNet's or MobileNet's head."""
    return map_BCHW.float().mean((2, 3))
