"""torch.compile with the settings that udkd relies on: one graph, static shapes, and options that are known to exist."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from udkd.utils.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])

_MAX_RECOMPILES = 64
"""Shapes that one process may compile a function for: progressive resizing and consecutive runs exceed PyTorch's 8."""

_SETTING_THAT_DISABLES = {
    "realize_opcount_threshold": "perf.gathered_pool=false",
    "force_layout_optimization": "perf.force_layout=false",
    "combo_kernels": "perf.combo_kernels=false",
}
"""Inductor option -> recipe setting that makes it unnecessary."""


def compiled(function: Function, options: dict[str, Any] | None = None) -> Function:
    """Compile a function as one graph, once per input shape, at the first call; a graph break is an error.

    options: inductor's options. Raises ConfigError if this PyTorch does not have one of them.
    """
    _check_options(options or {})
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_RECOMPILES)
    one_graph: Any = torch.compile(function, fullgraph=True, dynamic=False, options=options)
    return one_graph  # type: ignore[no-any-return]


def _check_options(options: dict[str, Any]) -> None:
    """Raise ConfigError if this PyTorch lacks one of inductor's options, or the dynamo setting that `compiled` changes."""
    known = torch._inductor.list_options() if options else []
    missing = {f"inductor option {name}": _SETTING_THAT_DISABLES[name] for name in options if name not in known}
    if not hasattr(torch._dynamo.config, "recompile_limit"):
        missing["torch._dynamo.config.recompile_limit"] = "train.compile=off"
    if missing:
        lacking = " and ".join(f"no {name}, which {setting.partition('=')[0]} needs" for name, setting in missing.items())
        remedy = " ".join(f"--set {setting}" for setting in missing.values())
        raise ConfigError(f"PyTorch {torch.__version__} has {lacking}; expected PyTorch 2.11 to 2.14; use {remedy}")
