"""Accuracy of classifiers on a split's evaluation views: each alone, and their averaged probabilities."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from udkd.augment import apply as augment
from udkd.augment.preprocessing import IMAGENET, NetworkInput, Preprocessing
from udkd.augment.view_table import EpochViews
from udkd.data.batch import Backend
from udkd.teacher.ranking import top_k
from udkd.training.exchange import Exchange
from udkd.utils.autocast import autocast


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy in percent and mean cross-entropy in nats."""

    top1: float
    top5: float
    loss: float

    def to_dict(self) -> dict[str, float]:
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One score per classifier, and one for the mean of their probabilities."""

    each: tuple[Score, ...]
    ensemble: Score

    def to_dict(self) -> dict[str, object]:
        """As metrics.jsonl and eval.json hold it."""
        return {"students": [score.to_dict() for score in self.each], "ensemble": self.ensemble.to_dict()}


@torch.no_grad()
def score(
    classifiers: Sequence[Callable[[Tensor], Tensor]],
    backend: Backend,
    ids: NDArray[np.int64],
    views: EpochViews,
    *,
    batch: int,
    precision: str,
    preprocessing: tuple[Preprocessing, ...] = (IMAGENET,),
    flip: bool = False,
    ensemble: Sequence[int] | None = None,
    exchange: Exchange | None = None,
    on_batch: Callable[[int], None] = lambda count: None,
    on_log_p: Callable[[Tensor, Sequence[Tensor]], None] = lambda labels_B, log_p: None,
) -> Scores:
    """Run classifiers (in evaluation mode already) over `ids` in evaluation views.

    precision: of the forward passes, "float32", "bfloat16" or "float16" (autocast).
    on_batch receives the number of samples done; on_log_p a batch's labels and the log-probabilities [B, C] of each classifier
    and, last, of their averaged probabilities.
    preprocessing: of each classifier's input, or one for all.
    flip: a classifier's logits are the mean of those for a view and for its mirror image.
    ensemble: indices of the classifiers whose probabilities are averaged; None for all.
    exchange: with other processes, each of which evaluates some of the batches; the callbacks receive those of this one.
    """
    exchange = exchange or Exchange()
    table = views.table(0)
    of_each = preprocessing if len(preprocessing) == len(classifiers) else preprocessing * len(classifiers)
    networks = [NetworkInput(size_px=views.spec.size_px, preprocessing=each) for each in of_each]
    rows: list[Tensor] = []
    own = exchange.batches(ids, batch)
    for part in backend.epoch(np.concatenate(own), batch) if own else ():
        inputs = augment.apply_each(part.canvas, table.gather(part.ids), networks, views.spec)
        with autocast(part.canvas.device.type, precision):
            logits = [classifier(x_BCHW) for classifier, x_BCHW in zip(classifiers, inputs, strict=True)]
            if flip:
                mirrored = [classifier(x_BCHW.flip(-1)) for classifier, x_BCHW in zip(classifiers, inputs, strict=True)]
                logits = [(z_BC + flipped_BC) / 2 for z_BC, flipped_BC in zip(logits, mirrored, strict=True)]
        log_p = [torch.log_softmax(z_BC.float(), dim=-1) for z_BC in logits]
        # Not the log of the mean probability: one below 1e-45 would make the loss infinite.
        members = log_p if ensemble is None else [log_p[index] for index in ensemble]
        log_p.append(torch.logsumexp(torch.stack(members), dim=0) - math.log(len(members)))
        on_log_p(part.labels, log_p)
        rows.append(torch.stack([_sums(log_p_BC, part.labels) for log_p_BC in log_p]))
        on_batch(len(part.labels))
    totals = _in_order(rows, -(-len(ids) // batch), len(classifiers) + 1, exchange)
    scores = [_score(row, len(ids)) for row in totals.tolist()]
    return Scores(each=tuple(scores[:-1]), ensemble=scores[-1])


def _in_order(own: Sequence[Tensor], num_batches: int, networks: int, exchange: Exchange) -> Tensor:
    """The sums over all batches, added in their order: float64 [networks, 3]. own: those of this process's batches."""
    rows = torch.zeros(num_batches, networks, 3, dtype=torch.float64, device=own[0].device if own else exchange.device)
    if own:
        rows[exchange.group.rank :: exchange.size] = torch.stack(list(own))
    exchange.gather_rows(rows)
    totals = rows[0]
    for row in rows[1:]:
        totals = totals + row
    return totals


def _sums(log_p_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Top-1 correct, top-5 correct, summed cross-entropy: float64 [3]."""
    best = top_k(log_p_BC, 5)[1] == labels_B[:, None]
    loss = F.nll_loss(log_p_BC, labels_B, reduction="sum")
    return torch.stack([best[:, 0].sum().double(), best.sum().double(), loss.double()])


def _score(sums: Sequence[float], count: int) -> Score:
    return Score(top1=100 * sums[0] / count, top5=100 * sums[1] / count, loss=sums[2] / count)
