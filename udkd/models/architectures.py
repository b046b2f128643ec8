"""Classifiers by name: torchvision's, timm's as `timm/NAME`, or a function of the user's as `package.module:function`."""

import difflib
import importlib
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from udkd.augment.preprocessing import IMAGENET, Interpolation, NetworkInput, Preprocessing
from udkd.utils.errors import ConfigError, DataError

TIMM = "timm/"


def is_torchvision(architecture: str) -> bool:
    """Whether a name is one of torchvision's. Other networks may need more than their class to be built, such as files."""
    return not architecture.startswith(TIMM) and not is_users(architecture)


def is_users(architecture: str) -> bool:
    """Whether a name is that of a user's function, package.module:function."""
    return ":" in architecture and not architecture.startswith(TIMM)


def make(architecture: str, num_classes: int, image_px: int) -> nn.Module:
    """A classifier with `num_classes` outputs, initialised by PyTorch's generator.

    image_px: passed on as img_size to timm's networks with a fixed input size, such as vision transformers.
    A user's function is called as function(num_classes=...). Raises ConfigError for a name that leads to no classifier.
    """
    require_known(architecture)
    if is_torchvision(architecture):
        model: nn.Module = torchvision.models.get_model(architecture, weights=None, num_classes=num_classes)
        return model
    if architecture.startswith(TIMM):
        return _make_timm(architecture, num_classes, image_px, pretrained=False)
    function = _function(architecture)
    try:
        made = function(num_classes=num_classes)
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(
            f"{architecture} failed ({failure(error)}); expected a function that is called with num_classes=…; correct it"
        ) from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{architecture} returned {type(made).__name__}; expected a torch.nn.Module; correct it")
    return made


@cache
def require_known(architecture: str) -> None:
    """ConfigError unless a name is torchvision's or timm's, or can be imported."""
    if architecture.startswith(TIMM):
        name = architecture.removeprefix(TIMM)
        timm = _timm(architecture)
        if ":" not in name and not timm.is_model(name):
            known = timm.list_models() + timm.list_pretrained()
            near = difflib.get_close_matches(name, known, n=3)
            suggestion = f"; did you mean {' or '.join(TIMM + each for each in near)}?" if near else "; see timm.list_models()"
            raise ConfigError(
                f"architecture {architecture!r} is unknown to timm {timm.__version__}; expected one of its names{suggestion}"
            )
        if ":" not in name:
            try:
                timm.get_pretrained_cfg(name)
            except RuntimeError:  # an unknown tag
                tags = ", ".join(timm.list_pretrained(name.split(".")[0] + ".*")[:5]) or "none"
                raise ConfigError(
                    f"timm {timm.__version__} has no weights {name!r}; expected a known tag ({tags}); correct it"
                ) from None
    elif is_users(architecture):
        _function(architecture)
    else:
        known = torchvision.models.list_models(module=torchvision.models)
        if architecture not in known:
            near = difflib.get_close_matches(architecture, known, n=3) or ["resnet18", "mobilenet_v2"]
            raise ConfigError(
                f"architecture {architecture!r} is unknown; expected a name of torchvision, timm/NAME or module:function; "
                f"did you mean {' or '.join(near)}?"
            )


def _function(architecture: str) -> Callable[..., Any]:
    module_name, _, function_name = architecture.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # an ImportError, or whatever the user's code raises
        raise ConfigError(
            f"{architecture}: {module_name} cannot be imported ({failure(error)}); expected an importable module; install it, "
            "or run with PYTHONPATH=FOLDER where FOLDER contains it"
        ) from error
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        found = f"{module.__name__} has no function {function_name!r}"
        raise ConfigError(f"{architecture}: {found}; expected one that returns a torch.nn.Module; correct the name")
    return function


def failure(error: Exception) -> str:
    """What a user's code raised, and where, in one line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}, {Path(last.filename).name}:{last.lineno}"


def own_input(architecture: str) -> NetworkInput | None:
    """The input that a network's pretrained weights were trained with; None where that is unknown, size_px 0 where that is.

    From timm's pretrained_cfg, which a user's module may have as well (`pretrained_cfg` with input_size, mean, std and
    interpolation), or from the transforms of torchvision's default weights.
    """
    if is_torchvision(architecture):
        return _torchvision_input(architecture)
    cfg = _pretrained_cfg(architecture)
    if not {"mean", "std"} <= cfg.keys():
        return None
    try:
        preprocessing = Preprocessing(
            mean=_three(cfg["mean"]), std=_three(cfg["std"]), interpolation=_interpolation(cfg.get("interpolation"))
        )
        return NetworkInput(size_px=int((cfg.get("input_size") or (0,))[-1]), preprocessing=preprocessing)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{architecture}: its pretrained_cfg cannot be used ({error}); expected mean, std and input_size; correct it"
        ) from error


def label_names(architecture: str) -> tuple[str, ...] | None:
    """The class of each output of a timm network's published weights, where its pretrained_cfg names them."""
    names = None if is_torchvision(architecture) else _pretrained_cfg(architecture).get("label_names")
    return tuple(map(str, names)) if names else None


