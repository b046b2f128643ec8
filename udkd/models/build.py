"""Builds classifiers by name. Their randomness is a pure function of (seed, student, step)."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import StochasticDepth

from udkd.models.architectures import failure, is_torchvision, make, own_input, require_known
from udkd.utils.errors import ConfigError
from udkd.utils.hash32 import hash32
from udkd.utils.rng import key

_32_BITS = 0xFFFFFFFF


def build(architecture: str, num_classes: int, *, image_px: int, seed: int) -> nn.Module:
    """A classifier with `num_classes` outputs and weights drawn from `seed`; float32, on the CPU.

    architecture: see udkd.models.architectures.

    Raises ConfigError for an unknown architecture and for one that cannot take images of image_px pixels.
    """
    check_input_size(architecture, num_classes, image_px)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(key(seed)[0] >> 1))
        model = make(architecture, num_classes, image_px)
        if is_torchvision(architecture) and isinstance(model, torchvision.models.ResNet):
            _zero_init_residual(model)
    return _use_keyed_dropout(model.float())


def _zero_init_residual(model: torchvision.models.ResNet) -> None:
    """Initialise every residual branch to zero, like torchvision's zero_init_residual.

    Source: Goyal et al., arXiv 1706.02677, section 5.1. With torchvision's default a ResNet-50 hardly learns in the first 100
    steps (10 classes, 1,600 images, 4 epochs: top-1 of 18 to 53 %, against 73 % with this initialisation).
    """
    for module in model.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
        elif isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)


def check_input_size(architecture: str, num_classes: int, image_px: int) -> None:
    """Run a classifier in training mode with a batch of 2. Takes up to a second, once per process.

    torchvision's run on the meta device, others on the CPU, as they may do what the meta device cannot.
    Raises ConfigError if the images are too small or too large, or the architecture is unknown, or has auxiliary outputs or
    other than num_classes of them.
    """
    _random_ops(architecture, num_classes, image_px)


def require_keyed_randomness(architecture: str, num_classes: int, image_px: int) -> None:
    """ConfigError if a classifier's training draws random numbers that no seed and step determine; also checks its input."""
    names = _random_ops(architecture, num_classes, image_px)
    if names and not is_torchvision(architecture):
        raise ConfigError(
            f"{architecture} draws random numbers in its forward pass ({', '.join(sorted(names))}); expected torch.nn.Dropout "
            "alone, one for each place, whose masks are a function of (seed, step), so that a resumed run has the same bits; "
            "use that, or a probability of 0"
        )


@cache
def _random_ops(architecture: str, num_classes: int, image_px: int) -> frozenset[str]:
    """The operations of a training pass that read PyTorch's random generator. Raises as `check_input_size`."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_torchvision(architecture):
            model, device = _meta_model(architecture, num_classes), torch.device("meta")
        else:
            model = _use_keyed_dropout(make(architecture, num_classes, image_px)).train()
            device = torch.device("cpu")
        applied: list[KeyedDropout] = []
        for layer in dropout_layers(model):
            layer.register_forward_pre_hook(lambda module, inputs: applied.append(module))
        with device, _RandomOps() as random_ops:
            try:
                logits = model(torch.empty(2, 3, image_px, image_px).zero_())
            except Exception as error:  # whatever a user's code raises
                is_plain = isinstance(error, RuntimeError | ValueError | AssertionError)
                reason = next(iter(str(error).splitlines()), type(error).__name__) if is_plain else failure(error)
                raise ConfigError(
                    f"{architecture} cannot take {image_px} px images ({reason}); expected a size it accepts; "
                    f"change views.size_px{_own_size(architecture, image_px)}"
                ) from None
    if not isinstance(logits, Tensor):
        raise ConfigError(f"{architecture} returns auxiliary outputs; expected logits alone; choose another architecture")
    if logits.shape != (2, num_classes):
        raise ConfigError(
            f"{architecture} returns {list(logits.shape)} for 2 images; expected logits [2, {num_classes}]; "
            "make its last layer as wide as num_classes says"
        )
    repeated = {"one Dropout in several places, where it would have one mask"} if len(set(applied)) < len(applied) else set()
    return frozenset(random_ops.names | repeated)


def _own_size(architecture: str, image_px: int) -> str:
    own = own_input(architecture)
    differs = own is not None and own.size_px not in (0, image_px)
    return f", or for a teacher set teacher.size_px to its own {own.size_px}" if own and differs else ""


class _RandomOps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the names of the operations that read PyTorch's random generator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Fused attention has the tag and draws only with dropout.
        if torch.Tag.nondeterministic_seeded in func.tags and "scaled_dot_product" not in func.name():
            self.names.add(func.name().removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


@lru_cache(maxsize=32)
def meta_state_dict(architecture: str, num_classes: int, image_px: int = 0) -> Mapping[str, Tensor]:
    """The state dict of a classifier on the meta device: names, shapes and dtypes without data.

    image_px: for networks whose weights depend on it (see udkd.models.architectures.make).
    """
    state: Mapping[str, Tensor] = _meta_model(architecture, num_classes, image_px).state_dict()
    return state


def parameter_count(architecture: str, num_classes: int, image_px: int = 0) -> int:
    """The number of trainable parameters of a classifier."""
    return num_parameters(_meta_model(architecture, num_classes, image_px))


@cache
def head_parameter_names(architecture: str) -> list[str]:
    """Names of the parameters of the layer that computes the logits, the weight first. They have one row per class."""
    two, three = meta_state_dict(architecture, 2), meta_state_dict(architecture, 3)
    names = [name for name, value in two.items() if value.shape != three[name].shape]
    if not names:
        raise ConfigError(
            f"{architecture} is the same network for 2 and 3 classes; expected a last layer as wide as num_classes says; "
            "correct it"
        )
    return names


def _meta_model(architecture: str, num_classes: int, image_px: int = 0) -> nn.Module:
    """A classifier on the meta device. Raises ConfigError for an unknown architecture."""
    require_known(architecture)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about initial weights, and about networks that check_input_size refuses
        if not is_torchvision(architecture):
            return _use_keyed_dropout(make(architecture, num_classes, image_px)).to("meta")
        with torch.device("meta"), _MetaMode():
            return make(architecture, num_classes, image_px).to("meta")


_RANDOM_INIT = (Tensor.normal_, Tensor.uniform_)


class _MetaMode(TorchFunctionMode):
    """Makes torch.arange and torch.tensor use the CPU despite the default device, as RegNet reads layer widths from them.

    Skips the random initialisation of meta tensors, which would take half the time.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _RANDOM_INIT and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}) | ({"device": "cpu"} if func in (torch.arange, torch.tensor) else {}))


