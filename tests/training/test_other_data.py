"""A run on other data: labels by class name, against NumPy and torchvision."""

import functools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file

from tests.cli.commands import inside, refused
from tests.factories import CLASSES, make_images, rewrite_json, small_recipe
from tests.observers import Notes
from udkd.augment import apply as augment
from udkd.augment.view_table import EpochViews
from udkd.data.dataset import DatasetFolder
from udkd.data_prep.convert import ConvertSettings, convert
from udkd.teacher.folder import TeacherFolder
from udkd.training.evaluate import evaluate
from udkd.training.other_data import OtherData
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import TrainJob, train
from udkd.training.verify_run import verify_run
from udkd.utils.errors import ConfigError, DataError, MismatchError, RunError
from udkd.utils.progress import SILENT

CPU = torch.device("cpu")
DATASET_IMAGES = {"per_class": 8, "val_per_class": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder, teacher: TeacherFolder) -> RunFolder:
    out = tmp_path_factory.mktemp("run") / "run"
    recipe = small_recipe("teacher.source='live'", "train.epochs=1", "students.0.lr=0.05")
    train(TrainJob(recipe=recipe, data=dataset.path, out=out, device=CPU, teacher=teacher.path))
    return RunFolder.open(out)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), per_class=2, val_per_class=7, side=60)


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory, images: Path) -> DatasetFolder:
    """Other images of two of the four classes, whose labels are 0 and 1, larger, and without a canvas file."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("bee", "dog"):
        shutil.copytree(images / "val" / name, tree / name)
    return converted(tree, tmp_path_factory.mktemp("converted") / "test-set")


def converted(tree: Path, out: Path) -> DatasetFolder:
    convert([tree], out, ConvertSettings(side=60, formats=(), hold_out_percent=100), SILENT)
    return DatasetFolder.open(out)


def expected(run: RunFolder, data: DatasetFolder, split_name: str) -> list[dict[str, float]]:
    """Scores of each student and of their mean, by torchvision's networks, in float64."""
    split, spec = data.split(split_name), small_recipe().evaluation_spec
    canvas = torch.from_numpy(np.stack([split.pixels(number) for number in split.ids.tolist()]))
    x_BCHW = augment.apply(canvas, EpochViews(spec, 0, split, CPU).table(0).gather(torch.from_numpy(split.ids)), spec)
    truth = np.array([CLASSES.index(data.classes[label].wnid) for label in split.labels[split.ids]])
    probabilities = []
    for name in ("squeezenet1_1", "squeezenet1_0"):
        model = torchvision.models.get_model(name, num_classes=4).eval()
        model.load_state_dict(load_file(run.student_path(name)))
        with torch.no_grad():
            probabilities.append(model(x_BCHW).double().softmax(-1).numpy())
    rows = []
    for p_BC in (*probabilities, np.mean(probabilities, axis=0)):
        loss = -np.log(p_BC[np.arange(len(truth)), truth]).mean()
        rows.append({"top1": 100 * float((p_BC.argmax(1) == truth).mean()), "top5": 100.0, "loss": float(loss)})
    return rows


def scores(result: dict[str, object]) -> list[dict[str, float]]:
    rows = [*result["students"], result["ensemble"]]  # type: ignore[misc]
    return [{name: row[name] for name in ("top1", "top5", "loss")} for row in rows]


def test_a_test_set_of_some_classes(run: RunFolder, test_set: DatasetFolder) -> None:
    files, notes = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}, Notes()
    result = evaluate(run, data=test_set.path, device=CPU, observer=notes)
    for row, wanted in zip(scores(result), expected(run, test_set, "val"), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)
    assert (result["name"], result["split"], result["num_samples"]) == ("test-set", "val", 14)
    assert (result["num_classes"], result["classes_present"]) == (4, 2)
    assert result["dataset_digest"] == test_set.digest
    assert result["teacher"]["name"] == "squeezenet1_1"
    assert "2 of the run's 4 classes have images; all 4 outputs compete" in notes.lines
    assert run.other_evaluation("test-set") == result
    after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert set(after) - set(files) == {run.path / "eval-test-set.json"}
    assert all(after[path] == files[path] for path in files)


