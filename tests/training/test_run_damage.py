"""Damaged run folders: every field and bit of every file, and runs from before there were checksums."""

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from tests.factories import make_dataset, make_teacher, rewrite_json, small_recipe
from tests.report.pages import draw_only
from udkd.data.dataset import DatasetFolder
from udkd.export.export import write_files as write_export
from udkd.export.predict import readable_class_names
from udkd.report.inputs import load_inputs
from udkd.report.report import write_report
from udkd.teacher.cache.build import build_cache
from udkd.training import checkpoints
from udkd.training import evaluate as evaluator
from udkd.training.checkpoints import Checkpoint
from udkd.training.evaluate import evaluate
from udkd.training.predictions import read_predictions, write_predictions
from udkd.training.run_folder import RunFolder
from udkd.training.run_records import CheckpointProgress
from udkd.training.trained import TrainedClassifier
from udkd.training.trainer import TrainJob, train
from udkd.training.verify_run import verify_run
from udkd.utils.errors import BusyError, RunError, UserError
from udkd.utils.files import FolderLock
from udkd.utils.json_checksum import CHECKSUM, load_checked, load_checked_line
from udkd.utils.progress import SILENT

CPU = torch.device("cpu")
RECIPE = ("train.epochs=2", "train.batch_size=16", "students=[{architecture='squeezenet1_1', lr=0.01}]")
JSON = ("run.json", "config.json", "eval.json", "checkpoints/last.json", "metrics.jsonl")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetFolder]:
    """A folder with a run that was trained from a cache and evaluated, and its data."""
    folder, threads = tmp_path_factory.mktemp("original"), torch.get_num_threads()
    dataset = make_dataset(folder, per_class=10, val_per_class=2)
    teacher, recipe = make_teacher(folder / "teacher", dataset), small_recipe(*RECIPE)
    build_cache(folder / "cache", dataset=dataset, teacher=teacher, recipe=recipe, device=CPU, observer=SILENT)
    train(job(folder, dataset, folder / "run"))
    evaluate(RunFolder.open(folder / "run"), data=None, teacher=teacher.path, device=CPU, observer=SILENT)
    torch.set_num_threads(threads)
    return folder, dataset


def job(folder: Path, dataset: DatasetFolder, out: Path, *, resume: bool = False, **more: Any) -> TrainJob:
    recipe = small_recipe(*RECIPE)
    return TrainJob(recipe=recipe, data=dataset.path, out=out, device=CPU, cache=folder / "cache", resume=resume, **more)


@pytest.fixture
def run(original: tuple[Path, DatasetFolder], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original[0] / "run", tmp_path / "run"))


