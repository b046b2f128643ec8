"""The values of loss.method: each is one file with one @register_method, in this package or in any other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from udkd.utils.options import Section

Needs = Literal["logits", "pooled", "maps"]
"""What a method needs from both networks: only logits; the mean of the deepest map over positions, which a cache may hold; or
feature maps, which only a live teacher gives."""


@dataclass(frozen=True, kw_only=True)
class MethodInputs:
    """The input of a method's module: one student's and the teacher's, for one batch.

    maps, teacher_maps: the paired stages, shallow to deep; for "pooled" only the student's deepest. teacher_features: [B, D],
    pooled, as a cache stores them, for "pooled". logits: [B, C] (teacher_logits up to a constant per row).
    labels, ids: int64 [B]. key: int64 [], names the step's randomness for this student.
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
        return self.maps[0].float().mean((2, 3)), self.teacher_features.float()


@dataclass(frozen=True, kw_only=True)
class MethodSetup:
    """What a method's module is built for.

    channels, teacher_channels: of the maps or pooled features that it will receive. labels_I: int64, the class of every row of
    the training split. ids: the rows that are trained on. seed, index: the run's seed and the student's index; they name
    whatever is drawn.
    """

    channels: Sequence[int]
    teacher_channels: Sequence[int]
    labels_I: NDArray[np.int64]
    ids: NDArray[np.int64]
    seed: int
    index: int


class MethodsSection(Section):
    """Options of each method, in a field of its name; `register_method` adds them."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Method:
    """module: called as module(options, setup), gives a network from MethodInputs to the term, a scalar.

    title: the method's name in reports. depth: for "maps", the option that says how many of the deepest stages are paired;
    `single` pairs only the shallowest of those.
    """

    module: Callable[[Any, MethodSetup], nn.Module]
    title: str
    needs: Needs
    depth: str
    single: bool


METHODS: dict[str, Method] = {}
after_register: list[Callable[[], object]] = []
"""Called after each registration, to rebuild the models that nest MethodsSection."""

_Module = TypeVar("_Module", bound=Callable[[Any, MethodSetup], nn.Module])


def register_method(
    name: str, options: type[Section], *, title: str = "", needs: Needs = "logits", depth: str = "", single: bool = False
) -> Callable[[_Module], _Module]:
    """Make a module the method `name`, whose options are in methods.<name> of a recipe. See Method."""
    assert name not in METHODS, f"a method {name} is registered already"
    assert (needs == "maps") == bool(depth), "a method of maps names the option that counts its stages"

    def add(module: _Module) -> _Module:
        METHODS[name] = Method(module=module, title=title or name, needs=needs, depth=depth, single=single)
        MethodsSection.__pydantic_fields__[name] = FieldInfo(annotation=options, default=options())
        MethodsSection.model_rebuild(force=True)
        for rebuild in after_register:
            rebuild()
        return module

    return add


def known_method(name: str) -> str:
    """The name itself, if it is "none" or a method's; pydantic's error otherwise."""
    if name != "none" and name not in METHODS:
        names = [f"'{known}'" for known in ("none", *METHODS)]
        raise PydanticCustomError("method", "Input should be {names}", {"names": f"{', '.join(names[:-1])} or {names[-1]}"})
    return name
