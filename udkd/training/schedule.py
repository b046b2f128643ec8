"""What each step of an epoch needs apart from its samples: tables on the device, which a step reads at its number."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from udkd.augment.apply import ViewTable
from udkd.config.recipe import Recipe
from udkd.losses.schedules import EpochStats, interpolate, schedule_progress
from udkd.models.build import dropout_keys
from udkd.training.lr import ema_rate, learning_rate
from udkd.utils.rng import Stream, key


@dataclass(frozen=True, kw_only=True)
class StepValues:
    """One step's row of an EpochSchedule: learning rates, dropout keys, loss weights (see `loss_weights`), EMA rate []."""

    lr_N: Tensor
    dropout_key_N: Tensor
    loss_weights_4N: Tensor
    ema_rate: Tensor

    @property
    def term_weights_3N(self) -> Tensor:
        """Alpha, beta and gamma of each student."""
        return self.loss_weights_4N[:3]

    @property
    def method_weight_N(self) -> Tensor:
        """The weight of loss.method's term for each student."""
        return self.loss_weights_4N[3]


@dataclass(frozen=True, kw_only=True)
class EpochSchedule:
    """One epoch of S steps for N students.

    view: the number of the view that the students see. views: the views of all ids.
    lr_and_weights: float32 [S, 5, N], learning rates and the four loss weights. dropout_keys: int64 [S, N].
    ema_rates: float32 [S], see udkd.training.lr.ema_rate.
    """

    view: int
    views: ViewTable
    lr_and_weights: Tensor  # one table: every lookup is a kernel launch
    dropout_keys: Tensor
    ema_rates: Tensor

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        epoch: int,
        steps_per_epoch: int,
        view: int,
        views: ViewTable,
        device: torch.device,
        stats: EpochStats | None = None,
    ) -> "EpochSchedule":
        """The schedule of epoch number `epoch`, from 0. stats: of the epoch before it."""
        steps = np.arange(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch, dtype=np.int64)
        seed = int(key(recipe.train.seed, Stream.DROPOUT)[0] >> 1)
        students = range(len(recipe.students))
        keys = np.stack([dropout_keys(seed, index, steps) for index in students], axis=1)
        rates = [learning_rates(recipe, step, steps_per_epoch) for step in steps.tolist()]
        stats = stats or EpochStats.none(len(recipe.students))
        weights = [loss_weights(recipe, step, steps_per_epoch * recipe.train.epochs, stats) for step in steps.tolist()]
        ema_rates = [ema_rate(step, recipe.train.ema_decay) for step in steps.tolist()]
        return cls(
            view=view,
            views=views,
            lr_and_weights=torch.tensor([[lr, *rows] for lr, rows in zip(rates, weights, strict=True)], dtype=torch.float32).to(
                device
            ),
            dropout_keys=torch.from_numpy(keys).to(device),
            ema_rates=torch.tensor(ema_rates, dtype=torch.float32).to(device),
        )

    @property
    def lr(self) -> Tensor:
        """Learning rates, float32 [S, N]."""
        return self.lr_and_weights[:, 0]

    def at(self, step: Tensor, student_indices: Tensor | None = None) -> StepValues:
        """The values of a step, an int64 scalar on the device. student_indices: int64, None for all students."""
        # Indexing by `step` would read it: the host would wait, and in a CUDA graph that is an error.
        values_5N, keys_N, ema_rate = (
            table.index_select(0, step.view(1))[0] for table in (self.lr_and_weights, self.dropout_keys, self.ema_rates)
        )
        if student_indices is not None:
            values_5N, keys_N = values_5N.index_select(1, student_indices), keys_N.index_select(0, student_indices)
        return StepValues(lr_N=values_5N[0], dropout_key_N=keys_N, loss_weights_4N=values_5N[1:], ema_rate=ema_rate)


def learning_rates(recipe: Recipe, step: int, steps_per_epoch: int) -> list[float]:
    """Each student's learning rate in step number `step` of the run; a later start_epoch delays its schedule."""
    return [
        learning_rate(
            student,
            step - student.start_epoch * steps_per_epoch,
            peak=student.lr * recipe.lr_scale,
            epochs=recipe.train.epochs - student.start_epoch,
            steps_per_epoch=steps_per_epoch,
        )
        if step >= student.start_epoch * steps_per_epoch
        else 0.0
        for student in recipe.students
    ]


def loss_weights(recipe: Recipe, step: int, total_steps: int, stats: EpochStats) -> list[list[float]]:
    """[4][N]: alpha, beta, gamma and the method's weight of each student in step number `step` of the run.

    The recipe's weights, changed by its schedules, times the student's loss_weight. stats: of the epoch before.
    """
    fraction = step / total_steps
    return [
        [
            student.loss_weight
            * interpolate(
                schedule.kind,
                first,
                schedule.to,
                progress=schedule_progress(schedule.kind, stats, index, fraction=fraction, until=schedule.until),
            )
            for index, student in enumerate(recipe.students)
        ]
        for first, schedule in zip(recipe.loss.initial_weights, recipe.loss.schedules.as_tuple(), strict=True)
    ]
