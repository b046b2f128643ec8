"""torch.compile as everything here uses it: one graph, fixed shapes, known options."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from udkd.utils.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])

_RECOMPILES = 64
"""Shapes that one function may be compiled for in a process: progressive resizing and several runs in turn need more than 8."""

_WITHOUT = {
    "realize_opcount_threshold": "perf.gathered_pool=false",
    "force_layout_optimization": "perf.force_layout=false",
    "combo_kernels": "perf.combo_kernels=false",
}
"""The setting that does without each of inductor's options."""


def compiled(function: Function, options: dict[str, Any] | None = None) -> Function:
    """A function as one graph (a graph break is an error) for the shapes it meets; the first call compiles.

    options: inductor's; ConfigError for one that this PyTorch does not have.
    """
    _check(options or {})
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILES)
    one_graph: Any = torch.compile(function, fullgraph=True, dynamic=False, options=options)
    return one_graph  # type: ignore[no-any-return]


def _check(options: dict[str, Any]) -> None:
    """ConfigError if this PyTorch has renamed one of inductor's options, or what `compiled` sets of dynamo's."""
    known = torch._inductor.list_options() if options else []
    lost = {f"inductor option {name}": _WITHOUT[name] for name in options if name not in known}
    if not hasattr(torch._dynamo.config, "recompile_limit"):
        lost["torch._dynamo.config.recompile_limit"] = "train.compile=off"
    if lost:
        what = " and ".join(f"no {name}, which {setting.partition('=')[0]} needs" for name, setting in lost.items())
        remedy = " ".join(f"--set {setting}" for setting in lost.values())
        raise ConfigError(f"PyTorch {torch.__version__} has {what}; expected PyTorch 2.11 to 2.14; take {remedy}")