def first_difference(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Why `state` cannot be loaded into a network with the state dict `expected`; empty if it can."""
    for name, value in expected.items():
        if name not in state:
            return f"it lacks {name}"
        if state[name].shape != value.shape:
            return f"{name} is {list(state[name].shape)}, expected {list(value.shape)}"
    return next((f"it also holds {name[:100]}" for name in state if name not in expected), "")


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """load_state_dict for plain tensors. MNASNet needs the version of its layout, which a file of tensors does not store."""
    versioned = OrderedDict(weights)
    versioned._metadata = {"": {"version": model._version}}  # type: ignore[attr-defined]  # where load_state_dict looks for it
    model.load_state_dict(versioned)


def num_parameters(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def dropout_keys(seed: int, student: int, steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """The dropout key of a student's forward pass in each of n steps: int64 [n], of which 32 bits are used."""
    return (key(seed, student, steps) & np.uint64(_32_BITS)).astype(np.int64)


def dropout_layers(model: nn.Module) -> list["KeyedDropout"]:
    """The dropout layers of a model. Set their `key` before each forward pass."""
    return [module for module in model.modules() if isinstance(module, KeyedDropout)]


class KeyedDropout(nn.Module):
    """Dropout whose mask is a hash of (key, layer, element). It has no state, so eager, compiled and resumed runs agree.

    p: probability of a zero. layer: index of the layer, so that layers of a network have different masks.
    per_sample: one draw for all elements of a sample (stochastic depth in torchvision's mode "row").
    key: int64 [], of the forward pass, from `dropout_keys`. part: int64 [], see `set_part`.
    """

    key: Tensor
    part: Tensor | None

    def __init__(self, p: float, layer: int, *, per_sample: bool = False) -> None:
        super().__init__()
        self.p = p
        self.layer = layer
        self.per_sample = per_sample
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("part", None, persistent=False)

    def set_part(self, part: int) -> None:
        """Say which of a batch's equal parts comes next: it gets its rows of the mask that the complete batch would have."""
        if self.part is None:
            self.part = torch.zeros_like(self.key)
        self.part.fill_(part)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        shape = (x.shape[0], *[1] * (x.dim() - 1)) if self.per_sample else x.shape
        count = x.shape[0] if self.per_sample else x.numel()
        counter = torch.arange(count, device=x.device)
        if self.part is not None:
            counter = counter + self.part * count
        bits = hash32(counter + hash32(self.key ^ (self.layer << 20)))
        keep = (bits >= int(self.p * 2**32)).view(shape)
        return x * (keep / (1 - self.p) if self.p < 1 else keep).to(x.dtype)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"p={self.p}, layer={self.layer}"


def sample_dropout(ids_B: Tensor, mask_key: int, width: int, p: float) -> Tensor:
    """Dropout masks, float32 [B, width], scaled to keep the mean: a pure function of (mask_key, id, column).

    ids_B: int64 [B], on any device. A mask does not depend on the other samples, so cached and live targets agree.
    """
    row_B1 = hash32(ids_B ^ (mask_key & _32_BITS))[:, None]
    bits_BF = hash32(row_B1 + torch.arange(width, device=ids_B.device))
    return (bits_BF >= int(p * 2**32)).float() / (1 - p)


def _use_keyed_dropout(model: nn.Module) -> nn.Module:
    layer = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            keyed = _keyed(child, layer + 1)
            if keyed is None:
                continue
            layer += 1
            if keyed.p > 0:  # without a key to set in each step
                setattr(parent, name, keyed)
    return model


def _keyed(module: nn.Module, layer: int) -> KeyedDropout | None:
    """The KeyedDropout in place of dropout, or of torchvision's or timm's stochastic depth; None for other modules."""
    if isinstance(module, nn.Dropout) and type(module).forward is nn.Dropout.forward:
        return KeyedDropout(module.p, layer)
    if isinstance(module, StochasticDepth):
        return KeyedDropout(module.p, layer, per_sample=module.mode == "row")
    if type(module).__name__ == "DropPath" and getattr(module, "scale_by_keep", False):
        return KeyedDropout(float(getattr(module, "drop_prob", 0.0)), layer, per_sample=True)
    return None
