"""Loggers: each is read back by its own project's reader, also after an interruption."""

import csv
import importlib.machinery
import os
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import udkd
from tests.factories import make_dataset, small_recipe
from tests.observers import Notes, StopAfter
from tests.timeouts import wait_until
from tests.training.runs import checkpoint_hash
from udkd.data.dataset import DatasetFolder
from udkd.training import loggers
from udkd.training.loggers import LoggedRun, Loggers, epoch_values, register_logger, require_loggers
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import TrainJob, train
from udkd.utils.errors import ConfigError, RunError

ONE = "students=[{architecture='squeezenet1_1', lr=0.01, name='a (b)'}]"
ALONE = ("loss.alpha=1", "loss.beta=0", "loss.gamma=0", "teacher.source=none", "train.batch_size=16", "train.epochs=2", ONE)
EPOCHS = ((4, {"val/top1/a (b)": 25.0, "lr/a (b)": 0.1}), (8, {"val/top1/a (b)": 50.0, "lr/a (b)": 0.05}))
AGAIN = (8, {"val/top1/a (b)": 60.0, "lr/a (b)": 0.05})


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations end with the test, and the user's settings of services play no part."""
    monkeypatch.setattr(loggers, "_OPENERS", dict(loggers._OPENERS))
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    return make_dataset(tmp_path_factory.mktemp("few"), per_class=8, val_per_class=2)


def log_interrupted(folder: Path, name: str, pause_s: float = 0) -> None:
    """Two epochs; a process that was killed before the second checkpoint; then the second epoch again, and a third."""
    recipe = {"train": {"epochs": 3}, "students": []}
    first = Loggers([name], LoggedRun(folder=folder, recipe=recipe, logged=[]), pytest.fail)
    for step, values in EPOCHS:
        first.log(step, values)
    first.close()
    time.sleep(pause_s)
    second = Loggers([name], LoggedRun(folder=folder, recipe=recipe, logged=EPOCHS[:1]), pytest.fail)
    second.log(*AGAIN)
    second.log(12, {"val/top1/a (b)": 75.0, "lr/a (b)": 0.01})
    second.close()


def test_csv(tmp_path: Path) -> None:
    log_interrupted(tmp_path, "csv")
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["val/top1/a (b)"], row["lr/a (b)"]) for row in rows] == [
        ("4", "25.0", "0.1"),
        ("8", "60.0", "0.05"),
        ("12", "75.0", "0.01"),
    ]


def test_columns_of_a_student_that_starts_later(tmp_path: Path) -> None:
    logger = loggers.CsvLogger(LoggedRun(folder=tmp_path, recipe={}, logged=[(4, {"x": 1.0})]))
    logger.log(8, {"x": 2.0, "y": 3.0})
    assert (tmp_path / "metrics.csv").read_text() == "step,x,y\n4,1.0,\n8,2.0,3.0\n"


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_interrupted(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("val/top1/a (b)")]
    assert shown == [(4, 25.0), (8, 60.0), (12, 75.0)]


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_interrupted(tmp_path, "wandb", pause_s=1)  # it names folders by the second
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))

    def history() -> list[tuple[int, float]]:
        return [(int(v["_step"]), float(v["val/top1/a (b)"])) for file in files for v in _wandb_history(file)]

    wait_until(lambda: len(history()) > 2)  # its service still writes when finish() has returned
    assert history() == [(4, 25.0), (8, 50.0), (12, 75.0)]
    assert len({file.name for file in files}) == 1, "both processes are one run of W&B"


