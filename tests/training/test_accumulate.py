"""A batch in parts: without batch norm the same step as the batch at once, in float64, dropout and metrics included."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.factories import small_recipe
from tests.training.runs import checkpoint_hash
from tests.training.test_step import Constant, batch_of, schedule_of
from udkd.augment.apply import ViewTable, apply
from udkd.data.dataset import DatasetFolder
from udkd.training.build_step import build_step
from udkd.training.metrics import TrainMetrics, recorded_rows
from udkd.training.run_folder import RunFolder
from udkd.training.student import make_students
from udkd.training.trainer import TrainJob, train

CPU = torch.device("cpu")
BATCHES = [[0, 5, 7, 2, 1, 10, 9, 3], [11, 1, 3, 4, 6, 8, 0, 2]]


def trained(parts: int) -> tuple[list[Tensor], Tensor]:
    """Weights and metrics after two steps of two students with dropout, in float64."""
    names = ("squeezenet1_1", "squeezenet1_0")
    nets = ", ".join(f"{{architecture='{name}', lr=0.5, momentum=0.0, clip_norm=0.5}}" for name in names)
    recipe = small_recipe(f"students=[{nets}]", f"train.accumulate={parts}")
    students = make_students(recipe, 4, CPU)
    step = build_step(recipe, recipe.views.spec, students, Constant(), CPU)

    def augment(canvas_BSS3: Tensor, views: ViewTable) -> list[Tensor]:
        return [apply(canvas_BSS3, views, recipe.views.spec).double()]

    step, metrics = replace(step, augment=augment), TrainMetrics.empty(2, CPU, recorded_rows(recipe))
    for student in students:
        student.model.double().train()
    for number, ids in enumerate(BATCHES):
        step(batch_of(ids), torch.tensor(number), schedule_of(recipe), metrics)
    return [value for student in students for value in student.model.state_dict().values()], metrics.sums


def test_parts_add_up_to_the_batch() -> None:
    whole, whole_sums = trained(1)
    for parts in (2, 4):
        weights, sums = trained(parts)
        for one, other in zip(weights, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(sums, whole_sums, rtol=1e-6, atol=1e-6)
    initial = next(make_students(small_recipe(), 4, CPU)[0].model.parameters())
    assert (whole[0] - initial).abs().max() > 1e-4, "the weights moved"


def test_a_run_records_the_same_metrics_with_a_method_too(tmp_path: Path, dataset: DatasetFolder, cache: Path) -> None:
    """With a rate of 0 every step has the same weights; streamed and resident input give the same bits."""
    nets = "students=[{architecture='squeezenet1_1', lr=0}, {architecture='squeezenet1_1', name='b', lr=0}]"
    settings = [nets, "loss.method=dkd", "train.epochs=1", "train.batch_size=24"]
    rows = []
    runs = {"whole": [], "parts": ["train.accumulate=3"], "resident": ["train.accumulate=3", "train.input=resident"]}
    for name, more in runs.items():
        recipe = small_recipe(*settings, *more)
        train(TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / name, device=CPU, cache=cache))
        rows.append(RunFolder.open(tmp_path / name).metrics()[0]["train"])
    assert rows[0].keys() >= {"loss", "hard", "teacher", "peer", "top1", "method", "confidence"}
    for name, values in rows[0].items():
        assert rows[1][name] == pytest.approx(values, rel=1e-5), name
        assert rows[2][name] == rows[1][name], name
    assert checkpoint_hash(tmp_path / "parts") == checkpoint_hash(tmp_path / "resident")
