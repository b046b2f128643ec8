"""Training in one call: a network by name becomes the run's teacher, and its cache is built."""

import signal
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

import udkd
from tests.factories import small_recipe
from tests.training.runs import checkpoint_hash
from udkd.cli.train import train_command
from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder
from udkd.teacher.cache.reader import Cache
from udkd.teacher.folder import TeacherFolder
from udkd.training import make_targets
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import TrainJob
from udkd.utils.errors import ConfigError, RunError

OWN = "tests.models.own_models:make"
STUDENTS = ["squeezenet1_1", OWN]


def own_recipe(*settings: str) -> Recipe:
    return small_recipe("train.epochs=1", "teacher.size_px=40", *settings)


def test_one_call_equals_its_parts(tmp_path: Path, dataset: DatasetFolder) -> None:
    recipe = own_recipe()
    options = {"data": dataset.path, "students": STUDENTS, "device": "cpu"}
    assert udkd.train(recipe, teacher=OWN, out=tmp_path / "run", **options).finished
    run = RunFolder.open(tmp_path / "run")
    assert [student["architecture"] for student in run.config["students"]] == STUDENTS
    assert run.config["students"][0]["lr"] == 0.01, "the settings of the recipe's student of that architecture"
    teacher, cache = TeacherFolder.open(tmp_path / "run" / "teacher"), Cache.open(tmp_path / "run" / "cache")
    assert (teacher.info.architecture, teacher.info.image_px) == (OWN, 40)
    assert cache.key.teacher_sha256 == teacher.info.weights_sha256
    assert not run.problems()

    built = udkd.build_cache(tmp_path / "cache", dataset=dataset, teacher=teacher.path, recipe=recipe, device="cpu")
    udkd.train(recipe, cache=built.cache.folder, out=tmp_path / "parts", **options)
    assert checkpoint_hash(tmp_path / "run") == checkpoint_hash(tmp_path / "parts")
    assert udkd.train(recipe, teacher=OWN, out=tmp_path / "run", resume=True, **options).finished
    with pytest.raises(ConfigError, match=r"is a tests.models.own_models:make; expected resnet18; remove it"):
        udkd.train(recipe, teacher="resnet18", out=tmp_path / "run", **options)


def test_a_live_teacher_needs_no_cache(tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder) -> None:
    live = small_recipe("train.epochs=1", "teacher.source='live'")
    torch.manual_seed(0)
    assert udkd.train(live, data=dataset.path, teacher=teacher.path, out=tmp_path / "run", device="cpu").finished
    assert not (tmp_path / "run" / "cache").exists()


def test_a_teacher_from_a_folder_of_timms_is_found_again(tmp_path: Path, dataset: DatasetFolder) -> None:
    """It is stored under its name in timm's registry."""
    names = [entry.wnid for entry in dataset.classes]
    network = timm.create_model("test_resnet", num_classes=4)
    save_for_hf(network, tmp_path / "hub", model_config={"num_classes": 4, "label_names": names})
    options = {"data": dataset.path, "teacher": f"timm/local-dir:{tmp_path / 'hub'}", "out": tmp_path / "run", "device": "cpu"}
    assert udkd.train(own_recipe(), **options).finished
    assert udkd.train(own_recipe(), resume=True, **options).finished


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("no/such/folder", r"no/such/folder is not a folder, and no network: architecture 'no/such/folder' is unknown"),
        ("timm/resnet18x", r"timm/resnet18x is not a folder, and no network: .*did you mean"),
    ],
)
def test_what_is_no_teacher(tmp_path: Path, dataset: DatasetFolder, teacher: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        udkd.train(own_recipe(), data=dataset.path, teacher=teacher, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_no_run_to_extend_is_said_before_a_teacher_is_imported(tmp_path: Path, dataset: DatasetFolder) -> None:
    with pytest.raises(RunError, match="is not a run"):
        udkd.train(own_recipe(), data=dataset.path, teacher=OWN, out=tmp_path / "run", device="cpu", resume=True, extend=9)
    assert not (tmp_path / "run").exists()


def test_a_signal_ends_the_import_and_the_build_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only training waits for the end of a step: neither of these asks whether it should stop."""
    handlers = []

    def with_targets(job: TrainJob, teacher: str | None) -> TrainJob:
        handlers.append(signal.getsignal(signal.SIGTERM))
        raise ConfigError("enough")

    monkeypatch.setattr(make_targets, "with_targets", with_targets)
    with pytest.raises(ConfigError, match="enough"):
        train_command("quickstart", data=tmp_path, out=tmp_path / "run", teacher=["resnet18"], device="cpu")
    assert handlers == [signal.getsignal(signal.SIGTERM)]
