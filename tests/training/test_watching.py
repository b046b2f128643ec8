"""Kept checkpoints, --extend, --profile and train.log: none of them changes a bit of a run."""

import gzip
import hashlib
import itertools
import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save

import udkd
from tests.factories import make_dataset, rewrite_json, small_recipe
from tests.observers import Notes, StopAfter
from tests.training.runs import checkpoint_hash, metrics_without_time
from udkd.cli.eval import eval_command
from udkd.data.dataset import DatasetFolder
from udkd.training import checkpoints, trainer
from udkd.training.build_step import compiles
from udkd.training.checkpoints import Checkpoint
from udkd.training.evaluate import evaluate
from udkd.training.run_folder import RunFolder
from udkd.training.run_log import RunLog
from udkd.training.run_records import CheckpointProgress
from udkd.training.trained import TrainedClassifier
from udkd.training.trainer import TrainJob, train
from udkd.training.verify_run import verify_run
from udkd.utils.errors import ConfigError, MismatchError, RunError
from udkd.utils.progress import Silent, duration

ALONE = (
    *("loss.alpha=1", "loss.beta=0", "loss.gamma=0", "teacher.source=none", "train.batch_size=8", "train.epochs=2"),
    "students=[{architecture='squeezenet1_1', lr=0.01}]",
)
STEPS = 4  # of an epoch


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    return make_dataset(tmp_path_factory.mktemp("few"), per_class=8, val_per_class=2)


def job(few: DatasetFolder, out: Path, *settings: str, **more: Any) -> TrainJob:
    return TrainJob(recipe=small_recipe(*ALONE, *settings), data=few.path, out=out, device=torch.device("cpu"), **more)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, few: DatasetFolder) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    train(job(few, out))
    return out


def files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def step_files(*steps: int) -> list[str]:
    return [f"step-{step:09d}.safetensors" for step in steps]


class KilledAfter(Silent):
    """An exception after so many steps, as if the process had been killed: nothing is saved."""

    def __init__(self, images: int) -> None:
        self.images = images

    def advance(self, count: int, **fields: float | str) -> None:
        self.images -= count
        if self.images < 0:
            raise KeyboardInterrupt


def test_a_checkpoint_by_time_resumes_to_the_same_bits(
    tmp_path: Path, few: DatasetFolder, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 40)  # seconds; saving looks at it too, as does the end of an epoch
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter))
    settings = ("train.checkpoint_minutes=1", "train.keep_checkpoints=3")
    with pytest.raises(KeyboardInterrupt):
        train(job(few, tmp_path / "run", *settings, observer=KilledAfter(3 * 8)))
    assert files(tmp_path / "run") == ["last.json", *step_files(2)]
    assert train(job(few, tmp_path / "run", *settings, resume=True)).finished
    assert metrics_without_time(tmp_path / "run") == metrics_without_time(plain)
    last = json.loads((tmp_path / "run" / "checkpoints" / "last.json").read_text())
    assert last["sha256"] == checkpoint_hash(plain)
    assert [record["file"] for record in last["older"]] == step_files(7, 5)
    assert RunFolder.open(tmp_path / "run").load("7").progress.step == 7
    assert verify_run(tmp_path / "run") == []


def scored(monkeypatch: pytest.MonkeyPatch, top1: Sequence[float]) -> None:
    """Let the epochs' validation scores be these, apart from the last digits of a real one."""
    real, wanted = trainer.Trainer._evaluate, iter(top1)

    def evaluated(self: trainer.Trainer, active: Sequence[int]) -> dict[str, Any]:
        row = real(self, active)
        row["students"][0]["top1"] = next(wanted)
        return row

    monkeypatch.setattr(trainer.Trainer, "_evaluate", evaluated)


