"""Registers the values of loss.method: those of this package are in builtin.py; other modules may add theirs.

Recipes name methods and hold their options, and reading a recipe does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic.fields import FieldInfo

from udkd.utils.options import Section

if TYPE_CHECKING:
    from torch import Tensor, nn

Needs = Literal["logits", "pooled", "maps"]
"""What a method needs from both networks: only logits; pooled features (the mean of the deepest map over positions), which a
cache can store; or feature maps, which need a live teacher."""


@dataclass(frozen=True, kw_only=True)
class MethodInputs:
    """The input of a method's module: the outputs of one student and of the teacher for one batch.

    maps, teacher_maps: [B, C, H, W], feature maps of the paired stages, shallow to deep; for "pooled" the student's deepest.
    logits, teacher_logits: [B, C], the teacher's up to a constant per row. labels, ids: int64 [B]; a method that reads the
    labels is registered with needs_labels, as mixed samples have no single one.
    key: int64 [], key of random numbers for this step and student. teacher_features: [B, D], pooled features, for "pooled".
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
        assert self.teacher_features is not None, "a method with needs = pooled gets the teacher's features"
        return self.maps[0].float().mean((2, 3)), self.teacher_features.float()


@dataclass(frozen=True, kw_only=True)
class MethodSetup:
    """What a method's module needs to be built.

    channels, teacher_channels: of the maps or pooled features that it will receive. labels_I: int64, the label of every row of
    the training split. ids: the rows to train on. seed, index: of the run and of the student, for the keys of random numbers.
    """

    channels: Sequence[int]
    teacher_channels: Sequence[int]
    labels_I: NDArray[np.int64]
    ids: NDArray[np.int64]
    seed: int
    index: int


class MethodsSection(Section):
    """The options of all methods: `register_method` adds a field named after each method."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Method:
    """A registered method. module(options, setup) returns an nn.Module from MethodInputs to the loss term, a scalar.

    title: the method's name in reports. depth: for "maps", name of the option with the number of deepest stages to pair.
    single: pair only the shallowest of those. compares_samples: the term is not a mean over independent samples, so that a
    batch cannot be computed in parts. needs_labels: it needs one label a sample, so that views cannot mix samples.
    """

    module: Callable[[Any, MethodSetup], nn.Module]
    title: str
    needs: Needs
    depth: str
    single: bool
    compares_samples: bool
    needs_labels: bool


METHODS: dict[str, Method] = {}
after_register: list[Callable[[], object]] = []
"""Called after each registration, to rebuild the models that nest MethodsSection."""

_Module = TypeVar("_Module", bound="Callable[[Any, MethodSetup], nn.Module]")


def register_method(
    name: str,
    options: type[Section],
    *,
    title: str = "",
    needs: Needs = "logits",
    depth: str = "",
    single: bool = False,
    compares_samples: bool = False,
    needs_labels: bool = False,
) -> Callable[[_Module], _Module]:
    """Decorate a module class, or a function that builds one, to register it as loss.method = `name`. See Method.

    options: the class of its keys in a recipe, [methods.NAME].
    """
    assert name not in METHODS, f"a method {name} is registered already"
    assert (needs == "maps") == bool(depth), "a method of maps names the option that counts its stages"

    def add(module: _Module) -> _Module:
        METHODS[name] = Method(
            module=module,
            title=title or name,
            needs=needs,
            depth=depth,
            single=single,
            compares_samples=compares_samples,
            needs_labels=needs_labels,
        )
        MethodsSection.__pydantic_fields__[name] = FieldInfo(annotation=options, default=options())
        MethodsSection.model_rebuild(force=True)
        for rebuild in after_register:
            rebuild()
        return module

    return add


def method_names() -> tuple[str, ...]:
    """The values of loss.method: "none" and the registered names."""
    return ("none", *METHODS)
