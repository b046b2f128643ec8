"""torch.optim's optimizers by name: which of them train a student, and the options that each takes."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from udkd.utils.printable import shorten

OptionValue = bool | int | float | str | tuple[float, ...]

_REFUSED = {
    "ASGD": "averages weights that are never evaluated; train.ema_decay does that",
    "LBFGS": "evaluates the loss several times in a step",
    "Muon": "takes matrices only, and networks have other weights",
    "Rprop": "sets its own step sizes and ignores the learning rate",
    "SparseAdam": "takes sparse gradients only",
}
_KEYS = ("lr", "weight_decay", "momentum", "nesterov")
"""Arguments that are keys of the student itself."""
_NOT_OPTIONS = ("params", *_KEYS, "foreach", "fused", "capturable", "differentiable", "maximize", "dampening")
"""The implementation is chosen by device. dampening: PyTorch leaves it out of the first step, which a CUDA graph repeats."""
_DEFAULT_MOMENTUM = 0.9
_WELL_KNOWN: dict[str, tuple[str, ...]] = {"Adam": (), "AdamW": (), "RMSprop": ("momentum",), "SGD": ("momentum", "nesterov")}
"""Which of momentum and nesterov the usual optimizers take, so that most recipes are read without importing torch."""


def optimizer_names() -> list[str]:
    """The names of the optimizers that can train a student."""
    import torch

    classes = {name: value for name, value in vars(torch.optim).items() if inspect.isclass(value)}
    return sorted(
        name
        for name, value in classes.items()
        if issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer and name not in _REFUSED
    )


def optimizer_class(name: str) -> Any:
    """The class that torch.optim has under a name of `optimizer_names`."""
    import torch

    return getattr(torch.optim, name)


def takes(name: str, argument: str) -> bool:
    """Whether an optimizer's constructor has an argument."""
    return argument in inspect.signature(optimizer_class(name)).parameters


def optimizer_arguments(
    name: str, options: Mapping[str, OptionValue], *, momentum: float, nesterov: bool, weight_decay: float
) -> dict[str, Any]:
    """The arguments of an optimizer's constructor, without the learning rate; momentum and nesterov where it takes them.

    Raises ValueError: an unknown optimizer or option, a value of another type than the option's default or out of its range,
    a momentum that the optimizer does not take.
    """
    if not options and _is_usual(name, momentum, nesterov):
        given = {"momentum": momentum, "nesterov": nesterov}
        return {"weight_decay": weight_decay, **{key: given[key] for key in _WELL_KNOWN[name]}}
    import torch

    names = optimizer_names()
    if name not in names:
        reason = f", which {_REFUSED[name]}" if name in _REFUSED else ""
        raise ValueError(f"optimizer is {shorten(name)!r}{reason}; expected {', '.join(names)}; change it")
    defaults = {
        argument: parameter.default
        for argument, parameter in inspect.signature(optimizer_class(name)).parameters.items()
        if argument not in _NOT_OPTIONS
    }
    for option, value in options.items():
        _require_option(name, option, value, defaults)
    if momentum != _DEFAULT_MOMENTUM and not takes(name, "momentum"):
        raise ValueError(f"momentum is {momentum:g} and {name} takes none; expected an optimizer that does; drop momentum")
    if nesterov and not takes(name, "nesterov"):
        raise ValueError(f"nesterov is true and {name} does not take it; expected an optimizer that does; drop nesterov")
    own = {key: value for key, value in {"momentum": momentum, "nesterov": nesterov}.items() if takes(name, key)}
    arguments: dict[str, Any] = {"weight_decay": weight_decay, **own, **options}
    try:
        optimizer_class(name)([torch.zeros(1)], lr=0.0, **arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"optimizer_options of {name}, with momentum and nesterov, are refused by PyTorch ({error}); "
            "expected values in range; change them"
        ) from None
    return arguments


def _is_usual(name: str, momentum: float, nesterov: bool) -> bool:
    """Whether a well-known optimizer takes these values, which the recipe has bounded. PyTorch explains those it refuses."""
    taken = _WELL_KNOWN.get(name)
    if taken is None or (nesterov and not momentum):
        return False
    return ("momentum" in taken or momentum == _DEFAULT_MOMENTUM) and ("nesterov" in taken or not nesterov)


def _require_option(name: str, option: str, value: OptionValue, defaults: Mapping[str, Any]) -> None:
    """ValueError unless an optimizer has the option, and its default is of the value's type."""
    if option in _KEYS:
        raise ValueError(f"optimizer_options.{option} is a key of the student; expected students.*.{option}; set that")
    if option not in defaults:
        known = ", ".join(defaults) or "none"
        raise ValueError(f"optimizer_options.{shorten(option)} is not an option of {name}; expected {known}; correct it")
    default = defaults[option]
    if isinstance(default, bool):
        fits, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, tuple):
        fits, expected = isinstance(value, tuple) and len(value) == len(default), f"a list of {len(default)} numbers"
    else:
        fits, expected = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    if not fits:
        shown = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        raise ValueError(f"optimizer_options.{option} is {shorten(str(shown))}; expected {expected}; change it")
