"""The trainer: cached equals live, stopped equals uninterrupted, and no user error ends in a traceback."""

import errno
import hashlib
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.cli import commands
from tests.factories import BATCH_NORM, SMALL, make_dataset, make_teacher, small_recipe
from tests.observers import Notes, StopAfter
from tests.timeouts import wait_until
from tests.training.runs import checkpoint_hash, metrics_without_time
from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder
from udkd.teacher.cache.build import build_cache
from udkd.teacher.folder import TeacherFolder
from udkd.training import checkpoints as checkpoints_module
from udkd.training import schedule as schedule_module
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import Trainer, TrainJob, train
from udkd.utils.errors import CacheError, ConfigError, MismatchError, RunError
from udkd.utils.progress import Silent

CPU = torch.device("cpu")
LONG = pytest.mark.long
TWIN = "{architecture='squeezenet1_1', lr=0.01}"
DATASET_IMAGES = {"per_class": 12, "val_per_class": 3}
STEPS = 6  # in an epoch: 48 images in batches of 8


class Trace(Silent):
    """Records the metrics after every step: all losses, bit by bit."""

    def __init__(self) -> None:
        self.trainer: Trainer | None = None
        self.sums: list[torch.Tensor] = []

    def advance(self, count: int, **fields: float | str) -> None:
        if self.trainer is not None:
            self.sums.append(self.trainer.metrics.sums.clone())


def traced(job: TrainJob) -> tuple[Trace, Trainer]:
    trace = Trace()
    trainer = Trainer(TrainJob(**(vars(job) | {"observer": trace})))
    trace.trainer = trainer
    assert trainer.run().finished
    trainer.close()
    return trace, trainer


STRONG = ("views.policy='rand_augment'", "views.erase_prob=0.5", "views.erase_fill='noise'", "views.cutmix=1.0")
MIXED = ("views.jitter='uint8'", "views.mixup=0.8", "loss.sample_weight='correctness'")
PLAIN_JITTER = tuple(f"views.{name}=0.0" for name in ("brightness", "contrast", "saturation"))


@pytest.mark.parametrize(
    ("views", "epochs", "more"),
    [
        ('"eval"', 2, ()),
        pytest.param("2", 3, (), marks=LONG),
        ("5", 5, (*PLAIN_JITTER, *STRONG, "train.batch_size=4")),  # 60 steps, new views in each
        pytest.param(
            "2", 3, (*STRONG, "views.jitter='uint8'", "views.mixup=0.8", "loss.sample_weight='correctness'"), marks=LONG
        ),
    ],
)
def test_cached_equals_live_bit_for_bit(
    tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, views: str, epochs: int, more: tuple[str, ...]
) -> None:
    settings = [f"teacher.views={views}", f"train.epochs={epochs}", *more]
    cached, live = small_recipe(*settings), small_recipe(*settings, 'teacher.source="live"')
    folder = build_cache(tmp_path / "cache", dataset=dataset, teacher=teacher, recipe=cached, device=CPU).cache.folder
    options = {"data": dataset.path, "device": CPU, "teacher": teacher.path}
    trace_a, a = traced(TrainJob(recipe=cached, out=tmp_path / "a", cache=folder, **options))
    trace_b, b = traced(TrainJob(recipe=live, out=tmp_path / "b", **options))
    assert a.step == b.step == epochs * len(dataset.split("train").ids) // cached.train.batch_size
    assert len(trace_a.sums) == len(trace_b.sums)
    for step, (one, other) in enumerate(zip(trace_a.sums, trace_b.sums, strict=True)):
        assert torch.equal(one, other), f"losses differ at observation {step}"
    assert trace_a.sums[-1][1].min() > 0, "the teacher term is present"
    assert checkpoint_hash(tmp_path / "a") == checkpoint_hash(tmp_path / "b")


