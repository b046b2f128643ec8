"""How fast this machine trains a recipe's networks: measured in seconds, before hours are spent."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from udkd.config.recipe import Recipe
from udkd.models.build import build
from udkd.utils.autocast import autocast
from udkd.utils.environment import set_threads

_TIMED_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Seconds per image: of a training step of the teacher, of its forward pass, of a training step of all students."""

    teacher_step_s: float
    teacher_forward_s: float
    students_step_s: float

    def total_s(self, recipe: Recipe, *, train_images: int, val_images: int) -> float:
        """Estimated seconds of fitting the teacher, caching, training and evaluating."""
        fit = recipe.fit.epochs * (train_images * self.teacher_step_s + val_images * self.teacher_forward_s)
        # Evaluation has no backward pass: a third of a training step.
        students = recipe.train.epochs * (train_images + val_images / 3) * self.students_step_s
        return fit + train_images * self.teacher_forward_s + students


def measure_step_times(recipe: Recipe, num_classes: int, device: torch.device) -> StepTimes:
    """Time forward and backward passes of every network on one constant batch, after a warm-up."""
    set_threads(recipe.train.threads)
    batch, size = recipe.train.batch_size // recipe.train.accumulate, recipe.views.size_px
    x_BCHW = torch.zeros(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels_B = torch.zeros(batch, dtype=torch.int64, device=device)

    def network(architecture: str) -> nn.Module:
        model = build(architecture, num_classes, image_px=size, seed=0)
        return model.to(device).to(memory_format=torch.channels_last)

    def train(model: nn.Module) -> Callable[[], None]:
        def step() -> None:
            with autocast(device.type, recipe.train.precision):
                logits_BC = model(x_BCHW)
            F.cross_entropy(logits_BC.float(), labels_B).backward()  # type: ignore[no-untyped-call]

        return step

    teacher = network(recipe.fit.architecture)

    def teacher_forward() -> None:
        with torch.no_grad():
            teacher(x_BCHW)

    teacher_step_s = _seconds(train(teacher), device) / batch
    teacher.eval()
    return StepTimes(
        teacher_step_s=teacher_step_s,
        teacher_forward_s=_seconds(teacher_forward, device) / batch,
        students_step_s=sum(_seconds(train(network(student.architecture)), device) for student in recipe.students) / batch,
    )


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    work()
    _wait(device)
    started = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        work()
    _wait(device)
    return (time.perf_counter() - started) / _TIMED_STEPS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
