"""Run folders: nothing half-written is taken for complete."""

import os
import re
from pathlib import Path

import pytest
import torch

from tests.factories import rewrite_json
from udkd.training.checkpoints import Checkpoint
from udkd.training.run_folder import RunFolder, flatten
from udkd.training.run_records import CheckpointProgress
from udkd.utils.errors import BusyError, MismatchError, RunError
from udkd.utils.files import FolderLock, atomic_write

PROVENANCE = {"dataset": "/data", "dataset_digest": "d", "classes": ["a", "b"]}


def new(path: Path) -> RunFolder:
    return RunFolder.create(path, {"train": {"epochs": 3}, "students": [{"lr": 0.1}, {"lr": 0.2}]}, PROVENANCE)


def checkpoint(step: int) -> Checkpoint:
    tensors = {"w": torch.full((3,), float(step)), "n": torch.tensor(step)}
    return Checkpoint(tensors=tensors, progress=CheckpointProgress(step=step, steps_per_epoch=4))


def row(epoch: int, students: int = 2) -> dict[str, object]:
    score = {"top1": 50.0, "top5": 100.0, "loss": 1.5}
    return {
        "epoch": epoch,
        "step": 4 * epoch,
        "lr": [0.1] * students,
        "seconds": 2.5,
        "images_per_s": 30.0,
        "view": 0,
        "size_px": 32,
        "train": {name: [1.0] * students for name in ("loss", "hard", "teacher", "peer", "top1")},
        "val": {"students": [score] * students, "ensemble": score},
    }


SCORED = {"name": "a", "parameters": 5, "top1": 50.0, "top5": 100.0, "loss": 1.5}
EVALUATION = {
    "split": "val",
    "num_samples": 10,
    "num_classes": 2,
    "step": 8,
    "students": [SCORED, SCORED | {"name": "b"}],
    "ensemble": {"top1": 50.0, "top5": 100.0, "loss": 1.5},
    "teacher": None,
    "predictions_sha256": "00",
}


