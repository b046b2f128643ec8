"""Collects classifiers' predictions for each sample, from scoring or from a cache."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udkd.data.dataset import Split
from udkd.teacher.cache.reader import Cache
from udkd.teacher.ranking import top_k
from udkd.training.predictions import TOP, TeacherPredictions, TopPredictions
from udkd.utils.errors import CacheError

_ROWS_AT_ONCE = 1 << 14


class PredictionCollector:
    """Collects, batch by batch, the numbers of `TopPredictions` on the device that computed them: `score(on_log_p=….add)`."""

    def __init__(self) -> None:
        self._parts: list[list[tuple[Tensor, ...]]] = []

    def add(self, labels_B: Tensor, log_p: Sequence[Tensor]) -> None:
        """log_p: log-probabilities [B, C] of each classifier, the same classifiers at every call."""
        self._parts.append([_parts(log_p_BC, labels_B) for log_p_BC in log_p])

    def predictions(self) -> list[TopPredictions]:
        """The predictions of each classifier for all samples so far, in the order they were added."""
        return [_joined(parts) for parts in zip(*self._parts, strict=True)]


def cached_targets(split: Split, provenance: Mapping[str, Any], folder: Path | None = None) -> TeacherPredictions:
    """The teacher's predictions for a split in view 0 of a run's cache, every block verified.

    provenance: run.json, which names the cache and its key. folder: where it is now. Raises MismatchError, and CacheError, also
    for a cache of mixed samples.
    """
    cache = Cache.open(folder or Path(provenance["cache"]))
    cache.require(provenance["cache_key"])
    if cache.num_rows != split.num_samples:
        raise CacheError(f"{cache.folder} has {cache.num_rows} rows; expected {split.num_samples}; build it again")
    if cache.key.mixes:
        raise CacheError(
            f"{cache.folder} holds targets of mixed samples, which no single image explains; expected views without mixup and "
            "cutmix; build such a cache to see the teacher's predictions for the training images"
        )
    file = cache.view_file(0)
    damaged = file.damaged_blocks()
    if damaged:
        file.require_block(damaged[0])
    ids, labels = split.ids, split.labels[split.ids].astype(np.int64)
    entropy = np.asarray(file.uncertainties["entropy"][ids], np.float32)
    if np.isnan(entropy).any():
        raise CacheError(f"{cache.folder} lacks targets of samples that are in use; expected all of them; build it again")
    collector = PredictionCollector()
    for start in range(0, len(ids), _ROWS_AT_ONCE):  # the logits may be mapped from a file larger than memory
        part = slice(start, start + _ROWS_AT_ONCE)
        logits_BC = torch.from_numpy(file.dense_logits(ids[part])).float()
        collector.add(torch.from_numpy(labels[part]), [torch.log_softmax(logits_BC, dim=-1)])
    rounded = collector.predictions()[0]
    predictions = TopPredictions(top=rounded.top, top_log_p=rounded.top_log_p, label_log_p=rounded.label_log_p, entropy=entropy)
    return TeacherPredictions(
        ids=ids,
        labels=labels,
        predictions=predictions,
        num_classes=cache.num_classes,
        num_views=int(provenance.get("num_views", 1)),
        eval_view=cache.key.policy == "canonical",
    )


def _parts(log_p_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, ...]:
    """The four arrays of TopPredictions, in its order."""
    top_log_p, top = top_k(log_p_BC, TOP)
    label_B = log_p_BC.gather(1, labels_B[:, None].long())[:, 0]
    entropy_B = -(log_p_BC.exp() * log_p_BC).sum(-1)
    return top.int(), top_log_p.float(), label_B.float(), entropy_B.clamp(min=0.0).float()


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> TopPredictions:
    top, top_log_p, label_log_p, entropy = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return TopPredictions(top=top, top_log_p=top_log_p, label_log_p=label_log_p, entropy=entropy)
