"""The step: each student learns as if alone, the metrics sum all batches, the first non-finite step is recorded."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.factories import small_recipe
from udkd.augment.apply import ViewTable, apply
from udkd.augment.views import draw_views
from udkd.config.recipe import Recipe
from udkd.data.batch import Batch
from udkd.teacher.sources import NoTargets
from udkd.teacher.target import TargetSource, TeacherTargets
from udkd.training.build_step import build_step
from udkd.training.metrics import ROWS, TrainMetrics
from udkd.training.schedule import EpochSchedule
from udkd.training.student import Student, make_students

CPU = torch.device("cpu")
SAMPLES = 12


class Constant:
    """A teacher that predicts row n for sample n."""

    num_features = 0

    def load(self, view: int) -> None: ...

    def __call__(self, batch: Batch, x_BCHW: torch.Tensor, view: int, labels: object = None) -> TeacherTargets:
        rows = torch.arange(SAMPLES * 4).view(SAMPLES, 4)[batch.ids] * 7 % 5
        return TeacherTargets(logits=-rows.half(), weight=(batch.ids % 3).float() / 2)


def batch_of(ids: list[int]) -> Batch:
    rng = np.random.default_rng(0)
    canvas = torch.from_numpy(rng.integers(0, 256, (SAMPLES, 36, 36, 3), dtype=np.uint8))
    rows = torch.tensor(ids)
    return Batch(ids=rows, canvas=canvas[rows], labels=rows % 4)


def schedule_of(recipe: Recipe) -> EpochSchedule:
    """An epoch of eight steps."""
    views = ViewTable.of(draw_views(recipe.views.spec, 0, 0, np.arange(SAMPLES), np.tile([36, 30, 36, 30], (SAMPLES, 1))))
    return EpochSchedule.of(recipe, 0, 8, 0, views, CPU)


def run(students: list[Student], recipe: Recipe, teacher: TargetSource, steps: list[list[int]]) -> TrainMetrics:
    step = build_step(recipe, recipe.views.spec, students, teacher, CPU)
    schedule, metrics = schedule_of(recipe), TrainMetrics.empty(len(recipe.students), CPU)
    for student in students:
        student.model.train()
    for number, ids in enumerate(steps):
        step(batch_of(ids), torch.tensor(number), schedule, metrics)
    return metrics


STEPS = [[0, 5, 7, 2], [11, 1, 3, 4], [6, 8, 9, 10]]


def weights(student: Student) -> bytes:
    return b"".join(value.contiguous().numpy().tobytes() for value in student.tensors().values())


def test_without_peers_each_learns_as_if_alone() -> None:
    """Losses are summed and optimizers many; still no gradient of one reaches another, bit for bit."""
    recipe = small_recipe("loss.gamma=0")
    together = make_students(recipe, 4, CPU)
    run(together, recipe, Constant(), STEPS)
    for index in range(2):
        alone = [make_students(recipe, 4, CPU)[index]]
        before = weights(alone[0])
        run(alone, recipe, Constant(), STEPS)
        assert weights(alone[0]) == weights(together[index]) != before


def test_peers_change_what_a_student_learns() -> None:
    recipe = small_recipe()
    together = make_students(recipe, 4, CPU)
    metrics = run(together, recipe, Constant(), STEPS[:2])
    alone = [make_students(recipe, 4, CPU)[0]]
    run(alone, recipe, Constant(), STEPS[:2])
    assert weights(alone[0]) != weights(together[0])
    assert (metrics.sums[ROWS.index("peer")] > 0).all()


def test_the_metrics_are_the_mean_over_samples() -> None:
    """Against a forward pass by hand, before the weights change."""
    recipe = small_recipe("loss.alpha=1", "loss.beta=0", "loss.gamma=0", "students=[{architecture='squeezenet1_1', lr=0}]")
    batches, schedule = [[0, 1, 2, 3], [4, 5, 6, 7]], schedule_of(recipe)
    student = make_students(recipe, 4, CPU)
    metrics = run(student, recipe, NoTargets(), batches)
    losses, correct = [], 0
    for number, ids in enumerate(batches):
        student[0].set_step_inputs(schedule.lr[number, 0], schedule.dropout_keys[number, 0])
        batch = batch_of(ids)
        z = student[0].model.train()(apply(batch.canvas, schedule.views.gather(batch.ids), recipe.views.spec))
        losses += F.cross_entropy(z, batch.labels, reduction="none").tolist()
        correct += int((z.argmax(1) == batch.labels).sum())
    means = metrics.means(recipe.loss.settings)
    assert int(metrics.count) == 8
    assert means["hard"] == pytest.approx([np.mean(losses)], rel=1e-6)
    assert means["loss"] == pytest.approx(means["hard"])
    assert means["top1"] == pytest.approx([100 * correct / 8])
    assert means["teacher"] == means["peer"] == [0.0]
    assert int(metrics.first_nonfinite_step) == -1


def test_the_first_nonfinite_step_is_recorded() -> None:
    recipe = small_recipe("students=[{architecture='squeezenet1_1', lr=1e30}]")
    students = make_students(recipe, 4, CPU)
    metrics = run(students, recipe, Constant(), STEPS * 2)
    assert 1 <= int(metrics.first_nonfinite_step) <= 3
    first = run(make_students(recipe, 4, CPU), recipe, Constant(), (STEPS * 2)[: int(metrics.first_nonfinite_step)])
    assert int(first.first_nonfinite_step) == -1, "every step before it was finite"
    with torch.no_grad():
        next(students[0].model.parameters()).fill_(float("nan"))
    assert int(run(students, recipe, Constant(), STEPS).first_nonfinite_step) == 0


def test_empty_metrics_have_means() -> None:
    assert TrainMetrics.empty(2, CPU).means(small_recipe().loss.settings)["loss"] == [0.0, 0.0]