def registered_name(architecture: str) -> str:
    """The name in timm's registry of a network from a hub or a folder, which may move; other names as they are."""
    name = architecture.removeprefix(TIMM)
    if not architecture.startswith(TIMM) or ":" not in name:
        return architecture
    registered = str(_pretrained_cfg(architecture).get("architecture", ""))
    return TIMM + registered if registered and _timm(architecture).is_model(registered) else architecture


def default_preprocessing(architecture: str) -> Preprocessing:
    """The preprocessing of a network unless the user says another: its own, or ImageNet's. torchvision's have ImageNet's."""
    if is_torchvision(architecture):
        return IMAGENET
    own = own_input(architecture)
    return IMAGENET if own is None else own.preprocessing


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _interpolation(name: Any) -> Interpolation:
    # timm also has "random" and "nearest": bilinear is the closest to what both see on average.
    return "bicubic" if name == "bicubic" else "bilinear"


@cache
def _torchvision_input(architecture: str) -> NetworkInput | None:
    try:
        transforms = torchvision.models.get_model_weights(architecture).DEFAULT.transforms()
    except ValueError:
        return None
    preprocessing = Preprocessing(
        mean=_three(transforms.mean), std=_three(transforms.std), interpolation=_interpolation(transforms.interpolation.value)
    )
    return NetworkInput(size_px=transforms.crop_size[0], preprocessing=preprocessing)


@cache
def _pretrained_cfg(architecture: str) -> Mapping[str, Any]:
    """A network's pretrained_cfg as plain values; empty for a user's module without one."""
    name = architecture.removeprefix(TIMM)
    if architecture.startswith(TIMM) and ":" not in name:
        require_known(architecture)
        cfg = _timm(architecture).get_pretrained_cfg(name)
        return dict(cfg.to_dict()) if cfg is not None else {}
    with torch.random.fork_rng(devices=[]):
        cfg = getattr(make(architecture, 2, 0), "pretrained_cfg", None)
    return dict(cfg) if isinstance(cfg, Mapping) else {}


def pretrained_state(architecture: str, image_px: int) -> dict[str, Tensor]:
    """The state dict of a library's default pretrained weights, which may be downloaded.

    image_px: as for `make`; timm interpolates position embeddings to it. Raises DataError: none are published, or no network.
    """
    require_known(architecture)
    try:
        if architecture.startswith(TIMM):
            return _make_timm(architecture, None, image_px, pretrained=True).state_dict()
        weights = torchvision.models.get_model_weights(architecture).DEFAULT
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except ValueError:
        raise DataError(f"torchvision has no pretrained {architecture}; expected one such as resnet50") from None
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: not the published hash, or timm without weights
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"the weights of {architecture} could not be downloaded ({reason}); expected a network connection; "
            "copy the file here and name it with --weights, or for a student with init_from"
        ) from None
    return state


def _timm(architecture: str) -> ModuleType:
    try:
        with warnings.catch_warnings(action="ignore"):  # about optional packages
            return importlib.import_module("timm")
    except ImportError:
        raise ConfigError(f"{architecture} needs timm; expected it to be installed; run: pip install 'udkd[timm]'") from None


def _make_timm(architecture: str, num_classes: int | None, image_px: int, *, pretrained: bool) -> nn.Module:
    """timm.create_model. num_classes: None for that of the weights."""
    timm, name = _timm(architecture), architecture.removeprefix(TIMM)
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if image_px and ":" not in name:
        cfg = _pretrained_cfg(architecture)
        if cfg.get("fixed_input_size") and cfg["input_size"][-1] != image_px:
            options["img_size"] = image_px
    try:
        with warnings.catch_warnings(action="ignore"):
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except (RuntimeError, OSError, ValueError, KeyError, AssertionError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if pretrained:
            raise RuntimeError(reason) from error
        raise ConfigError(f"timm cannot create {name} ({reason}); expected one of timm.list_models(); correct it") from error
    return model