def test_data_without_validation_images(run: RunFolder, dataset: DatasetFolder) -> None:
    only_train = replace(dataset, splits={"train": dataset.train})
    assert OtherData.of(only_train, CLASSES, None, "").split is dataset.train
    assert OtherData.of(dataset, CLASSES, None, "").split is dataset.val
    nothing = replace(dataset.val, excluded=np.ones_like(dataset.val.excluded))
    assert OtherData.of(replace(dataset, splits=dataset.splits | {"val": nothing}), CLASSES, None, "").split is dataset.train
    with pytest.raises(DataError, match="has no val images; expected some to evaluate on"):
        OtherData.of(replace(dataset, splits={"val": nothing}), CLASSES, "val", "")


def test_the_runs_own_training_images(run: RunFolder, dataset: DatasetFolder) -> None:
    result = evaluate(run, split="train", device=CPU)
    assert run.other_evaluations[0] == result["name"] == f"{dataset.path.name}-train"
    for row, wanted in zip(scores(result), expected(run, dataset, "train"), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)
    assert run.evaluation is None


def test_results_of_other_images_are_not_replaced(
    tmp_path: Path, run: RunFolder, test_set: DatasetFolder, images: Path
) -> None:
    first = evaluate(run, data=test_set.path, name="kept", device=CPU)
    assert evaluate(run, data=test_set.path, name="kept", device=CPU) == first
    other = converted(shutil.copytree(images / "val" / "bee", tmp_path / "tree" / "bee").parent, tmp_path / "other")
    with pytest.raises(RunError, match=r"eval-kept\.json is of other images .*give another --name, or remove it"):
        evaluate(run, data=other.path, name="kept", device=CPU)
    with pytest.raises(DataError, match=r"has no split 'train'"):
        evaluate(run, data=other.path, split="train", device=CPU)
    assert run.other_evaluation("kept") == first


def test_a_class_that_the_run_lacks(tmp_path: Path, run: RunFolder, images: Path) -> None:
    for number, name in enumerate(("bee", "yak", "zebu")):
        shutil.copytree(images / "val" / CLASSES[number], tmp_path / "tree" / name)
    other = converted(tmp_path / "tree", tmp_path / "other")
    with pytest.raises(DataError, match=r"has the class yak, which the run lacks \(2 of its 3 classes are unknown\)"):
        evaluate(run, data=other.path, device=CPU)


def test_names_caches_and_teachers_that_do_not_fit(tmp_path: Path, run: RunFolder, test_set: DatasetFolder) -> None:
    for name in ("../out", ".hidden", "a\nb", "x" * 101):
        with pytest.raises(ConfigError, match="a file is named after it"):
            evaluate(run, data=test_set.path, name=name, device=CPU)
    with pytest.raises(ConfigError, match=r"--cache .* and other data; expected no cache"):
        evaluate(run, data=test_set.path, cache=tmp_path, device=CPU)
    copy = RunFolder.open(Path(shutil.copytree(run.path, tmp_path / "run")))
    rewrite_json(copy.path / "run.json", lambda values: values | {"classes": ["bee", "ant", "cat", "dog"]})
    with pytest.raises(MismatchError, match="class 0: stored 'ant', wanted 'bee'"):
        evaluate(copy, data=test_set.path, device=CPU)


def test_the_command_and_damaged_results(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, run: RunFolder, test_set: DatasetFolder
) -> None:
    here, copy = functools.partial(inside, capsys), Path(shutil.copytree(run.path, tmp_path / "run"))
    result = here("eval", copy, "--data", test_set.path, "--name", "two", "--device", "cpu")
    assert result.code == 0, result
    assert "Accuracy on two (val), 14 images, 4 classes" in " ".join(result.out.split())
    assert "eval-two.json" in result.err
    assert verify_run(copy) == []
    data = bytearray((copy / "eval-two.json").read_bytes())
    data[data.index(b'"top1"') + 9] ^= 1
    (copy / "eval-two.json").write_bytes(data)
    assert "eval-two.json" in verify_run(copy)[0]
    refused(here("eval", copy, "--data", test_set.path, "--name", "two", "--device", "cpu"), "eval-two.json cannot be read")