@pytest.fixture
def old(run: Path) -> Path:
    """The run as version 0.1.0 would have left it: no checksums, and the progress in last.json."""
    plain = {name: load_checked((run / name).read_bytes()) for name in JSON[:4]}
    plain["run.json"]["format"] = 1
    file = run / "checkpoints" / plain["checkpoints/last.json"]["file"]
    data = save(load(file.read_bytes()))
    file.write_bytes(data)
    progress = {"step": 4, "steps_per_epoch": 2}
    plain["checkpoints/last.json"] |= {"sha256": hashlib.sha256(data).hexdigest(), "progress": progress}
    for name, values in plain.items():
        (run / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    rows = [load_checked_line(line) for line in (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


class Reached(Exception):
    """Everything before the scoring was accepted."""


@pytest.fixture
def without_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, and without the scoring of an evaluation."""

    def reached(*arguments: object, **options: object) -> None:
        raise Reached

    monkeypatch.setattr(evaluator, "_scored", reached)
    draw_only(monkeypatch)


def read_everything(run: Path, *, pages: bool = True) -> None:
    """All readers of a run, up to where they begin to compute."""
    write_report(load_inputs(run)) if pages else load_inputs(run)
    folder = RunFolder.open(run)
    readable_class_names(folder, TrainedClassifier.load(folder, None, ensemble=False).classes)
    with pytest.raises(Reached):
        evaluate(folder, data=None, teacher=None, device=CPU, observer=SILENT)


def key_paths(value: Any) -> Iterator[tuple[Any, ...]]:
    """The path of every field of nested values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield (name,)
        yield from ((name, *rest) for rest in key_paths(inner))


GONE = object()
OTHERS: tuple[Any, ...] = (
    GONE,
    None,
    "x",
    "",
    True,
    -1,
    10**30,
    1e300,
    float("nan"),
    [],
    {},
    [[1]],
    {"a": {"b": []}},
    "\0",
    "/",
)


def changed(values: Any, keys: tuple[Any, ...], other: Any) -> Any:
    copy = json.loads(json.dumps(values))
    inner = copy
    for name in keys[:-1]:
        inner = inner[name]
    if other is GONE:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = other
    return copy


@pytest.mark.parametrize("name", JSON)
def test_fields_of_every_file(old: Path, without_scoring: None, name: str) -> None:
    """Deleted, of another type, too large, not a number: a one-line error or no effect, never another error."""
    file = old / name
    before = file.read_text()
    lines = [json.loads(line) for line in before.splitlines()] if name == "metrics.jsonl" else [json.loads(before)]
    rng = random.Random(name)
    changes = [(keys, rng.choice(OTHERS)) for keys in key_paths(lines[-1])]
    refused: list[str] = []
    passed = 0
    for keys, other in rng.sample(changes, min(16, len(changes))):
        text = [json.dumps(line) for line in [*lines[:-1], changed(lines[-1], keys, other)]]
        file.write_text("\n".join(text) + "\n")
        try:
            read_everything(old, pages=not passed)
        except (UserError, OSError) as error:
            refused.append(str(error))
        else:
            passed += 1
        verify_run(old)
    assert refused
    assert not any("\n" in line for line in refused)
    file.write_text(before)
    read_everything(old, pages=False)


def test_flipped_bits_are_found_and_named(run: Path) -> None:
    assert verify_run(run) == []
    rng = random.Random(7)
    for name in (
        *JSON,
        "predictions.safetensors",
        "checkpoints/step-000000004.safetensors",
        "students/squeezenet1_1.safetensors",
    ):
        before = (run / name).read_bytes()
        for index in [rng.randrange(len(before)) for _ in range(12 if name in JSON else 3)]:
            data = bytearray(before)
            data[index] ^= 1 << rng.randrange(8)
            (run / name).write_bytes(data)
            problems = verify_run(run)
            assert any(str(run / name) in line for line in problems), (name, index)
            assert not any("\n" in line for line in problems)
        (run / name).write_bytes(before)
    assert verify_run(run) == []
    (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0])
    assert "has 1 epochs in metrics.jsonl; expected 2" in verify_run(run)[0]


def test_an_old_run_resumes(original: tuple[Path, DatasetFolder], old: Path, without_scoring: None) -> None:
    read_everything(old, pages=False)
    assert verify_run(old) == []
    assert train(job(*original, old, resume=True)).finished
    assert CHECKSUM in json.loads((old / "metrics.jsonl").read_text().splitlines()[0])
    assert RunFolder.open(old).load().progress.step == 4


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("step", 0, "progress.step is 0 and the file is step-000000004"),
        ("steps_per_epoch", 3, "has 3 steps per epoch; expected 2 of this data"),
        ("figures", {"progress": [0.5], "confidence": 0.5}, "has statistics"),
    ],
)
def test_a_changed_counter_of_an_old_run(
    original: tuple[Path, DatasetFolder], old: Path, field: str, value: object, why: str
) -> None:
    last = json.loads((old / "checkpoints" / "last.json").read_text())
    last["progress"][field] = value
    (old / "checkpoints" / "last.json").write_text(json.dumps(last))
    with pytest.raises(RunError, match=re.escape(why)):
        train(job(*original, old, resume=True))


def test_incomplete_or_changed_checkpoints_are_refused(original: tuple[Path, DatasetFolder], run: Path) -> None:
    folder = RunFolder.open(run)
    checkpoint = folder.load()
    cases: list[tuple[str, torch.Tensor | None, str]] = [
        ("tally.count", None, "has no count of the images"),
        ("tally.count", torch.tensor(8), "has 8 of the images seen in its epoch; expected 0"),
        ("tally.sums", None, "lacks tally.sums"),
        ("momentum.0.features.0.weight", None, "lacks momentum.0.features.0.weight"),
        ("student.0.features.0.bias", torch.full((64,), torch.nan), "is not finite"),
        ("student.0.features.0.bias", torch.zeros(64, dtype=torch.float64), "expected (torch.float32, (64,))"),
        ("more", torch.zeros(1), "also holds more"),
    ]
    for name, tensor, why in cases:
        tensors = {key: value for key, value in checkpoint.tensors.items() if key != name}
        folder.save(replace(checkpoint, tensors=tensors if tensor is None else tensors | {name: tensor}))
        with pytest.raises(RunError, match=re.escape(why)):
            train(job(*original, run, resume=True))