def test_the_best_checkpoint_is_kept(tmp_path: Path, few: DatasetFolder, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, [20.0, 40.0, 30.0, 40.0])
    out = tmp_path / "run"
    train(job(few, out, "train.epochs=4", "train.keep_best=true"))
    assert files(out) == ["best.json", "last.json", *step_files(8, 16)]
    run = RunFolder.open(out)
    assert run.load("best").progress.step == 8, "the earlier of two equal ones"
    assert evaluate(run, checkpoint="best")["step"] == 8
    assert TrainedClassifier.load(run, None, ensemble=False, checkpoint="best").step == 8
    eval_command(out, checkpoint="16", device="cpu")
    assert run.evaluation is not None
    assert run.evaluation["step"] == 16
    with pytest.raises(RunError, match="holds no checkpoint 7; expected last, best; name one of those"):
        run.load("7")
    with pytest.raises(RunError, match=r"no checkpoint best; expected last; train with train\.keep_best = true"):
        RunFolder.open(plain).load("best")
    assert verify_run(out) == []
    data = bytearray((out / "checkpoints" / step_files(8)[0]).read_bytes())
    data[-1] ^= 1
    (out / "checkpoints" / step_files(8)[0]).write_bytes(data)
    assert "step-000000008.safetensors is damaged" in verify_run(out)[0]


def test_epochs_of_some_students_are_not_the_best(tmp_path: Path, few: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, [90.0, 10.0])
    later = "students=[{architecture='squeezenet1_1', lr=0.01}, {architecture='squeezenet1_1', lr=0.01, start_epoch=1}]"
    train(job(few, tmp_path / "run", later, "train.keep_best=true"))
    assert RunFolder.open(tmp_path / "run").load("best").progress.step == 8


def test_a_kill_before_best_json(tmp_path: Path, few: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, [20.0, 40.0, 30.0])
    out, settings = tmp_path / "run", ("train.epochs=3", "train.keep_best=true")

    def killed(path: Path, data: bytes) -> None:
        if path.name == "best.json" and b'"top1": 40.0' in data:
            raise KeyboardInterrupt
        real(path, data)

    real = checkpoints.write_bytes
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            train(job(few, out, *settings))
    assert RunFolder.open(out).load("best").progress.step == 4
    train(job(few, out, *settings, resume=True))
    assert RunFolder.open(out).load("best").progress.step == 8
    assert files(out) == ["best.json", "last.json", *step_files(8, 12)]


def test_an_error_while_saving_leaves_all_that_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the files cannot be written, the others still name complete checkpoints."""
    run = RunFolder.create(tmp_path, {"students": []}, {"dataset": "/d", "dataset_digest": "d"})

    def at(step: int) -> Checkpoint:
        return Checkpoint(tensors={"w": torch.ones(2) * step}, progress=CheckpointProgress(step=step, steps_per_epoch=1))

    for step in (1, 2):
        run.save(at(step), 2)
        run.keep_best(50.0 - step)
    real = checkpoints.write_bytes
    for name in ("step-000000003.safetensors", "last.json"):

        def refuse(path: Path, data: bytes, name: str = name) -> None:
            if path.name == name:
                raise OSError(28, "No space left on device", str(path))
            real(path, data)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "write_bytes", refuse)
            with pytest.raises(OSError, match="No space"):
                run.save(at(3), 2)
        assert [run.load(which).progress.step for which in ("last", "best", "1")] == [2, 1, 1]
    run.save(at(4), 2)
    assert files(tmp_path) == ["best.json", "last.json", *step_files(1, 2, 4)]


def test_a_checkpoint_of_format_1_is_not_kept_beside_newer_ones(tmp_path: Path) -> None:
    """Its file does not hold its progress, so that nothing could read it once last.json names another."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    progress = {"step": 1, "steps_per_epoch": 1}
    data = save({"w": torch.ones(2)})
    (folder / "step-000000001.safetensors").write_bytes(data)
    last = {"file": "step-000000001.safetensors", "sha256": hashlib.sha256(data).hexdigest(), "progress": progress}
    (folder / "last.json").write_text(json.dumps(last))
    kept = checkpoints.Checkpoints(folder, checked=False)
    assert kept.load().progress.step == 1
    kept.keep_best(50.0)
    kept.save(Checkpoint(tensors={"w": torch.ones(2)}, progress=CheckpointProgress(step=2, steps_per_epoch=1)), 2)
    assert kept.names == ["last"]
    assert files(tmp_path) == ["last.json", *step_files(2)]


