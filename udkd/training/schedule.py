"""What the steps of one epoch depend on besides their samples, on the device: a step finds its row by its number alone."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from udkd.augment.apply import ViewTable
from udkd.config.recipe import Recipe
from udkd.losses.schedules import EpochStats, interpolate, schedule_progress
from udkd.models.build import dropout_keys
from udkd.training.lr import cosine, ema_rate
from udkd.utils.rng import key

_DROPOUT = 2  # a name that keeps the uses of a run's seed apart


@dataclass(frozen=True, kw_only=True)
class EpochSchedule:
    """One epoch of S steps for N students.

    view: the number of the view that the students see. views: the views of all ids.
    rates: float32 [S, N], learning rates. dropout_keys: int64 [S, N]. averaging: float32 [S], see schedule.ema_rate.
    weights: float32 [S, 4, N], see `loss_weights`.
    """

    view: int
    views: ViewTable
    rates: Tensor
    dropout_keys: Tensor
    ema_rate: Tensor
    weights: Tensor

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        epoch: int,
        steps_per_epoch: int,
        view: int,
        views: ViewTable,
        device: torch.device,
        figures: EpochStats | None = None,
    ) -> "EpochSchedule":
        """The plan of epoch number `epoch`, from 0. figures: of the epoch before it."""
        steps = np.arange(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch, dtype=np.int64)
        seed = int(key(recipe.train.seed, _DROPOUT)[0] >> 1)
        students = range(len(recipe.students))
        keys = np.stack([dropout_keys(seed, index, steps) for index in students], axis=1)
        rates = [learning_rates(recipe, step, steps_per_epoch) for step in steps.tolist()]
        figures = figures or EpochStats.none(len(recipe.students))
        weights = [loss_weights(recipe, step, steps_per_epoch * recipe.train.epochs, figures) for step in steps.tolist()]
        shares = [ema_rate(step, recipe.train.ema_decay) for step in steps.tolist()]
        return cls(
            view=view,
            views=views,
            rates=torch.tensor(rates, dtype=torch.float32).to(device),
            dropout_keys=torch.from_numpy(keys).to(device),
            ema_rate=torch.tensor(shares, dtype=torch.float32).to(device),
            weights=torch.tensor(weights, dtype=torch.float32).to(device),
        )


def at_step(values_S: Tensor, place: Tensor) -> Tensor:
    """values_S[place] for an int64 scalar on the device. Indexing by it would ask the device for the number: the host waits,
    and inside a CUDA graph that is an error.
    """
    return values_S.index_select(0, place.view(1))[0]


def learning_rates(recipe: Recipe, step: int, steps_per_epoch: int) -> list[float]:
    """Each student's learning rate in step number `step` of the run; one that joins later begins its schedule then."""
    return [
        cosine(
            step - student.start_epoch * steps_per_epoch,
            peak=student.lr * recipe.lr_scale,
            warmup_steps=round(student.warmup_epochs * steps_per_epoch),
            total_steps=(recipe.train.epochs - student.start_epoch) * steps_per_epoch,
        )
        if step >= student.start_epoch * steps_per_epoch
        else 0.0
        for student in recipe.students
    ]


def loss_weights(recipe: Recipe, step: int, total_steps: int, figures: EpochStats) -> list[list[float]]:
    """[4][N]: alpha, beta, gamma and the method's weight of each student in step number `step` of the run.

    What the recipe says, moved by its schedules, times the student's own weight; a pure function of these four.
    """
    share = step / total_steps
    return [
        [
            student.loss_weight
            * interpolate(
                schedule.kind,
                first,
                schedule.to,
                progress=schedule_progress(schedule.kind, figures, index, share=share, until=schedule.until),
            )
            for index, student in enumerate(recipe.students)
        ]
        for first, schedule in zip(recipe.loss.weights, recipe.loss.schedules.each(), strict=True)
    ]
