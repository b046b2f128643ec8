"""The settings of the loss as plain values, so that reading a recipe does not import torch."""

from dataclasses import dataclass
from typing import Literal

KlKind = Literal["reverse", "forward"]
LabelLoss = Literal["cross_entropy", "evidential"]


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Settings of the loss. A term of weight 0 is not computed.

    alpha: weight of the cross-entropy with the label. beta: of the divergence from the teacher. gamma: from the peers.
    temperature: softens the teacher and peer terms, which are multiplied by its square.
    kl: reverse is KL(student || teacher), the paper's; forward is KL(teacher || student), Hinton's. Applies to peers, too.
    label_smoothing: fraction of the label spread over all classes, without effect on the evidential loss.
    label_loss: the label term: cross-entropy, or `evidential` if there is no teacher.
    """

    alpha: float = 0.4
    beta: float = 0.4
    gamma: float = 0.2
    temperature: float = 4.0
    kl: KlKind = "reverse"
    label_smoothing: float = 0.0
    label_loss: LabelLoss = "cross_entropy"