def test_a_run_is_extended(tmp_path: Path, few: DatasetFolder, plain: Path) -> None:
    """To the bits of the same checkpoint under a recipe of three epochs, with that recipe's learning rates."""
    extended, edited = (Path(shutil.copytree(plain, tmp_path / name)) for name in ("extended", "edited"))
    rewrite_json(edited / "config.json", lambda values: values | {"train": values["train"] | {"epochs": 3}})
    train(job(few, edited, "train.epochs=3", resume=True))
    with pytest.raises(MismatchError, match=r"use --extend EPOCHS to train on.*\(train\.epochs: stored 2, wanted 3\)"):
        train(job(few, extended, "train.epochs=3", resume=True))
    notes = Notes()
    stop = StopAfter(2)
    assert not train(job(few, extended, resume=True, extend=3, observer=stop, stopped=stop.stopped)).finished
    assert train(job(few, extended, resume=True, extend=3, observer=notes)).finished, "the same command resumes"
    assert checkpoint_hash(extended) == checkpoint_hash(edited)
    assert metrics_without_time(extended) == metrics_without_time(edited)
    rates = [row["lr"][0] for row in RunFolder.open(extended).metrics()]
    cosine = [0.005 * (1 + math.cos(math.pi * step / total)) for step, total in ((3, 8), (7, 8), (11, 12))]
    assert rates == pytest.approx(cosine)
    run = RunFolder.open(extended)
    assert run.provenance["extended"] == [{"epochs_before": 2, "epochs": 3, "step": 8}]
    assert run.config == RunFolder.open(plain).config | {"train": run.config["train"]}
    assert run.config["train"] == RunFolder.open(plain).config["train"] | {"epochs": 3}
    assert verify_run(extended) == []


def test_extensions_that_are_refused(tmp_path: Path, few: DatasetFolder, plain: Path) -> None:
    with pytest.raises(ConfigError, match="--extend 3 and no --resume"):
        train(job(few, tmp_path / "new", extend=3))
    assert not (tmp_path / "new").exists()
    before = {path: path.read_bytes() for path in plain.rglob("*.json")}
    with pytest.raises(ConfigError, match=r"--extend is 1 and the run in .* has 2 epochs; expected more"):
        train(job(few, plain, resume=True, extend=1))
    with pytest.raises(MismatchError, match=r"train\.seed: stored 0, wanted 7"):
        train(job(few, plain, "train.seed=7", resume=True, extend=3))
    assert {path: path.read_bytes() for path in plain.rglob("*.json")} == before


def test_a_profile_of_some_steps(tmp_path: Path, few: DatasetFolder, plain: Path) -> None:
    notes, out = Notes(), tmp_path / "run"
    (out / "profile").mkdir(parents=True)
    (out / "profile" / "steps-6-7.json.gz").write_bytes(b"of an earlier run")
    train(job(few, out, profile=2, observer=notes))
    assert checkpoint_hash(out) == checkpoint_hash(plain)
    assert metrics_without_time(out) == metrics_without_time(plain)
    (file,) = (out / "profile").iterdir()
    assert file.name == "steps-6-7.json.gz"
    assert any(str(file) in line for line in notes.lines)
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    optimizer_steps = [event for event in events if event.get("name", "").startswith("Optimizer.step#")]
    assert len([event for event in optimizer_steps if event["ph"] == "X"]) == 2
    with pytest.raises(ConfigError, match="--profile 4 and the run has 8 steps, of which the first 5 are not recorded"):
        train(job(few, tmp_path / "new", profile=4))
    assert not (tmp_path / "new").exists()
    stop = StopAfter(6)
    train(job(few, tmp_path / "stopped", profile=3, observer=stop, stopped=stop.stopped))
    assert "no profile: training ended before 5 + 3 steps" in (tmp_path / "stopped" / "train.log").read_text()
    assert not (tmp_path / "stopped" / "profile").exists()


