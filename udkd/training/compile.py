"""The loss as a separate function, eager or compiled."""

from collections.abc import Sequence

from torch import Tensor

from udkd.losses.distill import Loss, LossSettings, Terms, distill
from udkd.utils.compile import compiled


def eager_loss(settings: LossSettings) -> Loss:
    """`distill` with its settings bound."""

    def loss(
        logits: Sequence[Tensor], labels_B: Tensor, teacher_BC: Tensor | None, weight_B: Tensor | None, weights_3N: Tensor
    ) -> Terms:
        return distill(logits, labels_B, teacher_BC, weight_B, settings, weights_3N)

    return loss


def compiled_loss(settings: LossSettings) -> Loss:
    """`eager_loss` compiled as one graph: fewer passes over memory."""
    return compiled(eager_loss(settings))
