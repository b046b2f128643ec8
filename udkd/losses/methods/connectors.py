"""Terms of loss.method: each joins a student to its teacher, with the layers that the term needs.

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
from udkd.utils.rng import key

_CONNECTOR, _MEMORY = 5, 6  # names that keep the uses of a run's seed apart
_NEGATIVES = 0x6E65676174697665  # tells the key of a step's negatives from that of its dropout


@dataclass(frozen=True, kw_only=True)
class MethodInputs:
    """What a connector receives of one student for one batch.

    maps, teacher_maps: the requested stages, shallow to deep; empty without any. teacher_features: [B, D], pooled, as a cache
    stores them, where requested. logits: [B, C] (teacher_logits up to a constant per row). labels, ids: int64 [B].
    key: int64 [], names the step's randomness for this student.
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
        assert self.teacher_features is not None, "a method of pooled features has the teacher's"
        return pooled(self.maps[0]), self.teacher_features.float()


class Dkd(nn.Module):
    """See udkd.losses.methods.dkd."""

    def __init__(self, options: DkdSection) -> None:
        super().__init__()
        self.options = options

    def forward(self, inputs: MethodInputs) -> Tensor:
        """The term, a scalar."""
        return dkd(inputs.logits, inputs.teacher_logits, inputs.labels, **self.options.model_dump())


class Attention(nn.Module):
    """See udkd.losses.methods.attention."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, inputs: MethodInputs) -> Tensor:
        """The term, a scalar: the sum over stages."""
        pairs = zip(inputs.maps, inputs.teacher_maps, strict=True)
        return self.factor * torch.stack([attention_transfer(one.float(), other.float()) for one, other in pairs]).sum()


class Fitnets(nn.Module):
    """See udkd.losses.methods.fitnets."""

    def __init__(self, factor: float, channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.factor = factor
        self.regressor = regressor(channels, teacher_channels)

    def forward(self, inputs: MethodInputs) -> Tensor:
        """The term, a scalar."""
        return self.factor * hint(self.regressor(inputs.maps[0].float()), inputs.teacher_maps[0].float())


class Rkd(nn.Module):
    """See udkd.losses.methods.rkd."""

    def __init__(self, options: RkdSection) -> None:
        super().__init__()
        self.options = options

    def forward(self, inputs: MethodInputs) -> Tensor:
        """The term, a scalar."""
        student_BD, teacher_BE = inputs.pooled_pair
        term = self.options.distance * distance_term(student_BD, teacher_BE)
        return term + self.options.angle * angle_term(student_BD, teacher_BE) if self.options.angle else term


class Crd(nn.Module):
    """See udkd.losses.methods.crd. Memories and normalisers are buffers, so that a checkpoint holds them.

    labels_I: int64, the class of every row. ids: those that are trained on. seed: names the initial memories.
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
        seed: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.options = options
        self.embed = crd.Embedding(channels, options.embed_dim)
        self.teacher_embed = crd.Embedding(teacher_channels, options.embed_dim)
        for side, name in enumerate(("memory", "teacher_memory")):
            self.register_buffer(name, crd.first_memory(len(labels_I), options.embed_dim, *seed, side))
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("begun", torch.zeros(()))
        labels = labels_I[ids]
        by_class = ids[np.argsort(labels, kind="stable")]
        first = np.searchsorted(np.sort(labels), np.arange(labels_I.max() + 2))
        self.register_buffer("by_class", torch.from_numpy(by_class), persistent=False)
        self.register_buffer("first", torch.from_numpy(first), persistent=False)

    def forward(self, inputs: MethodInputs) -> Tensor:
        """The term, a scalar: the student against the teacher's memory, and the teacher against the student's."""
        student_BF, teacher_BF = inputs.pooled_pair
        student_BD, teacher_BD = self.embed(student_BF), self.teacher_embed(teacher_BF)
        keys_B = mix(mix(inputs.key ^ _NEGATIVES) ^ mix(inputs.ids))
        ids_BK = crd.negatives(inputs.labels, self.first, self.by_class, keys_B, self.options.negatives)
        positive_B, times_BI = (student_BD * teacher_BD).sum(1), crd.times(ids_BK, len(self.memory))
        scores = [student_BD @ self.teacher_memory.clone().T, teacher_BD @ self.memory.clone().T]  # cloned: both change below
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
            crd.remember(self.memory, inputs.ids, student_BD, self.options.momentum)
            crd.remember(self.teacher_memory, inputs.ids, teacher_BD, self.options.momentum)
        return self.options.weight * torch.stack(sides).sum()

    @torch.no_grad()
    def _normalisers(self, scores: Sequence[Tensor], times_BI: Tensor) -> Tensor:
        """The normalisers of the first batch, kept from then on. Whether it is the first is decided on the device."""
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

    def forward(self, inputs: MethodInputs) -> Tensor:
        """The term, a scalar."""
        maps = self.review([map_BCHW.float() for map_BCHW in inputs.maps])
        return self.factor * review(maps, [map_BCHW.float() for map_BCHW in inputs.teacher_maps])


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A student's connector, the student with the maps that it needs, and the teacher's modules that give its maps."""

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
    """Connect student number `index` to its teacher. The connector's initial weights are named by (seed, index).

    image_px: side of the view. teacher: the live network, where the method compares maps. features: the teacher's number of
    pooled features, where the method takes those. labels_I, ids: see Crd.
    Raises ConfigError for networks that have too few maps.
    """
    pairs: tuple[list[Stage], list[Stage]] = ([], [])
    if method in POOLED_METHODS:
        pairs = stages(student, image_px)[-1:], []
    elif teacher is not None:
        pairs = _paired_stages(method, options, stages(student, image_px), stages(teacher, image_px))
    channels, teacher_channels = ([stage.channels for stage in side] for side in pairs)
    makers: dict[str, Callable[[], nn.Module]] = {
        "dkd": lambda: Dkd(options.dkd),
        "attention": lambda: Attention(options.attention.weight),
        "fitnets": lambda: Fitnets(options.fitnets.weight, channels[0], teacher_channels[0]),
        "rkd": lambda: Rkd(options.rkd),
        "crd": lambda: Crd(options.crd, channels[0], features, labels_I, ids, (seed, _MEMORY, index)),
        "reviewkd": lambda: ReviewTerm(options.reviewkd.weight, channels, teacher_channels),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(key(seed, _CONNECTOR, index)[0] >> 1))
        connector = makers[method]().to(device)
    return Connection(
        connector=connector.train(),
        tap=FeatureExtractor(student, [stage.module for stage in pairs[0]]),
        teacher_modules=tuple(stage.module for stage in pairs[1]),
    )


def _paired_stages(
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
