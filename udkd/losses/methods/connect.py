"""Connects a student to its teacher: builds the module of loss.method and extracts the feature maps that it needs.

The module belongs to the student: the student's optimizer trains its weights, and checkpoints include its weights and
buffers. Letters: I rows of the dataset.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from udkd.losses.methods.builtin import METHODS
from udkd.losses.methods.registry import Method, MethodSetup, MethodsSection
from udkd.models.features import FeatureExtractor, Stage, stages
from udkd.utils.errors import ConfigError
from udkd.utils.options import Section
from udkd.utils.rng import Stream, key


@dataclass(frozen=True, kw_only=True)
class Connection:
    """connector: the method's module. extractor: the student, returning the maps that the connector needs.

    teacher_modules: names of the teacher's modules whose outputs are its maps.
    """

    connector: nn.Module
    extractor: FeatureExtractor
    teacher_modules: tuple[str, ...]


def connect(
    name: str,
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
    """Connect student number `index` to its teacher by method `name`. Initial weights are drawn from (seed, index).

    image_px: side of the view. teacher: the live network, for methods that compare maps. features: number of the teacher's
    pooled features, for methods that compare those. labels_I, ids: see MethodSetup.
    Raises ConfigError for networks with too few maps.
    """
    method, section = METHODS[name], getattr(options, name)
    pairs: tuple[list[Stage], list[Stage]] = ([], [])
    if method.needs == "pooled":
        pairs = stages(student, image_px)[-1:], []
    elif method.needs == "maps":
        assert teacher is not None, f"{name} compares maps with a live teacher's"
        pairs = _paired(name, method, section, stages(student, image_px), stages(teacher, image_px))
    setup = MethodSetup(
        channels=[stage.channels for stage in pairs[0]],
        teacher_channels=[features] if method.needs == "pooled" else [stage.channels for stage in pairs[1]],
        labels_I=labels_I,
        ids=ids,
        seed=seed,
        index=index,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(key(seed, Stream.CONNECTOR, index)[0] >> 1))
        connector = method.module(section, setup).to(device)
    return Connection(
        connector=connector.train(),
        extractor=FeatureExtractor(student, [stage.module for stage in pairs[0]]),
        teacher_modules=tuple(stage.module for stage in pairs[1]),
    )


def _paired(
    name: str, method: Method, options: Section, student: list[Stage], teacher: list[Stage]
) -> tuple[list[Stage], list[Stage]]:
    """The stages of student and teacher that a method compares, paired from the deepest one upwards."""
    depth: int = getattr(options, method.depth)
    available = min(len(student), len(teacher))
    if depth > available:
        raise ConfigError(
            f"methods.{name}.{method.depth} is {depth} and the networks share {available} sizes of maps; "
            f"expected at most {available}; lower it"
        )
    end = 1 - depth or None if method.single else None
    return student[-depth:end], teacher[-depth:end]
