"""The learning rate: PyTorch's schedulers, as pure functions of the step."""

import math
import warnings

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from tests.factories import small_recipe
from udkd.config.sections import StudentSection
from udkd.training.lr import cosine, learning_rate
from udkd.training.schedule import learning_rates


@pytest.mark.parametrize("total", [1, 2, 7, 400])
def test_equals_pytorchs_cosine(total: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    for step in range(total + 1):
        assert cosine(step, peak=0.1, warmup_steps=0, total_steps=total) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12
        )
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.step()


@pytest.mark.parametrize(("warmup", "total"), [(1, 10), (5, 50), (10, 10), (20, 10)])
def test_warmup_rises_evenly_to_the_peak(warmup: int, total: int) -> None:
    rates = [cosine(step, peak=2.0, warmup_steps=warmup, total_steps=total) for step in range(total)]
    assert rates[: min(warmup, total)] == pytest.approx([2 * (n + 1) / warmup for n in range(min(warmup, total))])
    after = rates[warmup:]
    assert after == pytest.approx([1 + math.cos(math.pi * n / max(1, total - warmup)) for n in range(len(after))])
    assert all(0 < rate <= 2 for rate in rates)


def test_a_peak_of_zero_stays_zero() -> None:
    assert {cosine(step, peak=0.0, warmup_steps=2, total_steps=9) for step in range(9)} == {0.0}


SGD = torch.optim.SGD
EPOCHS, STEPS = 6, 7


def wsd(optimizer: SGD) -> LRScheduler:
    parts = [lr_scheduler.ConstantLR(optimizer, 1.0), lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=11)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[EPOCHS * STEPS - 11])


SCHEDULES: dict[str, tuple[dict[str, object], object]] = {
    "cosine": ({"lr_end": 0.25}, lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS, eta_min=0.05)),
    "linear": ({"lr_end": 0.25}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.25, total_iters=EPOCHS * STEPS)),
    "linear to 0": ({}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=EPOCHS * STEPS)),
    "constant": ({}, lambda o: lr_scheduler.ConstantLR(o, 1.0)),
    "step": ({"step_epochs": (2.0, 4.5), "step_gamma": 0.3}, lambda o: lr_scheduler.MultiStepLR(o, [14, 32], gamma=0.3)),
    "wsd": ({"decay_epochs": 11 / STEPS, "lr_end": 0.05}, wsd),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_equals_pytorchs(name: str) -> None:
    options, scheduler = SCHEDULES[name]
    student = StudentSection(architecture="resnet18", schedule=name.split()[0], **options)  # type: ignore[arg-type]
    optimizer = SGD([torch.zeros(1)], lr=0.2)
    theirs = scheduler(optimizer)  # type: ignore[operator]
    for step in range(EPOCHS * STEPS):
        rate = learning_rate(student, step, peak=0.2, epochs=EPOCHS, steps_per_epoch=STEPS)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12), step
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_warms_up_and_begins_with_its_student(name: str) -> None:
    options = [f"{key}={list(value) if isinstance(value, tuple) else value}" for key, value in SCHEDULES[name][0].items()]
    fixed = ["architecture='resnet18'", "lr=0.2", f"schedule='{name.split()[0]}'", "warmup_epochs=1", "start_epoch=2"]
    recipe = small_recipe(f"students=[{{architecture='resnet34'}}, {{{', '.join([*fixed, *options])}}}]", "train.epochs=8")
    rates = [learning_rates(recipe, step, STEPS)[1] for step in range(8 * STEPS)]
    assert rates[: 2 * STEPS] == [0.0] * 2 * STEPS
    assert rates[2 * STEPS : 3 * STEPS] == pytest.approx([0.2 * (n + 1) / STEPS for n in range(STEPS)])
    assert max(rates) == pytest.approx(0.2)
    alone = [learning_rate(recipe.students[1], step, peak=0.2, epochs=6, steps_per_epoch=STEPS) for step in range(6 * STEPS)]
    assert rates[2 * STEPS :] == alone
