"""How a row of logits is stored: all of them, or the k largest and the probability mass of the other classes.

Letters: B batch, C classes, k kept classes. Written with a tensor's own methods, so that reading a recipe or a cache's header
does not import torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Dtype = Literal["float16", "float32"]

LOWEST = -65504.0
"""The lowest float16, a finite logit whose probability is 0: -inf would turn KL(student || teacher) into NaN."""

_TEXT = re.compile(r"(float16|float32)(?: top-([1-9]\d{0,8}))?")


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How logits are stored. dtype: of the stored logits. top_k: number of logits kept per row; 0 keeps all."""

    dtype: Dtype = "float16"
    top_k: int = 0

    @property
    def text(self) -> str:
        """The storage as stored in a cache key, such as "float16" or "float16 top-32"."""
        return f"{self.dtype} top-{self.top_k}" if self.top_k else self.dtype

    @classmethod
    def parse(cls, text: str) -> Storage:
        """The inverse of `text`. Raises ValueError for anything else."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"storage {text!r}; expected float16 or float32, with or without top-K")
        return cls(dtype=match[1], top_k=int(match[2] or 0))  # type: ignore[arg-type]


def dense_logits(logits_Bk: Tensor, classes_Bk: Tensor, tail_B: Tensor, num_classes: int) -> Tensor:
    """Expand the k largest logits to all classes: float32 [B, C], up to a constant per row.

    The kept classes share the mass 1 - tail in proportion to their probabilities; the others share the tail equally.
    logits_Bk: float16 or float32. classes_Bk: integers. tail_B: float32, the exact mass of the classes that were not kept.
    """
    return scatter_logits(logits_Bk, classes_Bk, rest_logit(logits_Bk, tail_B, num_classes), num_classes)


def rest_logit(logits_Bk: Tensor, tail_B: Tensor, num_classes: int) -> Tensor:
    """The logit shared by all classes that were not kept, float32 [B]. Rows are independent of each other."""
    rest_B = tail_B.log() - (-tail_B).log1p() + logits_Bk.float().logsumexp(-1)
    return (rest_B - math.log(num_classes - logits_Bk.shape[1])).clamp(min=LOWEST)


def scatter_logits(logits_Bk: Tensor, classes_Bk: Tensor, rest_B: Tensor, num_classes: int) -> Tensor:
    """Rows of C logits, float32 [B, C], from the kept logits and `rest_B`, the logit of all other classes."""
    return rest_B[:, None].expand(-1, num_classes).scatter(1, classes_Bk.long(), logits_Bk.float())