def test_two_runs_are_bit_equal_and_seeds_matter(tmp_path: Path, dataset: DatasetFolder, cache: Path) -> None:
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name))  # the global generator must not matter
        recipe = small_recipe("train.epochs=1", f"train.seed={seed}")
        train(TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / name, device=CPU, cache=cache))
        hashes.append(checkpoint_hash(tmp_path / name))
    assert hashes[0] == hashes[1] != hashes[2]
    assert metrics_without_time(tmp_path / "a") == metrics_without_time(tmp_path / "b")


@pytest.mark.parametrize(
    "stop_after", [pytest.param(1, marks=LONG), STEPS - 1, STEPS, pytest.param(STEPS + 1, marks=LONG), 2 * STEPS + 1]
)
def test_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path, dataset: DatasetFolder, cache: Path, stop_after: int, uninterrupted_run: Path
) -> None:
    job = TrainJob(recipe=small_recipe(), data=dataset.path, out=tmp_path / "run", device=CPU, cache=cache)
    observer = StopAfter(stop_after)
    outcome = train(TrainJob(**(vars(job) | {"observer": observer, "stopped": observer.stopped})))
    assert not outcome.finished
    assert outcome.step == stop_after
    assert train(TrainJob(**(vars(job) | {"resume": True}))).finished
    assert checkpoint_hash(tmp_path / "run") == checkpoint_hash(uninterrupted_run)
    assert metrics_without_time(tmp_path / "run") == metrics_without_time(uninterrupted_run)


def test_running_statistics_resume_to_the_same_bits(tmp_path: Path, dataset: DatasetFolder, cache: Path) -> None:
    recipe = small_recipe(BATCH_NORM, "train.epochs=1", "train.batch_size=16")
    job = TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / "a", device=CPU, cache=cache)
    train(job)
    interrupted = vars(job) | {"out": tmp_path / "b"}
    assert train(TrainJob(**(interrupted | {"stopped": StopAfter(0).stopped}))).step == 1
    assert train(TrainJob(**(interrupted | {"resume": True}))).finished
    assert checkpoint_hash(tmp_path / "a") == checkpoint_hash(tmp_path / "b")


@pytest.mark.parametrize("views", ['"eval"', pytest.param("2", marks=LONG)])
def test_a_live_run_stopped_in_the_middle_equals_a_cached_one(
    tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, views: str
) -> None:
    """Teacher blocks of another size than the batch, two interruptions, dropout on: still the same bits at the end."""
    settings = [f"teacher.views={views}", "teacher.batch_size=5", "train.epochs=2"]
    cached, live = small_recipe(*settings), small_recipe(*settings, 'teacher.source="live"')
    folder = build_cache(tmp_path / "cache", dataset=dataset, teacher=teacher, recipe=cached, device=CPU).cache.folder
    train(TrainJob(recipe=cached, data=dataset.path, out=tmp_path / "cached", device=CPU, cache=folder))
    job = TrainJob(recipe=live, data=dataset.path, out=tmp_path / "live", device=CPU, teacher=teacher.path)
    for stop_after in (STEPS - 1, STEPS + 2):
        observer = StopAfter(stop_after)
        stopped = {"observer": observer, "stopped": observer.stopped, "resume": stop_after >= STEPS}
        outcome = train(TrainJob(**(vars(job) | stopped)))
        assert (outcome.finished, outcome.step) == (False, stop_after)
    assert train(TrainJob(**(vars(job) | {"resume": True}))).finished
    assert checkpoint_hash(tmp_path / "live") == checkpoint_hash(tmp_path / "cached")
    assert metrics_without_time(tmp_path / "live") == metrics_without_time(tmp_path / "cached")


