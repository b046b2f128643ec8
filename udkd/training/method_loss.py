"""The loss term of loss.method, which connects each student to the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from udkd.data.batch import Batch
from udkd.losses.methods.connect import Connection
from udkd.losses.methods.registry import MethodInputs
from udkd.teacher.target import TeacherTargets


@dataclass(frozen=True, kw_only=True)
class MethodLoss:
    """The method's term of each student. connections: of the students that train, in their order."""

    connections: Sequence[Connection]

    def __call__(
        self,
        batch: Batch,
        target: TeacherTargets,
        logits: Sequence[Tensor],
        maps: Sequence[Sequence[Tensor]],
        keys: Sequence[Tensor],
    ) -> Tensor:
        """Each student's term, [N], before the method's weight. keys: int64 [] each, the keys of this step's randomness."""
        assert target.logits is not None, "a method has a teacher"
        return torch.stack(
            [
                connection.connector(
                    MethodInputs(
                        maps=maps[index],
                        teacher_maps=[target.maps[name] for name in connection.teacher_modules],
                        logits=logits[index],
                        teacher_logits=target.logits,
                        labels=batch.labels,
                        ids=batch.ids,
                        key=keys[index],
                        teacher_features=target.features,
                    )
                )
                for index, connection in enumerate(self.connections)
            ]
        )
