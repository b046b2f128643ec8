"""What joins a student to its teacher besides logits: a further term of its loss, with the layers that the term needs.

A connector is a module, so that its weights are trained by the student's own optimizer and are part of checkpoints; so is all
that it remembers (buffers). Letters: B batch, C classes, I rows of the data set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from udkd.losses.methods import crd
from udkd.losses.methods.attention import attention_transfer
from udkd.losses.methods.dkd import dkd
from udkd.losses.methods.fitnets import hint, regressor
from udkd.losses.methods.options import POOLED_METHODS, CrdSection, DkdSection, MethodName, MethodsSection, RkdSection
from udkd.losses.methods.reviewkd import Review, review
from udkd.losses.methods.rkd import angle_term, distance_term
from udkd.models.features import FeatureExtractor, Stage, pooled, stages
from udkd.utils.device_rng import mix
from udkd.utils.errors import ConfigError
from udkd.utils.rng import Stream, key

_NEGATIVES = 0x6E65676174697665  # tells the key of a step's negatives from that of its dropout


@dataclass(frozen=True, kw_only=True)
class MethodInputs:
    """One student and one batch, as a connector sees them.

    maps, teacher_maps: the stages that were asked for, shallow to deep; empty where none were. teacher_features: [B, D], its
    pooled ones as they are stored, where they were. logits [B, C] (teacher_logits
    up to a constant per row). labels, ids: int64 [B]. key: int64 [], names the step's randomness for this student.
    """

    maps: Sequence[Tensor]
    teacher_maps: Sequence[Tensor]
    logits: Tensor
    teacher_logits: Tensor
    labels: Tensor
    ids: Tensor
    key: Tensor
    teacher_features: Tensor | None = None

    @property
    def pooled_pair(self) -> tuple[Tensor, Tensor]:
        """The pooled features of student and teacher, float32 [B, .] each."""
        assert self.teacher_features is not None, "a method that pools has a teacher's features"
        return pooled(self.maps[0]), self.teacher_features.float()


class Dkd(nn.Module):
    """See udkd.losses.methods.dkd."""

    def __init__(self, options: DkdSection) -> None:
        super().__init__()
        self.options = options

    def forward(self, seen: MethodInputs) -> Tensor:
        """The term, a scalar."""
        return dkd(seen.logits, seen.teacher_logits, seen.labels, **self.options.model_dump())


class Attention(nn.Module):
    """See udkd.losses.methods.attention."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, seen: MethodInputs) -> Tensor:
        """The term, a scalar: the sum over stages."""
        pairs = zip(seen.maps, seen.teacher_maps, strict=True)
        return self.factor * torch.stack([attention_transfer(one.float(), other.float()) for one, other in pairs]).sum()


