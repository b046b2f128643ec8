"""The speed probe: its measurements, and the arithmetic of its estimate."""

import pytest
import torch

from tests.factories import small_recipe
from udkd.training.speed_probe import StepTimes, measure_step_times
from udkd.utils.errors import ConfigError


def test_every_speed_is_measured_without_drawing_random_numbers() -> None:
    state = torch.random.get_rng_state()
    speeds = measure_step_times(small_recipe("fit.architecture=squeezenet1_1"), 4, torch.device("cpu"))
    assert 0 < speeds.teacher_forward_s < speeds.teacher_step_s < 10
    assert 0 < speeds.students_step_s < 10
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_estimate_counts_every_part() -> None:
    recipe = small_recipe("fit.epochs=4", "train.epochs=6")
    speeds = StepTimes(teacher_step_s=0.1, teacher_forward_s=0.01, students_step_s=1.0)
    parts = 4 * (100 * 0.1 + 30 * 0.01) + 100 * 0.01 + 6 * (100 + 10) * 1.0
    assert speeds.total_s(recipe, train_images=100, val_images=30) == pytest.approx(parts)


def test_an_impossible_job_is_refused_first() -> None:
    with pytest.raises(ConfigError, match="'resnet5' is unknown"):
        measure_step_times(small_recipe("fit.architecture=resnet5"), 4, torch.device("cpu"))