def _wandb_history(path: Path) -> Iterator[Mapping[str, str]]:
    """What was logged: W&B's protobuf records, in LevelDB's log format after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, content = path.read_bytes(), 7, b""
    while position + 7 < len(data):
        if (left := -position % 32768) < 7:  # the end of a block holds no header
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        if position + 7 + length > len(data):
            return
        content += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # complete, or the last part
            record, content = Record.FromString(content), b""
            if record.WhichOneof("record_type") == "history":
                yield {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}


def test_mlflow_in_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    log_interrupted(tmp_path, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("udkd").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["train"] == '{"epochs": 3}'
    history = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "val/top1/a _b_")]
    assert history == [(4, 25.0), (8, 50.0), (12, 75.0)]
    assert not (Path.cwd() / "mlruns").exists()


def test_refused_before_anything_is_written(tmp_path: Path, few: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    job: dict[str, Any] = {"data": few.path, "out": tmp_path / "run", "device": torch.device("cpu")}
    with pytest.raises(ConfigError, match=r"names 'wnadb'; expected csv, tensorboard, wandb, mlflow; correct it"):
        train(TrainJob(recipe=small_recipe(*ALONE, "train.loggers=['wnadb']"), **job))
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'udkd\[wandb\]'"):
        train(TrainJob(recipe=small_recipe(*ALONE, "train.loggers=['wandb']"), **job))
    with pytest.raises(ConfigError, match=r"pip install 'udkd\[tensorboard\]'"):
        train(TrainJob(recipe=small_recipe(*ALONE, "train.tensorboard=true"), **job))
    monkeypatch.setattr(loggers, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    with pytest.raises(ConfigError, match="not installed"):  # a folder named wandb/ in the working directory
        require_loggers(["wandb"])
    assert not (tmp_path / "run").exists()


class Recorder:
    """A user's logger."""

    def __init__(self, run: LoggedRun) -> None:
        self.run, self.rows, self.closed = run, list(run.logged), False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append((step, values))

    def close(self) -> None:
        self.closed = True


def test_a_users_logger_through_a_stopped_run(tmp_path: Path, few: DatasetFolder) -> None:
    opened: list[Recorder] = []

    @udkd.register_logger("recorder")
    def open_recorder(run: LoggedRun) -> Recorder:
        opened.append(Recorder(run))
        return opened[-1]

    @register_logger("broken")
    class Broken(Recorder):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            raise OSError(28, "No space left on device")

    observer, notes, out = StopAfter(3, 16), Notes(), tmp_path / "run"
    recipe = small_recipe(*ALONE, "train.loggers=['recorder', 'csv', 'broken']")
    job: dict[str, Any] = {"recipe": recipe, "data": few.path, "out": out, "device": torch.device("cpu")}
    assert not train(TrainJob(**job, observer=observer, stopped=observer.stopped)).finished
    assert train(TrainJob(**job, observer=notes, resume=True)).finished
    first, second = opened
    assert first.closed
    assert second.closed
    assert (len(first.rows), second.run.step) == (1, 2)
    expected = [(row["step"], epoch_values(row, ["a (b)"])) for row in RunFolder.open(out).metrics()]
    assert second.rows == expected
    values = expected[-1][1]
    row = RunFolder.open(out).metrics()[-1]
    assert values["val/top1/a (b)"] == row["val"]["students"][0]["top1"]
    assert values["train/hard/a (b)"] == row["train"]["hard"][0]
    assert (values["lr/a (b)"], values["images_per_s"]) == (row["lr"][0], row["images_per_s"])
    with (out / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 4]
    (dropped,) = [line for line in notes.lines if "broken" in line]
    assert "failed (OSError: [Errno 28] No space left on device) and is dropped" in dropped
    # The same recipe without loggers resumes the run, and they changed no bit of it.
    assert train(TrainJob(**(job | {"recipe": small_recipe(*ALONE)}), resume=True)).finished
    train(TrainJob(**(job | {"recipe": small_recipe(*ALONE), "out": tmp_path / "plain"})))
    assert checkpoint_hash(tmp_path / "plain") == checkpoint_hash(out)


def test_a_logger_that_cannot_start(tmp_path: Path) -> None:
    @register_logger("refuses")
    def refuse(run: LoggedRun) -> Recorder:
        raise ValueError("no API key\n(run login)")

    with pytest.raises(RunError, match=r"the logger refuses cannot start \(ValueError: no API key \(run login\)\)"):
        Loggers(["csv", "refuses"], LoggedRun(folder=tmp_path, recipe={}, logged=[]), pytest.fail)
