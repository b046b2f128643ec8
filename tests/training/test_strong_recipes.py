"""The shipped recipes with strong augmentation run, at a size of seconds, with their own views, loss and optimizers."""

from pathlib import Path

import pytest
import torch

from udkd.config.loading import load_recipe
from udkd.data.dataset import DatasetFolder
from udkd.models.build import parameter_count
from udkd.teacher.cache.build import build_cache
from udkd.teacher.folder import TeacherFolder
from udkd.training.trainer import TrainJob, train

CPU = torch.device("cpu")
DATASET_IMAGES = {"per_class": 4, "val_per_class": 1}
TOY = (
    "views.size_px=32",
    "evaluation.resize_px=36",
    "train.epochs=1",
    "train.batch_size=8",
    "train.accumulate=1",
    "train.compile=off",
    "train.threads=1",
    "teacher.views=1",
    "teacher.batch_size=8",
    "students.0.architecture=squeezenet1_1",
    "students.1.architecture=squeezenet1_0",
    "students.0.warmup_epochs=0",
    "students.1.warmup_epochs=0",
    "fit.architecture=squeezenet1_1",
    "fit.epochs=1",
)
MIXED = {"deit-small-style": "live", "funmatch": "live", "imagenet100-strong": "cache"}


@pytest.mark.parametrize("name", MIXED)
def test_it_trains(tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, name: str) -> None:
    """A loss that is not finite would be an error."""
    recipe = load_recipe(name, TOY)
    assert recipe.teacher.source == MIXED[name]
    where = {"data": dataset.path, "out": tmp_path / "run", "device": CPU, "teacher": teacher.path}
    if recipe.teacher.source == "cache":
        built = build_cache(tmp_path / "cache", dataset=dataset, teacher=teacher, recipe=recipe, device=CPU)
        where |= {"cache": built.cache.folder}
    assert train(TrainJob(recipe=recipe, **where)).finished


@pytest.mark.parametrize("name", MIXED)
def test_its_teacher_trains(tmp_path: Path, dataset: DatasetFolder, name: str) -> None:
    recipe = load_recipe(name, TOY).for_teacher()
    assert recipe.views.spec.mixes
    assert train(TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / "teacher", device=CPU)).finished


@pytest.mark.parametrize("name", MIXED)
def test_its_networks_exist(name: str) -> None:
    recipe = load_recipe(name)
    for student in (*recipe.students, recipe.fit):
        if student.architecture.startswith("timm/"):
            pytest.importorskip("timm")
        assert parameter_count(student.architecture, 100, recipe.views.size_px) > 1e6
