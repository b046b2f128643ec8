"""The loss with what the paper's has not: weights that differ between students or steps, and a method's term."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from udkd.data.batch import Batch
from udkd.losses.distill import Terms
from udkd.losses.methods.connectors import Connection, MethodInputs
from udkd.teacher.target import TeacherTargets
from udkd.training.compile import MixedForward

MIXED_ROWS = ("method", "loss", "confidence")
"""What a step with such a loss records besides the usual rows: the method's term (before its weight), the student's part of
the sum, the mean weight w of the samples."""


@dataclass(frozen=True, kw_only=True)
class MixedObjective:
    """Called by a step. links: of each student to its teacher; empty where no method is chosen."""

    forward: MixedForward
    links: Sequence[Connection]

    def __call__(
        self, x_BCHW: Tensor, batch: Batch, lesson: TeacherTargets, weights_4N: Tensor, keys_N: Tensor
    ) -> tuple[list[Tensor], Terms]:
        """Logits and terms of all students. weights_4N: alpha, beta, gamma, the method's. keys_N: name a step's randomness."""
        logits, terms, maps = self.forward(x_BCHW, batch.labels, lesson.logits, lesson.weight, weights_4N[:3])
        method_N = self._method(batch, lesson, logits, maps, keys_N)
        terms = replace(terms, total=terms.total + (weights_4N[3] * method_N).sum())
        rows_4N = torch.stack([terms.hard, terms.teacher, terms.peer, method_N.detach().to(terms.hard.dtype)])
        confidence = rows_4N.new_ones(()) if lesson.weight is None else lesson.weight.mean().to(rows_4N.dtype)
        more = (rows_4N[3], (weights_4N * rows_4N).sum(0), confidence.expand(len(logits)))
        return logits, replace(terms, more=more)

    def _method(
        self, batch: Batch, lesson: TeacherTargets, logits: Sequence[Tensor], maps: Sequence[Sequence[Tensor]], keys_N: Tensor
    ) -> Tensor:
        """The method's term of each student, [N]."""
        if not self.links:
            return torch.zeros(len(logits), device=batch.labels.device)
        assert lesson.logits is not None, "a method has a teacher"
        return torch.stack(
            [
                link.connector(
                    MethodInputs(
                        maps=maps[place],
                        teacher_maps=[lesson.maps[name] for name in link.teacher_modules],
                        logits=logits[place],
                        teacher_logits=lesson.logits,
                        labels=batch.labels,
                        ids=batch.ids,
                        key=keys_N[place],
                        teacher_features=lesson.features,
                    )
                )
                for place, link in enumerate(self.links)
            ]
        )
