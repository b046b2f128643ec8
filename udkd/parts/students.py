"""Students: a network and its own SGD each, made from a recipe."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from udkd.formats.config import Recipe, StudentSection
from udkd.operations.models import build, set_dropout_key
from udkd.operations.schedule import cosine
from udkd.words.hashing import key

_INITIAL_WEIGHTS, _DROPOUT = 1, 2  # names that keep the uses of a run's seed apart


@dataclass(frozen=True, kw_only=True)
class Student:
    """One of N.

    index: its place in the recipe. forward: the network, compiled where the recipe says so.
    """

    index: int
    name: str
    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimizer: torch.optim.SGD
    section: StudentSection

    def begin_step(self, step: int, *, seed: int, steps_per_epoch: int, epochs: int) -> None:
        """Set what depends on the step alone: the learning rate and the name of the dropout's randomness."""
        self.optimizer.param_groups[0]["lr"] = cosine(
            step,
            peak=self.section.lr,
            warmup_steps=round(self.section.warmup_epochs * steps_per_epoch),
            total_steps=epochs * steps_per_epoch,
        )
        set_dropout_key(self.model, int(key(seed, _DROPOUT)[0] >> 1), self.index, step)

    @property
    def lr(self) -> float:
        """The learning rate of the step that was last begun."""
        return float(self.optimizer.param_groups[0]["lr"])

    def tensors(self) -> dict[str, Tensor]:
        """Weights, buffers and momentum, by name: all that a checkpoint holds of a student."""
        state = {f"student.{self.index}.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            momentum = self.optimizer.state[parameter].get("momentum_buffer") if parameter in self.optimizer.state else None
            if momentum is not None:
                state[f"momentum.{self.index}.{name}"] = momentum
        return state

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Undo `tensors`."""
        self.model.load_state_dict(prefixed(tensors, f"student.{self.index}."))
        momentum = prefixed(tensors, f"momentum.{self.index}.")
        for name, parameter in self.model.named_parameters():
            if name in momentum:
                # clone onto the parameter: the same memory layout as a momentum that grew there
                buffer = torch.empty_like(parameter).copy_(momentum[name])
                self.optimizer.state[parameter]["momentum_buffer"] = buffer


def make_students(recipe: Recipe, num_classes: int, device: torch.device) -> list[Student]:
    """Build every student of a recipe on a device, its initial weights named by (train.seed, place)."""
    return [
        _make(recipe, index, name, section, num_classes, device)
        for index, (name, section) in enumerate(zip(recipe.student_names(), recipe.students, strict=True))
    ]


def _make(recipe: Recipe, index: int, name: str, section: StudentSection, num_classes: int, device: torch.device) -> Student:
    seed = int(key(recipe.train.seed, _INITIAL_WEIGHTS, index)[0] >> 1)
    model = build(section.architecture, num_classes, image_px=recipe.views.size_px, seed=seed).to(device)
    if recipe.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=section.lr,
        momentum=section.momentum,
        weight_decay=section.weight_decay,
        nesterov=section.nesterov,
        foreach=True,
    )
    forward = torch.compile(model, dynamic=False) if recipe.train.compile == "all" else model
    return Student(index=index, name=name, model=model, forward=forward, optimizer=optimizer, section=section)


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
