"""What torch.compile is given, and what it is not: decided once, when a step is built.

Compiled whole, a step is three graphs: the floating part of the augmentation, all students and the loss forward, and their
backward pass. Letters: B batch, C classes, N students, O the view's side.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from udkd.losses.distill import Loss, LossSettings, Terms, distill
from udkd.utils.compile import compiled

Network = Callable[[Tensor], Tensor]
Forward = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], tuple[list[Tensor], Terms]]
MixedForward = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor], tuple[list[Tensor], Terms, list[list[Tensor]]]]


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
