"""Contrastive representation distillation (CRD): pulls a student's embedding towards the teacher's of the same sample.

Letters: B batch, C classes, D size of an embedding (of length 1), K negatives, M training samples, I rows of a memory.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udkd.losses.methods.options import CrdSection
from udkd.losses.methods.registry import MethodInputs, MethodSetup
from udkd.utils.device_rng import integers, mix
from udkd.utils.rng import Stream, key, uniform

_NEGATIVES = 0x6E65676174697665  # distinguishes the key of a step's negatives from its dropout key


def contrastive_loss(
    positive_B: Tensor, scores_BI: Tensor, draws_BI: Tensor, log_z: Tensor, *, negatives: int, samples: int, temperature: float
) -> Tensor:
    """-(log h(positive) + sum over K of log(1 - h(negative))), batch mean: a scalar.

    h(s) = (e^(s/t) / Z) / (e^(s/t) / Z + K / M) is computed as a sigmoid of s/t - log Z - log(K/M), which cannot overflow.
    positive_B, scores_BI: inner products with the positive and with every row of a memory. draws_BI: how often each row is a
    negative, K in all per sample. Draws are counted instead of gathering rows: the backward pass of a gather sums in an order
    that is not fixed on a GPU, and B I counts take less memory than the B K D numbers of gathered rows.
    log_z: a scalar, see `log_normaliser`. negatives: K. samples: M. temperature: t.

    Source: Tian et al., "Contrastive Representation Distillation", ICLR 2020 (arXiv 1910.10699), section 3.2: the critic h and
    its objective. There Z is 1; the authors' code divides by the normaliser of Wu et al. (arXiv 1805.01978, section 3.2),
    without which the first losses are in the thousands.
    """
    shift = log_z + math.log(negatives / samples)
    positive = F.logsigmoid(positive_B / temperature - shift)
    return -(positive + (draws_BI * F.logsigmoid(shift - scores_BI / temperature)).sum(-1)).mean()


def log_normaliser(scores_BI: Tensor, draws_BI: Tensor, *, samples: int, temperature: float) -> Tensor:
    """Log Z, a scalar, with Z = M times the mean of e^(s/t) over the negatives of the first batch (Wu et al., section 3.2)."""
    weighted_BI = scores_BI.detach() / temperature + draws_BI.log()
    return weighted_BI.flatten().logsumexp(0) - draws_BI.sum().log() + math.log(samples)


def count_draws(drawn_BK: Tensor, rows: int) -> Tensor:
    """How often each of `rows` rows was drawn: float32 [B, I]. drawn_BK: int64. Sums of ones are exact in any order."""
    ones_BK = torch.ones(drawn_BK.shape, device=drawn_BK.device)
    return torch.zeros(len(drawn_BK), rows, device=drawn_BK.device).scatter_add_(1, drawn_BK, ones_BK)


def draw_negatives(labels_B: Tensor, first_C: Tensor, by_class_M: Tensor, keys_B: Tensor, count: int) -> Tensor:
    """Draw ids of K = `count` samples of other classes for each sample of a batch, with replacement: int64 [B, K].

    by_class_M: ids sorted by class. first_C: int64 [C + 1], where each class begins in by_class_M, then M. keys_B: int64, keys
    of the draws.
    """
    first_B, size_B = first_C[labels_B], first_C[labels_B + 1] - first_C[labels_B]
    index_BK = integers(keys_B, count, len(by_class_M) - size_B)
    return by_class_M[index_BK + size_B[:, None] * (index_BK >= first_B[:, None])]


def initial_memory(rows: int, embed_dim: int, *seed: int) -> Tensor:
    """The initial memory: float32 [I, D], random unit vectors, drawn from `seed`."""
    keys = key(*seed, np.arange(rows))
    values = np.stack([uniform(keys, n) for n in range(embed_dim)], axis=1) * 2 - 1
    return F.normalize(torch.from_numpy(values.astype(np.float32)), dim=1)


def update_memory(memory_ID: Tensor, ids_B: Tensor, embedding_BD: Tensor, momentum: float = 0.5) -> None:
    """Move the rows `ids_B` of a memory towards new embeddings, in place, and normalise them, as in the authors' code."""
    moved_BD = momentum * memory_ID[ids_B] + (1 - momentum) * embedding_BD.detach()
    memory_ID.index_copy_(0, ids_B, F.normalize(moved_BD, dim=1))


