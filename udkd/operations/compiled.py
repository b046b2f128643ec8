"""What torch.compile is given, and what it is not: decided once, when a step is built.

Compiled whole, a step is three graphs: the floating part of the augmentation, all students and the loss forward, and their
backward pass. Letters: B batch, C classes, N students, O the view's side.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from udkd.words.errors import ConfigError
from udkd.words.losses import Loss, LossSettings, Terms, distill

Network = Callable[[Tensor], Tensor]
Forward = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], tuple[list[Tensor], Terms]]
MixedForward = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor], tuple[list[Tensor], Terms, list[list[Tensor]]]]
Function = TypeVar("Function", bound=Callable[..., Any])

_RECOMPILES = 64
"""Shapes that one function may be compiled for in a process: progressive resizing and several runs in turn need more than 8."""

_WITHOUT = {
    "realize_reads_threshold": "tune.realize_reads=0",
    "realize_opcount_threshold": "tune.gathered_pool=false",
    "force_layout_optimization": "tune.force_layout=false",
    "combo_kernels": "tune.combo_kernels=false",
    "max_autotune": "tune.autotune=false",
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


def eager_loss(settings: LossSettings) -> Loss:
    """The oracle with its settings bound."""
    return partial(distill, settings=settings)


def compiled_loss(settings: LossSettings) -> Loss:
    """The same signature, compiled whole: the same function, fewer passes over memory."""
    return compiled(eager_loss(settings))


def forward(networks: Sequence[Network], loss: Loss, *, device_type: str, autocast: bool) -> Forward:
    """All students on one input, then their loss: (x [B, 3, O, O], labels, teacher, weight) -> (N logits [B, C], terms)."""

    def all_students(
        x_BCHW: Tensor, labels_B: Tensor, teacher_BC: Tensor | None, weight_B: Tensor | None
    ) -> tuple[list[Tensor], Terms]:
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=autocast):
            logits = [network(x_BCHW) for network in networks]
        return logits, loss(logits, labels_B, teacher_BC, weight_B)

    return all_students


def mixed_forward(
    networks: Sequence[Callable[[Tensor], tuple[Tensor, list[Tensor]]]],
    loss: Callable[..., Terms],
    *,
    device_type: str,
    autocast: bool,
) -> MixedForward:
    """`forward` of networks that hand out maps, with weights [3, N] in place of the settings': the maps come out too.

    loss: `distill` with its settings bound, compiled or not.
    """

    def all_students(
        x_BCHW: Tensor, labels_B: Tensor, teacher_BC: Tensor | None, weight_B: Tensor | None, weights_3N: Tensor
    ) -> tuple[list[Tensor], Terms, list[list[Tensor]]]:
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=autocast):
            seen = [network(x_BCHW) for network in networks]
        logits = [logits_BC for logits_BC, _ in seen]
        return logits, loss(logits, labels_B, teacher_BC, weight_B, weights=weights_3N), [maps for _, maps in seen]

    return all_students


def on_streams(networks: Sequence[Network], device: torch.device) -> list[Network]:
    """Networks that run beside each other, each on a CUDA stream of its own; where there are no streams, as they are.

    The backward pass follows: autograd runs an operation's gradient on the operation's stream.
    """
    if device.type != "cuda":
        return list(networks)
    gathering: list[torch.cuda.Stream] = [torch.cuda.Stream(device) for _ in networks]  # type: ignore[no-untyped-call]

    def beside(place: int, x_BCHW: Tensor) -> Tensor:
        if place == 0:  # all streams start from here, and the last network to be called waits for all
            for stream in gathering:
                stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(gathering[place]):
            logits_BC = networks[place](x_BCHW)
        if place == len(networks) - 1:
            for stream in gathering:
                torch.cuda.current_stream(device).wait_stream(stream)
        return logits_BC

    return [partial(beside, place) for place in range(len(networks))]
