"""The teacher's targets for a batch, and the protocol of their sources."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from udkd.augment.mixing import MixedLabels
from udkd.data.batch import Batch


@dataclass(frozen=True, kw_only=True)
class TeacherTargets:
    """What the loss needs from the teacher.

    logits: float16 or float32 [B, C], up to a constant per row, or None without a teacher.
    weight: float32 [B], of each sample's teacher term, or None for 1.
    features: float16 or float32 [B, D], the teacher's pooled features, where a method needs them.
    maps: feature maps [B, channels, H, W] by the name of the teacher's module, where a method needs some.
    mixed: whether they are those of mixed samples, in a loop of one's own: DistillationLoss then wants MixedLabels.
    """

    logits: Tensor | None
    weight: Tensor | None
    features: Tensor | None = None
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    mixed: bool = False

    def rows(self, chosen: slice) -> "TeacherTargets":
        """The targets of some of the batch's samples."""
        logits, weight, features = (
            None if value is None else value[chosen] for value in (self.logits, self.weight, self.features)
        )
        maps = {name: value[chosen] for name, value in self.maps.items()}
        return TeacherTargets(logits=logits, weight=weight, features=features, maps=maps, mixed=self.mixed)


class TargetSource(Protocol):
    """Targets for any batch: cached, from a live teacher, or none."""

    @property
    def num_features(self) -> int:
        """Pooled features in each sample's targets; 0 for none."""

    def load(self, view: int) -> None:
        """Load a view's targets, in place of the previous view's: a CUDA graph reads the same memory for all views."""

    def __call__(self, batch: Batch, x_BCHW: Tensor, view: int, labels: Tensor | MixedLabels | None = None) -> TeacherTargets:
        """Targets for a batch in training view `view`, which is loaded if need be; a live teacher sees it as `x_BCHW`.

        labels: of the views, where samples are mixed; None for the batch's.
        """