class Fitnets(nn.Module):
    """See udkd.losses.methods.fitnets."""

    def __init__(self, factor: float, channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.factor = factor
        self.regressor = regressor(channels, teacher_channels)

    def forward(self, seen: MethodInputs) -> Tensor:
        """The term, a scalar."""
        return self.factor * hint(self.regressor(seen.maps[0].float()), seen.teacher_maps[0].float())


class Rkd(nn.Module):
    """See udkd.losses.methods.rkd."""

    def __init__(self, options: RkdSection) -> None:
        super().__init__()
        self.options = options

    def forward(self, seen: MethodInputs) -> Tensor:
        """The term, a scalar."""
        student_BD, teacher_BE = seen.pooled_pair
        term = self.options.distance * distance_term(student_BD, teacher_BE)
        return term + self.options.angle * angle_term(student_BD, teacher_BE) if self.options.angle else term


class Crd(nn.Module):
    """See udkd.losses.methods.crd. Memories and normalisers are buffers, so that a checkpoint holds them.

    labels_I: int64, the class of every row. ids: those that are trained on. words: name the first memories.
    """

    memory: Tensor
    teacher_memory: Tensor
    log_z: Tensor
    begun: Tensor
    by_class: Tensor
    first: Tensor

    def __init__(
        self,
        options: CrdSection,
        channels: int,
        teacher_channels: int,
        labels_I: NDArray[np.int64],
        ids: NDArray[np.int64],
        words: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.options = options
        self.embed = crd.Embedding(channels, options.embed_dim)
        self.teacher_embed = crd.Embedding(teacher_channels, options.embed_dim)
        for side, name in enumerate(("memory", "teacher_memory")):
            self.register_buffer(name, crd.first_memory(len(labels_I), options.embed_dim, *words, side))
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("begun", torch.zeros(()))
        labels = labels_I[ids]
        by_class = ids[np.argsort(labels, kind="stable")]
        first = np.searchsorted(np.sort(labels), np.arange(labels_I.max() + 2))
        self.register_buffer("by_class", torch.from_numpy(by_class), persistent=False)
        self.register_buffer("first", torch.from_numpy(first), persistent=False)

    def forward(self, seen: MethodInputs) -> Tensor:
        """The term, a scalar: the student against the teacher's memory, and the teacher against the student's."""
        student_BF, teacher_BF = seen.pooled_pair
        own_BD, teacher_BD = self.embed(student_BF), self.teacher_embed(teacher_BF)
        keys_B = mix(mix(seen.key ^ _NEGATIVES) ^ mix(seen.ids))
        ids_BK = crd.negatives(seen.labels, self.first, self.by_class, keys_B, self.options.negatives)
        positive_B, times_BI = (own_BD * teacher_BD).sum(1), crd.times(ids_BK, len(self.memory))
        scores = [own_BD @ self.teacher_memory.clone().T, teacher_BD @ self.memory.clone().T]  # they are about to change
        log_z = self._normalisers(scores, times_BI)
        sides = [
            crd.contrast(
                positive_B,
                scores_BI,
                times_BI,
                log_z[side],
                negatives=self.options.negatives,
                samples=len(self.by_class),
                temperature=self.options.temperature,
            )
            for side, scores_BI in enumerate(scores)
        ]
        with torch.no_grad():
            crd.remember(self.memory, seen.ids, own_BD, self.options.momentum)
            crd.remember(self.teacher_memory, seen.ids, teacher_BD, self.options.momentum)
        return self.options.weight * torch.stack(sides).sum()

    @torch.no_grad()
    def _normalisers(self, scores: Sequence[Tensor], times_BI: Tensor) -> Tensor:
        """Those of the first batch, for ever; no look at the device decides it."""
        samples, temperature = len(self.by_class), self.options.temperature
        estimate = torch.stack(
            [crd.log_normaliser(scores_BI, times_BI, samples=samples, temperature=temperature) for scores_BI in scores]
        )
        self.log_z.copy_(torch.where(self.begun > 0, self.log_z, estimate))
        self.begun.fill_(1)
        return self.log_z.clone()


class ReviewTerm(nn.Module):
    """See udkd.losses.methods.reviewkd."""

    def __init__(self, factor: float, channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        super().__init__()
        self.factor = factor
        self.review = Review(channels, teacher_channels)

    def forward(self, seen: MethodInputs) -> Tensor:
        """The term, a scalar."""
        maps = self.review([map_BCHW.float() for map_BCHW in seen.maps])
        return self.factor * review(maps, [map_BCHW.float() for map_BCHW in seen.teacher_maps])


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A student's connector, the student with the maps that it wants, and the teacher's modules that give the other maps."""

    connector: nn.Module
    tap: FeatureExtractor
    teacher_modules: tuple[str, ...]


def connect(
    method: MethodName,
    options: MethodsSection,
    student: nn.Module,
    teacher: nn.Module | None,
    *,
    index: int,
    seed: int,
    image_px: int,
    labels_I: NDArray[np.int64],
    ids: NDArray[np.int64],
    device: torch.device,
    features: int = 0,
) -> Connection:
    """What joins student number `index` to its teacher in a method. Its weights are named by (seed, index).

    image_px: side of the view.
    teacher: the live one's network, where the method compares maps. features: how many pooled ones the teacher gives, where
    it takes those. labels_I, ids: see Crd.
    Raises ConfigError for networks that have too few maps.
    """
    chosen: tuple[list[Stage], list[Stage]] = ([], [])
    if method in POOLED_METHODS:
        chosen = stages(student, image_px)[-1:], []
    elif teacher is not None:
        chosen = _chosen(method, options, stages(student, image_px), stages(teacher, image_px))
    ours, theirs = ([stage.channels for stage in side] for side in chosen)
    makers: dict[str, Callable[[], nn.Module]] = {
        "dkd": lambda: Dkd(options.dkd),
        "attention": lambda: Attention(options.attention.weight),
        "fitnets": lambda: Fitnets(options.fitnets.weight, ours[0], theirs[0]),
        "rkd": lambda: Rkd(options.rkd),
        "crd": lambda: Crd(options.crd, ours[0], features, labels_I, ids, (seed, Stream.CRD_MEMORY, index)),
        "reviewkd": lambda: ReviewTerm(options.reviewkd.weight, ours, theirs),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(key(seed, Stream.CONNECTOR, index)[0] >> 1))
        connector = makers[method]().to(device)
    return Connection(
        connector=connector.train(),
        tap=FeatureExtractor(student, [stage.module for stage in chosen[0]]),
        teacher_modules=tuple(stage.module for stage in chosen[1]),
    )


def _chosen(
    method: MethodName, options: MethodsSection, student: list[Stage], teacher: list[Stage]
) -> tuple[list[Stage], list[Stage]]:
    """The stages that a method compares, paired from the deepest up."""
    first, count = {
        "attention": (options.attention.stages, options.attention.stages),
        "reviewkd": (options.reviewkd.stages, options.reviewkd.stages),
        "fitnets": (options.fitnets.stage, 1),
    }[method]
    available = min(len(student), len(teacher))
    if first > available:
        where = f"methods.{method}.{'stage' if method == 'fitnets' else 'stages'}"
        raise ConfigError(
            f"{where} is {first} and the networks share {available} sizes of maps; expected at most {available}; lower it"
        )
    return tuple(side[len(side) - first : len(side) - first + count] for side in (student, teacher))  # type: ignore[return-value]