def test_a_run_from_creation_to_evaluation(tmp_path: Path) -> None:
    run = new(tmp_path / "deep" / "run")
    assert not run.has_checkpoint
    assert run.evaluation is None
    assert run.metrics() == []
    with pytest.raises(RunError, match="no checkpoint yet"):
        run.load()
    for step in (4, 8):
        run.append_metrics(row(step // 4))
        run.save(checkpoint(step))
    again = RunFolder.open(run.path)
    assert again.load().progress == CheckpointProgress(step=8, steps_per_epoch=4)
    assert again.checkpoint_step == 8
    assert torch.equal(again.load().tensors["w"], torch.full((3,), 8.0))
    assert again.load().tensors["n"].shape == ()
    assert [path.name for path in sorted((run.path / "checkpoints").iterdir())] == ["last.json", "step-000000008.safetensors"]
    assert [row["step"] for row in again.metrics()] == [4, 8]
    again.drop_metrics_after(4)
    assert [row["step"] for row in again.metrics()] == [4]
    again.write_evaluation(EVALUATION)
    assert RunFolder.open(run.path).evaluation == EVALUATION
    assert RunFolder.open(run.path).problems() == []
    assert again.classes == ["a", "b"]
    assert again.config["train"] == {"epochs": 3}
    assert again.provenance["dataset"] == "/data"


@pytest.mark.parametrize("marker", ["dataset.json", "teacher.json", "views.json"])
def test_a_run_is_not_written_into_a_folder_of_another_kind(tmp_path: Path, marker: str) -> None:
    (tmp_path / marker).touch()
    with pytest.raises(RunError, match=rf"holds a .* \({marker}\); expected a new folder for the run; choose another"):
        new(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [marker]


@pytest.mark.parametrize("kept", ["checkpoints/step-4.safetensors", "students/a.safetensors", "eval.json", "eval-other.json"])
def test_a_run_that_kept_anything_is_not_replaced(tmp_path: Path, kept: str) -> None:
    run = new(tmp_path)
    (tmp_path / kept).parent.mkdir(exist_ok=True)
    (tmp_path / kept).write_bytes(b"")
    assert run.is_begun
    with pytest.raises(RunError, match="already holds a run"):
        new(tmp_path)


def test_a_run_is_created_once(tmp_path: Path) -> None:
    run = new(tmp_path / "run")
    assert not run.is_begun
    new(tmp_path / "run").append_metrics(row(1))
    assert run.is_begun
    with pytest.raises(RunError, match="already holds a run; expected a new folder; continue it with --resume"):
        new(tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(RunError, match="is not a run"):
        RunFolder.open(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"holds a run without config\.json; expected all of its files; restore it"):
        new(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before != b""


def test_a_run_that_was_being_made_is_made_again(tmp_path: Path) -> None:
    run = new(tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()  # as after a crash
    assert not run.is_begun
    assert new(tmp_path / "run").metrics() == []


def test_an_error_while_saving_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new(tmp_path / "run")
    run.save(checkpoint(1))
    for name in ("step-000000002.safetensors", "last.json"):

        def replace(source: str, target: str, *, name: str = name) -> None:
            if Path(target).name == name:
                raise OSError(28, "No space left on device")
            Path(source).rename(target)

        with monkeypatch.context() as patch:
            patch.setattr("udkd.utils.files.os.replace", replace)
            with pytest.raises(OSError, match="No space") as caught:
                run.save(checkpoint(2))
        assert str(caught.value.filename).endswith(name)
        assert RunFolder.open(run.path).load().progress.step == 1
        assert not list(run.path.rglob("*.tmp"))
    run.save(checkpoint(3))
    assert RunFolder.open(run.path).load().progress.step == 3
    assert len(list(run.path.glob("checkpoints/*.safetensors"))) == 1, "what an error left behind is gone"


@pytest.mark.parametrize("file", ["config.json", "run.json", "checkpoints/last.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '"text"', "\x00\x01"])
def test_damaged_json_is_one_line(tmp_path: Path, file: str, content: str) -> None:
    run = new(tmp_path / "run")
    run.save(checkpoint(1))
    (run.path / file).write_text(content)

    def read_all() -> None:
        opened = RunFolder.open(run.path)
        _ = opened.config
        opened.load()

    with pytest.raises(RunError) as caught:
        read_all()
    assert file.rpartition("/")[2] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_rows_are_one_line(tmp_path: Path) -> None:
    run = new(tmp_path / "run")
    run.append_metrics(row(1))
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": ')
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be read"):
        run.metrics()


def test_checkpoints_that_are_not_what_was_written(tmp_path: Path) -> None:
    run = new(tmp_path / "run")
    run.save(checkpoint(5))
    (file,) = run.path.glob("checkpoints/*.safetensors")
    data = file.read_bytes()
    for damaged in (data[:-1], b"", data + b"\0", data[:-1] + bytes([data[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(RunError, match="is damaged; expected the sha256"):
            run.load()
    file.unlink()
    with pytest.raises(RunError, match="is missing"):
        run.load()
    (tmp_path / "elsewhere.safetensors").write_bytes(data)
    rewrite_json(run.path / "checkpoints" / "last.json", lambda values: values | {"file": "../../elsewhere.safetensors"})
    with pytest.raises(RunError, match=r"last.json cannot be read \(file is '../../elsewhere.safetensors'"):
        run.load()  # a copied run must not refer to files outside itself


def test_another_format_is_refused(tmp_path: Path) -> None:
    run = new(tmp_path / "run")
    rewrite_json(run.path / "run.json", lambda values: values | {"format": 99, "more": []})
    with pytest.raises(RunError, match="run format 99; expected 2"):
        RunFolder.open(run.path)


def test_every_difference_of_a_recipe_is_named(tmp_path: Path) -> None:
    run = new(tmp_path / "run")
    run.require_config({"train": {"epochs": 3}, "students": [{"lr": 0.1}, {"lr": 0.2}], "data": {"workers": 5}})
    with pytest.raises(MismatchError) as caught:
        run.require_config({"train": {"epochs": 4}, "students": [{"lr": 0.1}]})
    assert caught.value.fields == (("students.1.lr", 0.2, None), ("train.epochs", 3, 4))


def test_flat() -> None:
    assert flatten({"a": {"b": [1, {"c": 2}], "d": []}, "e": {}}) == {"a.b.0": 1, "a.b.1.c": 2, "a.d": [], "e": {}}


def test_a_lock_names_its_holder_until_it_is_released(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as lock:
        holder = lock.path.read_text()
        assert holder.startswith(f"{os.getpid()} on ")
        with pytest.raises(BusyError, match=re.escape(f"is being written by process {holder};")), FolderLock(tmp_path):
            pass
        assert lock.path.read_text() == holder
    assert not lock.path.exists()
    with FolderLock(tmp_path):
        pass


def test_a_failing_write_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught, atomic_write(tmp_path / "x"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