class Embedding(nn.Module):
    """Projects pooled features [B, channels] to embeddings [B, D] of length 1."""

    def __init__(self, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, embed_dim)

    def forward(self, pooled_BC: Tensor) -> Tensor:
        """The embeddings, [B, D]."""
        return F.normalize(self.linear(pooled_BC), dim=1)


class Crd(nn.Module):
    """`contrastive_loss` in both directions. Memories and normalisers are buffers, so that a checkpoint holds them."""

    memory: Tensor
    teacher_memory: Tensor
    log_z: Tensor
    begun: Tensor
    by_class: Tensor
    first: Tensor

    def __init__(self, options: CrdSection, setup: MethodSetup) -> None:
        super().__init__()
        self.options = options
        self.embed = Embedding(setup.channels[0], options.embed_dim)
        self.teacher_embed = Embedding(setup.teacher_channels[0], options.embed_dim)
        seed = (setup.seed, Stream.CRD_MEMORY, setup.index)
        for side, name in enumerate(("memory", "teacher_memory")):
            self.register_buffer(name, initial_memory(len(setup.labels_I), options.embed_dim, *seed, side))
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("begun", torch.zeros(()))
        labels = setup.labels_I[setup.ids]
        by_class = setup.ids[np.argsort(labels, kind="stable")]
        first = np.searchsorted(np.sort(labels), np.arange(setup.labels_I.max() + 2))
        self.register_buffer("by_class", torch.from_numpy(by_class), persistent=False)
        self.register_buffer("first", torch.from_numpy(first), persistent=False)

    def forward(self, inputs: MethodInputs) -> Tensor:
        """The term, a scalar: the student against the teacher's memory plus the teacher against the student's memory."""
        student_BF, teacher_BF = inputs.pooled_pair
        student_BD, teacher_BD = self.embed(student_BF), self.teacher_embed(teacher_BF)
        keys_B = mix(mix(inputs.key ^ _NEGATIVES) ^ mix(inputs.ids))
        ids_BK = draw_negatives(inputs.labels, self.first, self.by_class, keys_B, self.options.negatives)
        positive_B, draws_BI = (student_BD * teacher_BD).sum(1), count_draws(ids_BK, len(self.memory))
        scores = [student_BD @ self.teacher_memory.clone().T, teacher_BD @ self.memory.clone().T]  # cloned: both change below
        log_z = self._normalisers(scores, draws_BI)
        sides = [
            contrastive_loss(
                positive_B,
                scores_BI,
                draws_BI,
                log_z[side],
                negatives=self.options.negatives,
                samples=len(self.by_class),
                temperature=self.options.temperature,
            )
            for side, scores_BI in enumerate(scores)
        ]
        with torch.no_grad():
            update_memory(self.memory, inputs.ids, student_BD, self.options.momentum)
            update_memory(self.teacher_memory, inputs.ids, teacher_BD, self.options.momentum)
        return self.options.weight * torch.stack(sides).sum()

    @torch.no_grad()
    def _normalisers(self, scores: Sequence[Tensor], draws_BI: Tensor) -> Tensor:
        """Log Z of both directions: estimated from the first batch, then kept. The device decides whether it is the first."""
        samples, temperature = len(self.by_class), self.options.temperature
        estimate = torch.stack(
            [log_normaliser(scores_BI, draws_BI, samples=samples, temperature=temperature) for scores_BI in scores]
        )
        self.log_z.copy_(torch.where(self.begun > 0, self.log_z, estimate))
        self.begun.fill_(1)
        return self.log_z.clone()
