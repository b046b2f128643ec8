"""Students' weights in the run folder: by torchvision and safetensors alone, against the checkpoint and the metrics."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file

from tests.factories import small_recipe
from tests.training.runs import checkpoint_hash, checkpoint_tensors
from udkd.augment import apply as augment
from udkd.augment.preprocessing import IMAGENET, Preprocessing
from udkd.augment.view_table import EpochViews
from udkd.data.dataset import DatasetFolder
from udkd.export.student_files import TrainedStudent, export_student_files
from udkd.models.build import build
from udkd.models.plain_weights import plain_weights, read_metadata
from udkd.models.weight_files import read_weights
from udkd.training.make_teacher import from_weights
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import TrainJob, train
from udkd.utils.errors import DataError, RunError

CPU = torch.device("cpu")
DATASET_IMAGES = {"per_class": 8, "val_per_class": 6}
LABELS = ("loss.beta=0", "teacher.source='none'", "train.epochs=2")
AVERAGED = ("train.ema_decay=0.9", "students=[{architecture='shufflenet_v2_x0_5', name='a/b', lr=0.05}]")
LATE = (
    "loss.gamma=0.2",
    "students=[{architecture='squeezenet1_1', lr=0.02}, {architecture='squeezenet1_0', lr=0.02, start_epoch=1}]",
)


def job(data: DatasetFolder, out: Path, *settings: str, **more: object) -> TrainJob:
    return TrainJob(recipe=small_recipe(*LABELS, *settings), data=data.path, out=out, device=CPU, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder) -> Path:
    """A finished run of one student with averaged weights."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert train(job(dataset, out, *AVERAGED)).finished
    return out


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


def test_torchvision_loads_the_averaged_weights_and_reaches_the_recorded_accuracy(
    averaged: Path, dataset: DatasetFolder
) -> None:
    (file,) = (averaged / "students").iterdir()
    assert file.name == "a-b.safetensors"
    weights, facts = load_file(file), metadata(file)
    stored = {k.removeprefix("average.0."): v for k, v in checkpoint_tensors(averaged).items() if k.startswith("average.0.")}
    assert weights.keys() == stored.keys()
    assert all(torch.equal(weights[name], stored[name]) for name in stored)
    assert {value.dtype for name, value in weights.items() if "num_batches" not in name} == {torch.float32}
    model = torchvision.models.get_model(facts["architecture"], num_classes=len(json.loads(facts["classes"]))).eval()
    model.load_state_dict(weights)
    split, spec = dataset.val, small_recipe().evaluation_spec
    canvas = torch.from_numpy(np.stack([split.pixels(number) for number in split.ids.tolist()]))
    x_BCHW = augment.apply(canvas, EpochViews(spec, 0, split, CPU).table(0).gather(torch.from_numpy(split.ids)), spec)
    with torch.no_grad():
        correct = model(x_BCHW).argmax(-1).numpy() == split.labels[split.ids]
    assert float(facts["top1"]) == pytest.approx(100 * correct.mean())