def test_lost_and_leftover_checkpoints(original: tuple[Path, DatasetFolder], run: Path) -> None:
    """The old checkpoint of a process killed before removing it is deleted; a lost one is not trained again."""
    folder = run / "checkpoints"
    (folder / "step-000000002.safetensors").write_bytes(b"old")
    (folder / "step-000000006.safetensors.tmp").write_bytes(b"half")
    assert train(job(*original, run, resume=True)).finished
    assert sorted(path.name for path in folder.iterdir()) == ["last.json", "step-000000004.safetensors"]
    (folder / "last.json").unlink()
    with pytest.raises(RunError, match="is missing and 2 epochs are done"):
        train(job(*original, run, resume=True))
    assert "has 2 epochs and no checkpoint" in verify_run(run)[0]


def test_a_reader_beside_a_trainer(run: Path) -> None:
    """A checkpoint that is replaced between reading its name and reading it is read under its new name."""
    folder = RunFolder.open(run)
    checkpoint = folder.load()
    small = {"tally.count": checkpoint.tensors["tally.count"]}
    steps = iter(range(5, 200))
    real = checkpoints.read_regular

    def replaced_meanwhile(path: Path, most: int | None = None) -> bytes:
        if path.suffix == ".safetensors" and (step := next(steps)) < 9:
            folder.save(Checkpoint(tensors=small, progress=CheckpointProgress(step=step, steps_per_epoch=2)))
        return real(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "read_regular", replaced_meanwhile)
        assert folder.load().progress.step == 8


def test_a_second_writer_of_a_folder_is_refused(run: Path, without_scoring: None) -> None:
    folder = RunFolder.open(run)
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    busy = f"is being written by process {os.getpid()}"
    inputs = load_inputs(run)
    with folder.evaluating():
        with pytest.raises(BusyError, match=busy):
            evaluate(folder, data=None, teacher=None, device=CPU, observer=SILENT)
        assert load_inputs(run).predictions is not None, "nothing was written yet"
        rewrite_json(run / "eval.json", lambda values: values | {"predictions_sha256": "00"})
        with pytest.raises(BusyError, match=busy):
            load_inputs(run)
    assert "expected them of one evaluation" in load_inputs(run).why_no_predictions, "as after a kill between the two files"
    (run / "eval.json").write_bytes(before[run / "eval.json"])
    with FolderLock(run), pytest.raises(Reached):  # a trainer's
        evaluate(folder, data=None, teacher=None, device=CPU, observer=SILENT)
    (run / "report").mkdir()
    with FolderLock(run / "report"), pytest.raises(BusyError, match=busy):
        write_report(inputs)
    assert list((run / "report").iterdir()) == []
    assert write_report(inputs).is_file()
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_second_export_to_a_folder_is_refused(tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(BusyError, match="is being written"):
        write_export(tmp_path, {"model.pt2": b"x"}, {})
    assert list(tmp_path.iterdir()) == []
    write_export(tmp_path, {"model.pt2": b"x"}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt2", "preprocessing.json"]


def test_impossible_predictions_are_refused(run: Path) -> None:
    path = run / "predictions.safetensors"
    checkpoint, _ = read_predictions(path)
    average = checkpoint.average
    far = average.top.copy()
    far[0, 0] = 4
    sure = average.top_log_p.copy()
    sure[0, 0] = 1.0
    for invalid, name in (
        (replace(checkpoint, labels=checkpoint.labels + 10**9), "val.labels"),
        (replace(checkpoint, ids=checkpoint.ids[::-1].copy()), "val.ids"),
        (replace(checkpoint, average=replace(average, top=far)), "val.average.top"),
        (replace(checkpoint, average=replace(average, top_log_p=sure)), "val.average.top_log_p"),
    ):
        write_predictions(path, invalid)
        with pytest.raises(RunError, match=f"{name} of .* is impossible"):
            load_inputs(run)
    rewrite_json(run / "eval.json", lambda values: values | {"num_classes": 10**9})
    with pytest.raises(RunError, match="has classes 1000000000; expected 4"):
        load_inputs(run)