def test_the_log_of_a_stopped_run(tmp_path: Path, few: DatasetFolder) -> None:
    out, stop = tmp_path / "run", StopAfter(5)
    train(job(few, out, observer=stop, stopped=stop.stopped))
    first = (out / "train.log").read_text()
    notes = Notes()
    train(job(few, out, resume=True, observer=notes))
    log = (out / "train.log").read_text()
    assert log.startswith(first)
    stamps, lines = zip(*(line.split("  ", 1) for line in log.splitlines()), strict=True)
    assert lines[0].startswith("train images: resident backend"), "a note from before the folder existed"
    assert [line for line in lines if line.startswith(("epoch", "stopped", "resumed", "finished"))] == [
        next(line for line in lines if line.startswith("epoch 1: validation top-1 squeezenet1_1 ")),
        "stopped after step 5",
        "resumed at step 5 (epoch 2)",
        next(line for line in notes.lines if line.startswith("epoch 2: validation")),
        "finished after step 8",
    ]
    assert list(stamps) == sorted(stamps)
    assert time.strptime(stamps[-1][:19], "%Y-%m-%dT%H:%M:%S")


def test_an_error_is_in_the_log_and_an_unusable_log_is_a_note(
    tmp_path: Path, few: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(trainer.Trainer, "_finish_epoch", _fail)
    with pytest.raises(RunError, match="not finite"):
        train(job(few, out))
    assert (out / "train.log").read_text().splitlines()[-1].endswith("  error: the loss is not finite")
    (tmp_path / "train.log").symlink_to(out / "train.log")
    notes = Notes()
    log = RunLog(notes)
    log.open(tmp_path)
    log.note("on")
    log.close()
    assert notes.lines == ["train.log cannot be written (Too many levels of symbolic links); training continues", "on"]
    assert "on" not in (out / "train.log").read_text().split()


def _fail(*arguments: object) -> None:
    raise RunError("the loss is not finite")


class Fields(Notes):
    """Records what is shown next to the bar of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[list[dict[str, float | str]]] = []

    def start(self, task: str, total: int, unit: str) -> None:
        self.shown.append([])

    def advance(self, count: int, **fields: float | str) -> None:
        if fields:
            self.shown[-1].append(fields)


def test_the_time_left_and_the_compilation_are_shown(
    tmp_path: Path, few: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = Fields()
    monkeypatch.setattr(trainer, "compiles", lambda recipe: True)  # compiling takes 20 s
    settings = ("train.log_every_steps=1", "train.progressive_px=32", "views.size_px=64", "evaluation.resize_px=64")
    train(job(few, tmp_path / "run", *settings, observer=fields))
    first, _, second, _ = fields.shown
    assert all("run" not in shown for shown in first), "no epoch has been measured yet"
    assert [str(shown["run"]).endswith(" left") for shown in second[:-1]] == [True] * (STEPS - 1)
    assert "GPU" not in second[0]
    notes = [line.split()[0] for line in fields.lines if not line.startswith(("train", "val"))]
    assert notes == ["compiling", "compiled", "epoch"] * 2, "each size is compiled"
    epochs = [line for line in fields.lines if line.startswith("epoch")]
    assert epochs[0].endswith(" left)")
    assert "left" not in epochs[1]


def test_progress_of_the_function(tmp_path: Path, few: DatasetFolder, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small_recipe(*ALONE, "train.epochs=1")
    udkd.train(recipe, data=few.path, out=tmp_path / "silent", device="cpu")
    assert capsys.readouterr().err == ""
    udkd.train(recipe, data=few.path, out=tmp_path / "shown", device="cpu", progress=True)
    assert "epoch 1: validation top-1 squeezenet1_1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), False),
        (("train.compile=loss",), True),
        (("train.compile=all", "train.loss_impl=eager"), True),
        (("train.loss_impl=compiled",), True),
        (("teacher.compile=true",), False),  # from the cache
        (("teacher.compile=true", "teacher.source=live"), True),
    ],
)
def test_which_recipes_compile(settings: tuple[str, ...], expected: bool) -> None:
    assert compiles(small_recipe(*settings)) == expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89.5, "90 s"), (90, "2 min"), (3601, "61 min"), (5400, "1.5 h"), (86_400, "24.0 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
