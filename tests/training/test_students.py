"""Students: a checkpoint holds their complete state, and no two share random numbers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.factories import small_recipe
from udkd.augment.apply import ViewTable
from udkd.augment.views import draw_views
from udkd.config.recipe import Recipe
from udkd.models.build import KeyedDropout
from udkd.training.schedule import EpochSchedule
from udkd.training.student import Student, make_students, prefixed

CPU = torch.device("cpu")
NETS = (
    "students=[{architecture='squeezenet1_1', lr=0.01, nesterov=true}, {architecture='mobilenet_v2', lr=0.05, warmup_epochs=1}]"
)
TWO_EPOCHS = "train.epochs=2"
TWINS = "students=[{architecture='squeezenet1_1', lr=0.01}, {architecture='squeezenet1_1', lr=0.01}]"


def begin(student: Student, recipe: Recipe, number: int) -> None:
    """Step `number` of a run of two epochs of four steps."""
    views = ViewTable.of(draw_views(recipe.views.spec, 0, 0, np.arange(1), np.ones((1, 4), np.int64)))
    schedule = EpochSchedule.of(recipe, number // 4, 4, 0, views, CPU)
    student.set_step_inputs(schedule.lr[number % 4, student.index], schedule.dropout_keys[number % 4, student.index])


def step(student: Student, recipe: Recipe, number: int) -> None:
    """One training step on a batch that the step's number names."""
    student.model.train()
    begin(student, recipe, number)
    x = (torch.arange(4 * 3 * 32 * 32) * (number + 3) % 251).view(4, 3, 32, 32).to(memory_format=torch.channels_last) / 251
    student.model(x).square().mean().backward()
    student.optimizer_step(torch.zeros(()))


def copied(student: Student) -> dict[str, Tensor]:
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in student.tensors().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_restored_students_continue_to_the_same_bits() -> None:
    """Weights, running statistics, momentum, dropout; the tensors of the file are contiguous, the networks channels_last."""
    recipe = small_recipe(NETS, TWO_EPOCHS)
    for original, fresh in zip(make_students(recipe, 4, CPU), make_students(recipe, 4, CPU), strict=True):
        assert not any(value.any() for name, value in original.tensors().items() if name.startswith("momentum")), "none so far"
        for number in range(2):
            step(original, recipe, number)
        kept = copied(original)
        assert any(name.startswith(f"momentum.{original.index}.") for name in kept)
        fresh.restore(kept)
        assert_equal(copied(fresh), kept)
        for number in range(2, 4):
            step(original, recipe, number)
            step(fresh, recipe, number)
        assert_equal(copied(fresh), copied(original))
        assert any(not torch.equal(kept[name], value) for name, value in original.tensors().items()), (
            "the steps changed the weights"
        )


def test_a_students_initial_weights_depend_on_its_index_alone() -> None:
    """Independent of the other students and of the global generator; equal architectures start differently."""
    pair = make_students(small_recipe(NETS), 4, CPU)
    torch.manual_seed(7)
    alone = make_students(small_recipe("students=[{architecture='squeezenet1_1', lr=0.3}]"), 4, CPU)
    assert_equal(copied(alone[0]), copied(pair[0]))
    one, other = make_students(small_recipe(TWINS), 4, CPU)
    assert [student.name for student in (one, other)] == ["squeezenet1_1-1", "squeezenet1_1-2"]
    assert not torch.equal(next(one.model.parameters()), next(other.model.parameters()))
    reseeded = make_students(small_recipe(TWINS, "train.seed=1"), 4, CPU)
    assert not torch.equal(next(reseeded[0].model.parameters()), next(one.model.parameters()))


def test_dropout_keys_depend_on_seed_student_and_step() -> None:
    one, other = make_students(small_recipe(TWINS, TWO_EPOCHS), 4, CPU)
    keys = []
    for student, seed, number in ((one, 0, 0), (other, 0, 0), (one, 0, 1), (one, 1, 0), (one, 0, 0)):
        begin(student, small_recipe(TWINS, TWO_EPOCHS, f"train.seed={seed}"), number)
        keys.append(next(int(module.key) for module in student.model.modules() if isinstance(module, KeyedDropout)))
    assert len(set(keys)) == 4
    assert keys[0] == keys[4]


def test_the_learning_rate_is_a_function_of_the_step() -> None:
    recipe = small_recipe(NETS, TWO_EPOCHS)
    _, student = make_students(recipe, 4, CPU)
    rates = []
    for number in (0, 3, 4, 6, 7, 0):
        begin(student, recipe, number)
        rates.append(float(student.optimizer.param_groups[0]["lr"]))
    assert rates == pytest.approx([0.0125, 0.05, 0.05, 0.025, 0.05 * (1 - 2**-0.5) / 2, 0.0125])


def test_prefixed_keeps_ten_apart_from_one() -> None:
    tensors = {"student.1.a": torch.zeros(1), "student.10.a": torch.ones(1), "momentum.1.a": torch.ones(2)}
    assert prefixed(tensors, "student.1.") == {"a": tensors["student.1.a"]}
