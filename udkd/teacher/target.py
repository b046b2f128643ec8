"""What a teacher says of a batch, and whoever can say it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from udkd.data.batch import Batch


@dataclass(frozen=True, kw_only=True)
class TeacherTargets:
    """What the loss needs of the teacher.

    logits: float16 or float32 [B, C], up to a constant per row, or None where nobody teaches.
    weight: float32 [B], of each sample's teacher term, or None for 1.
    features: float16 or float32 [B, D], the teacher's pooled ones, where a method asks for them.
    maps: feature maps [B, channels, H, W] by the module of the teacher that gave them, where a method asks for some.
    """

    logits: Tensor | None
    weight: Tensor | None
    features: Tensor | None = None
    maps: Mapping[str, Tensor] = field(default_factory=dict)


class TargetSource(Protocol):
    """The teacher's word for any batch: cached, live, or none."""

    def lookup(self, batch: Batch, x_BCHW: Tensor, view: int) -> TeacherTargets:
        """The lesson for a batch of which the students see `x_BCHW`, float32, in training view `view`."""