def test_the_metadata(averaged: Path, dataset: DatasetFolder) -> None:
    facts = metadata(averaged / "students" / "a-b.safetensors")
    last = RunFolder.open(averaged).metrics()[-1]
    assert json.loads(facts["classes"]) == [entry.wnid for entry in dataset.classes]
    assert json.loads(facts["class_names"]) == [entry.name for entry in dataset.classes]
    assert (facts["student"], facts["format"], facts["scheme"], facts["interpolation"]) == ("a/b", "pt", "centre", "bilinear")
    assert [json.loads(facts[name]) for name in ("image_px", "resize_px", "epoch", "step")] == [32, 36, 2, last["step"]]
    assert json.loads(facts["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(facts["std"]) == [0.229, 0.224, 0.225]
    assert json.loads(facts["top1"]) == last["val"]["students"][0]["top1"]
    assert facts["udkd_version"]


def test_a_killed_run_writes_the_same_bytes_when_it_resumes_and_export_does(
    tmp_path: Path, averaged: Path, dataset: DatasetFolder
) -> None:
    file = averaged / "students" / "a-b.safetensors"
    wanted = file.read_bytes()
    killed = tmp_path / "killed"
    shutil.copytree(averaged, killed, ignore=shutil.ignore_patterns("students"))
    assert train(job(dataset, killed, *AVERAGED, resume=True)).finished
    assert (killed / "students" / "a-b.safetensors").read_bytes() == wanted
    assert export_student_files(RunFolder.open(averaged), None, tmp_path / "out") == [tmp_path / "out" / "a-b.safetensors"]
    assert (tmp_path / "out" / "a-b.safetensors").read_bytes() == wanted


def test_a_student_that_has_not_started_and_a_run_stopped_within_an_epoch(tmp_path: Path, dataset: DatasetFolder) -> None:
    out, steps = tmp_path / "run", iter(range(100))
    assert not train(job(dataset, out, *LATE, stopped=lambda: next(steps) >= 3)).finished
    run = RunFolder.open(out)
    assert run.checkpoint_step == 4, "the end of the first epoch"
    assert [file.name for file in (out / "students").iterdir()] == ["squeezenet1_1.safetensors"]
    with pytest.raises(RunError, match=r"squeezenet1_0 starts after epoch 1 and .* is at epoch 1; expected a trained student"):
        TrainedStudent.load(run, "squeezenet1_0")
    steps = iter(range(100))
    assert not train(job(dataset, out, *LATE, resume=True, stopped=lambda: next(steps) >= 1)).finished
    assert run.checkpoint_step == 6
    assert metadata(out / "students" / "squeezenet1_1.safetensors")["step"] == "4"
    files = export_student_files(run, None, None)
    assert [file.name for file in files] == ["squeezenet1_1.safetensors", "squeezenet1_0.safetensors"]
    for index, file in enumerate(files):
        assert metadata(file)["step"] == "6"
        assert "top1" not in metadata(file)
        weights, prefix = load_file(file), f"student.{index}."
        assert all(
            torch.equal(weights[k.removeprefix(prefix)], v) for k, v in run.load().tensors.items() if k.startswith(prefix)
        )


def test_a_teacher_takes_the_rows_by_the_recorded_classes(averaged: Path) -> None:
    file = averaged / "students" / "a-b.safetensors"
    weights = load_file(file)
    assert read_weights(file).architecture == "shufflenet_v2_x0_5"
    candidate = from_weights("shufflenet_v2_x0_5", file, ["dog", "ant", "cat"])
    assert torch.equal(candidate.weights["fc.weight"], weights["fc.weight"][[3, 0, 2]])
    assert "by the class names that it records" in candidate.notes[-1]


def test_a_teacher_takes_the_recorded_normalisation(tmp_path: Path) -> None:
    weights = build("squeezenet1_1", 2, image_px=32, seed=0).state_dict()
    recorded = {"classes": '["ant", "bee"]', "mean": "[0.5, 0.4, 0.3]", "std": "[0.25, 0.5, 0.2]", "interpolation": "bicubic"}
    file = tmp_path / "student.safetensors"
    file.write_bytes(plain_weights(weights, recorded | {"udkd_version": "0.1.0"}))
    candidate = from_weights("squeezenet1_1", file, ["ant", "bee"], image_px=32)
    own = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 0.2), interpolation="bicubic")
    assert candidate.preprocessing == own
    given = from_weights("squeezenet1_1", file, ["ant", "bee"], image_px=32, preprocessing=IMAGENET)
    assert given.preprocessing == IMAGENET
    file.write_bytes(plain_weights(weights, recorded))
    assert from_weights("squeezenet1_1", file, ["ant", "bee"], image_px=32).preprocessing == IMAGENET, "of unknown scale"
    for mean in ("[0.5, 0.4]", "[127, 127, 127]", "grey", "[null, 0, 0]"):
        file.write_bytes(plain_weights(weights, recorded | {"udkd_version": "0.1.0", "mean": mean}))
        with pytest.raises(DataError, match="mean, std or interpolation in its metadata"):
            from_weights("squeezenet1_1", file, ["ant", "bee"], image_px=32)


def test_the_same_weights_and_metadata_are_the_same_bytes_in_any_order() -> None:
    tensors = {"b": torch.arange(5.0), "a": torch.tensor(3)}
    entries = {f"key{number}": f"ü\n{number}" for number in range(20)}
    data = plain_weights(tensors, entries)
    assert data == plain_weights(dict(reversed(tensors.items())), dict(reversed(entries.items())))
    assert {name: value for name, value in read_metadata(data).items() if name not in ("format", "sha256")} == entries
    assert (8 + int.from_bytes(data[:8], "little")) % 8 == 0


@pytest.mark.parametrize("average", ["0.0", "0.9"])
def test_tied_weights_resume_and_are_written_under_each_name(tmp_path: Path, dataset: DatasetFolder, average: str) -> None:
    settings = (
        "train.channels_last=false",  # with it, a contiguous copy would untie them
        f"train.ema_decay={average}",
        "students=[{architecture='tests.models.own_models:tied', name='tied', lr=0.05}]",
    )
    assert train(job(dataset, tmp_path / "run", *settings)).finished
    weights = load_file(tmp_path / "run" / "students" / "tied.safetensors")
    assert torch.equal(weights["first.weight"], weights["second.weight"])
    steps = iter(range(100))
    assert not train(job(dataset, tmp_path / "again", *settings, stopped=lambda: next(steps) >= 5)).finished
    assert train(job(dataset, tmp_path / "again", *settings, resume=True)).finished
    assert checkpoint_hash(tmp_path / "again") == checkpoint_hash(tmp_path / "run")