def test_dropout_changes_the_checkpoint(
    tmp_path: Path, dataset: DatasetFolder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit-equal resumes cover dropout only if its masks matter: with the keys of other steps, the checkpoint changes."""
    hashes = []
    for shift in (0, 1):
        with monkeypatch.context() as patch:
            original = schedule_module.dropout_keys
            patch.setattr(
                schedule_module,
                "dropout_keys",
                lambda seed, student, steps, shift=shift, original=original: original(seed, student, steps + shift),
            )
            out = tmp_path / str(shift)
            job = TrainJob(recipe=small_recipe(), data=dataset.path, out=out, device=CPU, cache=cache)
            assert train(TrainJob(**(vars(job) | {"stopped": StopAfter(0).stopped}))).step == 1
            hashes.append(checkpoint_hash(out))
    assert hashes[0] != hashes[1]


@pytest.fixture(scope="module")
def uninterrupted_run(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder, cache: Path) -> Path:
    out = tmp_path_factory.mktemp("complete") / "run"
    train(TrainJob(recipe=small_recipe(), data=dataset.path, out=out, device=CPU, cache=cache))
    return out


@pytest.mark.parametrize(
    "kind",
    [signal.SIGKILL, *(pytest.param(kind, marks=LONG) for kind in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT))],
)
def test_a_signal_at_a_random_moment(
    tmp_path: Path, dataset: DatasetFolder, cache: Path, uninterrupted_run: Path, kind: signal.Signals
) -> None:
    out = tmp_path / "run"
    args = ["train", "smoke", "--data", dataset.path, "--cache", cache, "--out", out]
    args += commands.set_options(*SMALL)
    command = commands.start(*args)
    assert wait_until(lambda: (out / "checkpoints" / "last.json").exists() or command.ended())
    time.sleep(random.random() * 0.5)
    command.send_signal(kind)
    stopped = command.finish()
    assert "Traceback" not in stopped.err
    if kind != signal.SIGKILL and stopped.code != 0:
        assert stopped.code == 128 + kind
        assert "--resume" in stopped.last
    done = commands.run(*args, "--resume")
    assert done.code == 0, done
    assert "Traceback" not in done.err
    assert checkpoint_hash(out) == checkpoint_hash(uninterrupted_run)
    assert metrics_without_time(out) == metrics_without_time(uninterrupted_run)


def test_a_loss_that_is_not_finite_names_the_step(tmp_path: Path, dataset: DatasetFolder, cache: Path) -> None:
    out = tmp_path / "run"
    job = TrainJob(recipe=small_recipe(), data=dataset.path, out=out, device=CPU, cache=cache)
    trainer = Trainer(job)
    trainer._train_epoch(0, 0)
    kept = checkpoint_hash(out)
    with torch.no_grad():
        next(trainer.students[0].model.parameters()).fill_(float("nan"))
    with pytest.raises(RunError, match=rf"step {STEPS} \(epoch 2\) is not finite"):
        trainer.run()
    trainer.close()
    assert checkpoint_hash(out) == kept
    assert RunFolder.open(out).load().progress.step == STEPS


def test_weights_that_broke_in_the_last_step_are_not_saved(tmp_path: Path, dataset: DatasetFolder, cache: Path) -> None:
    trainer = Trainer(TrainJob(recipe=small_recipe(), data=dataset.path, out=tmp_path / "run", device=CPU, cache=cache))
    with torch.no_grad():
        next(trainer.students[1].model.parameters())[0] = float("inf")
    with pytest.raises(RunError, match=r"student\.1\..* is not finite"):
        trainer._save()
    trainer.close()


def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, dataset: DatasetFolder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    trainer = Trainer(TrainJob(recipe=small_recipe(), data=dataset.path, out=out, device=CPU, cache=cache))
    trainer._train_epoch(0, 0)
    kept = checkpoint_hash(out)

    def no_room(path: Path, data: bytes) -> None:
        path.with_name(path.name + ".tmp").write_bytes(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module, "write_bytes", no_room)
        with pytest.raises(OSError, match="No space"):
            trainer.run()
    trainer.close()
    assert checkpoint_hash(out) == kept
    assert RunFolder.open(out).load().progress.step == STEPS


@pytest.mark.parametrize(
    ("settings", "built"),
    [
        (["loss.alpha=1", "loss.beta=0", "loss.gamma=0"], (True, False, False)),
        (["loss.alpha=0.3", "loss.beta=0.7", "loss.gamma=0", 'loss.sample_weight="constant"'], (True, True, False)),
        (["loss.gamma=0"], (True, True, False)),
        (['students=[{architecture="resnet18"}]', "train.batch_size=24"], (True, True, False)),
        (
            [f"students=[{TWIN},{TWIN},{{architecture='mobilenet_v2'}}]", "train.batch_size=24"],
            (True, True, True),
        ),
    ],
)
def test_the_papers_rows_are_settings_of_one_loop(
    tmp_path: Path, dataset: DatasetFolder, cache: Path, settings: list[str], built: tuple[bool, bool, bool]
) -> None:
    recipe = small_recipe("train.epochs=1", *settings)
    train(TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / "run", device=CPU, cache=cache))
    row = RunFolder.open(tmp_path / "run").metrics()[0]["train"]
    for term, present in zip(("hard", "teacher", "peer"), built, strict=True):
        assert len(row[term]) == len(recipe.students)
        assert all((value > 0) == present for value in row[term]), term


def test_backends_train_the_same_bits(tmp_path: Path, dataset: DatasetFolder, cache: Path) -> None:
    for name in ("resident", "folder"):
        recipe = small_recipe(f'data.backend="{name}"', "train.epochs=1")
        train(TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / name, device=CPU, cache=cache))
    assert checkpoint_hash(tmp_path / "resident") == checkpoint_hash(tmp_path / "folder")


def test_options_run(tmp_path: Path, teacher: TeacherFolder) -> None:
    """Few images: where a processor has no bfloat16, a convolution of it takes a hundred times as long."""
    few = make_dataset(tmp_path / "data", per_class=2, val_per_class=1)
    settings = ['train.precision="bfloat16"', "train.channels_last=false", "train.tensorboard=true", 'teacher.source="live"']
    recipe = small_recipe(*settings, "train.epochs=1")
    train(TrainJob(recipe=recipe, data=few.path, out=tmp_path / "run", device=CPU, teacher=teacher.path))
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_the_first_step_of_a_compiled_loss_matches_eager(tmp_path: Path, dataset: DatasetFolder, cache: Path) -> None:
    rows = []
    for mode in ("off", "loss"):
        recipe = small_recipe(f'train.compile="{mode}"', "train.epochs=1", "train.batch_size=48")
        train(TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / mode, device=CPU, cache=cache))
        rows.append(RunFolder.open(tmp_path / mode).metrics()[0]["train"])
    for term in ("hard", "teacher", "peer"):
        assert rows[0][term] == pytest.approx(rows[1][term], rel=5e-6, abs=5e-6)


def test_mismatched_inputs_are_one_line(tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, cache: Path) -> None:
    other = make_teacher(tmp_path / "other", dataset, seed=5)
    another_data = make_dataset(tmp_path / "another", per_class=5)

    def attempt(recipe: Recipe, **changes: object) -> None:
        job = {"recipe": recipe, "data": dataset.path, "out": tmp_path / "run", "device": CPU, "cache": cache}
        train(TrainJob(**(job | changes)))  # type: ignore[arg-type]

    with pytest.raises(MismatchError, match="teacher_sha256") as caught:
        attempt(small_recipe(), teacher=other.path)
    assert [name for name, _, _ in caught.value.fields] == ["teacher_sha256"]
    with pytest.raises(MismatchError, match="dataset_digest"):
        attempt(small_recipe(), data=another_data.path, out=tmp_path / "run2")
    with pytest.raises(MismatchError, match=r"views\.size_px"):
        attempt(small_recipe("views.size_px=24"), out=tmp_path / "run3")
    with pytest.raises(MismatchError, match="policy"):
        attempt(small_recipe("teacher.views=3"), out=tmp_path / "run4")
    with pytest.raises(CacheError, match="no such folder"):
        attempt(small_recipe(), cache=tmp_path / "nowhere", out=tmp_path / "run5")
    with pytest.raises(ConfigError, match="more than the 48 training images"):
        attempt(small_recipe("train.batch_size=49"), out=tmp_path / "run6")
    with pytest.raises(ConfigError, match=r"no cache was given.*udkd cache build, or give --teacher TEACHER"):
        attempt(small_recipe(), cache=None, out=tmp_path / "run7")
    assert not any((tmp_path / f"run{n}" / "config.json").exists() for n in ("", 2, 3, 4, 5, 6, 7)), (
        "no incomplete folder is left"
    )


def test_a_run_that_failed_before_its_first_step_may_start_over(
    tmp_path: Path, dataset: DatasetFolder, cache: Path, uninterrupted_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = TrainJob(recipe=small_recipe("train.seed=7"), data=dataset.path, out=tmp_path / "run", device=CPU, cache=cache)
    with monkeypatch.context() as context:
        context.setattr(Trainer, "_train_epoch", failing_epoch)
        with pytest.raises(RuntimeError, match="no compiler"):
            train(job)
    notes = Notes()
    assert train(replace(job, recipe=small_recipe(), observer=notes)).finished
    assert any("ended before it kept anything: it starts over" in line for line in notes.lines)
    assert checkpoint_hash(job.out) == checkpoint_hash(uninterrupted_run)


def failing_epoch(self: Trainer, epoch: int, done_steps: int) -> bool:
    raise RuntimeError("no compiler")


def test_resume_refuses_another_recipe(tmp_path: Path, dataset: DatasetFolder, cache: Path, uninterrupted_run: Path) -> None:
    job = {"data": dataset.path, "out": uninterrupted_run, "device": CPU, "cache": cache}
    with pytest.raises(MismatchError, match=r"train\.seed: stored 0, wanted 7"):
        train(TrainJob(recipe=small_recipe("train.seed=7"), resume=True, **job))
    with pytest.raises(RunError, match="already holds a run"):
        train(TrainJob(recipe=small_recipe(), **job))
    with pytest.raises(RunError, match="is not a run"):
        train(TrainJob(recipe=small_recipe(), **(job | {"out": tmp_path / "none", "resume": True, "extend": 9})))


@pytest.mark.parametrize("made", [False, True], ids=["no folder", "empty folder"])
def test_resume_begins_where_there_is_no_run(
    tmp_path: Path, dataset: DatasetFolder, cache: Path, uninterrupted_run: Path, made: bool
) -> None:
    """One command line serves a first start and a restart."""
    out, notes = tmp_path / "run", Notes()
    if made:
        out.mkdir()
    job = TrainJob(recipe=small_recipe(), data=dataset.path, out=out, device=CPU, cache=cache, resume=True, observer=notes)
    assert train(job).finished
    assert any("no run" in line and "it begins" in line for line in notes.lines)
    assert checkpoint_hash(out) == checkpoint_hash(uninterrupted_run)


def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path: Path, dataset: DatasetFolder, cache: Path) -> None:
    out = tmp_path / "run"
    train(TrainJob(recipe=small_recipe("train.epochs=1"), data=dataset.path, out=out, device=CPU, cache=cache))
    (file,) = (out / "checkpoints").glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    file.write_bytes(data)
    assert hashlib.sha256(data).hexdigest() != checkpoint_hash(out)
    with pytest.raises(RunError, match="damaged"):
        RunFolder.open(out).load()


def test_the_environment_is_recorded(uninterrupted_run: Path) -> None:
    stored = RunFolder.open(uninterrupted_run).provenance
    assert stored["hardware"]["threads"] == 1
    assert torch.__version__.startswith(stored["versions"]["torch"])
    assert stored["cache_key"]["policy"] == "canonical"
    assert os.path.isdir(stored["dataset"])
