"""Training on several processes: the checkpoint and the rows of one, few bytes, and every failure one line.

The processes are forks that have the variables of torchrun (tests/launcher.py); test_torchrun has the real one.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli import commands
from tests.cli.commands import Result
from tests.training.runs import checkpoint_hash, metrics_without_time
from tests.training.small_networks import students
from udkd.data.dataset import DatasetFolder
from udkd.teacher.folder import TeacherFolder
from udkd.training.run_folder import RunFolder
from udkd.utils.rng import Stream, permutation

LONG = pytest.mark.long
DATASET_IMAGES = {"per_class": 12, "val_per_class": 11}  # three batches of 16 to evaluate, the last one smaller
CACHE_SETTINGS = ("teacher.views=2",)
STEPS = 3
SETTINGS = (
    *("views.size_px=32", "teacher.batch_size=8", "teacher.views=2", "data.workers=1", students()),
    *("train.batch_size=16", "train.slices=4", "train.epochs=2"),
)


@dataclass(frozen=True)
class Bench:
    """Starts runs in a folder of its own, with one data set and a cache or a teacher."""

    root: Path
    data: Path
    cache: Path
    teacher: Path

    def arguments(self, name: str, *settings: str, options: tuple[str, ...] = (), source: str = "cache") -> list[str]:
        of_source = ["--teacher", str(self.teacher)] if source == "teacher" else ["--cache", str(self.cache)]
        folders = ["--data", str(self.data), *of_source, "--out", str(self.root / name), "--device", "cpu"]
        return ["train", "smoke", *folders, *commands.set_options(*SETTINGS, *settings), *options]

    def run(self, group: str, name: str, *settings: str, variables: dict[str, str] | None = None, **more: object) -> Result:
        """group: processes, and after a colon how many a machine has; "1" is a process without a launcher."""
        arguments = self.arguments(name, *settings, **more)  # type: ignore[arg-type]
        if group == "1":
            return commands.run(*arguments, variables=variables)
        return commands.run(group, "tests.training.train_process", *arguments, module="tests.launcher", variables=variables)

    def result(self, name: str) -> tuple[str, list[dict[str, object]]]:
        """What must not depend on the number of processes."""
        return checkpoint_hash(self.root / name), metrics_without_time(self.root / name)

    def written(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir())


@pytest.fixture
def bench(tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, cache: Path) -> Bench:
    (tmp_path / "runs").mkdir()
    return Bench(tmp_path / "runs", dataset.path, cache, teacher.path)


MIXING = ("views.jitter='uint8'", "views.mixup=0.8", "views.cutmix=1.0", "views.policy='rand_augment'")
LIVE = ("teacher.source='live'",)


@pytest.mark.parametrize(
    ("settings", "source"),
    [
        pytest.param((), "cache", id="streamed"),
        pytest.param(
            ("train.input=resident", "train.slices=8", "train.ema_decay=0.9", "train.epochs=1"), "cache", id="resident"
        ),
        pytest.param(("data.backend=folder", "train.accumulate=2"), "cache", id="folder", marks=LONG),
        pytest.param(("data.backend=ffcv",), "cache", id="ffcv", marks=LONG),
        pytest.param(("data.backend=dali",), "cache", id="dali", marks=LONG),
        pytest.param(("train.precision=bfloat16",), "cache", id="bfloat16", marks=LONG),
        pytest.param(("train.precision=float16",), "cache", id="float16", marks=LONG),
        pytest.param(("train.compile=all",), "cache", id="compiled", marks=LONG),
        pytest.param(("train.compile=all", "train.input=resident"), "cache", id="compiled, resident", marks=LONG),
        pytest.param((*MIXING, *LIVE), "teacher", id="mixing, live", marks=LONG),
        pytest.param((), "teacher", id="a cache of its own", marks=LONG),
        pytest.param(("loss.method=fitnets", *LIVE), "teacher", id="fitnets", marks=LONG),
        pytest.param(
            (students("lr=0.05, schedule='wsd', decay_epochs=1", "lr=0.05, start_epoch=1"), "train.epochs=3"),
            "cache",
            id="wsd, start_epoch",
            marks=LONG,
        ),
        pytest.param(
            ("train.progressive_px=24", "train.ema_decay=0.9", "teacher.views=eval", "train.epochs=3", *LIVE),
            "teacher",
            id="progressive, ema",
            marks=LONG,
        ),
        pytest.param(
            (students(*["lr=0.05, clip_norm=0.1, optimizer='AdamW'"] * 2), "evaluation.flip_tta=true"),
            "cache",
            id="adamw, clip_norm, flip_tta",
            marks=LONG,
        ),
    ],
)
def test_one_checkpoint_for_any_number_of_processes(bench: Bench, settings: tuple[str, ...], source: str) -> None:
    """Of networks with dropout and with batch norm, evaluated on three batches, which are fewer than four processes."""
    backend = next((each.removeprefix("data.backend=") for each in settings if each.startswith("data.backend=")), "")
    if backend in ("ffcv", "dali"):
        pytest.importorskip({"dali": "nvidia.dali"}.get(backend, backend))
        assert commands.run("data", "derive", bench.data, "--formats", backend).code == 0
    results = {}
    for group in ("1", "2", "4:2"):
        ended = bench.run(group, group, *settings, source=source)
        assert ended.code == 0, ended
        assert ended.out.count("finished") <= 1, "one process prints"
        results[group] = bench.result(group)
    assert results["2"] == results["1"]
    assert results["4:2"] == results["1"]
    assert len(results["1"][1]) == RunFolder.open(bench.root / "1").config["train"]["epochs"]
    hosts = [os.uname().nodename] * 4
    assert RunFolder.open(bench.root / "4:2").provenance["processes"] == [{"step": 0, "hosts": hosts}]


STUDENTS = ("train.parallel=students", "train.slices=1")


@pytest.mark.parametrize(
    ("settings", "source"),
    [
        pytest.param((), "cache", id="cache"),
        pytest.param(
            ("train.accumulate=2", "train.ema_decay=0.9", "train.precision=float16"), "cache", id="float16", marks=LONG
        ),
        pytest.param(("train.input=resident", *MIXING, *LIVE), "teacher", id="mixing, live", marks=LONG),
    ],
)
def test_students_side_by_side_have_the_bits_of_one_process(bench: Bench, settings: tuple[str, ...], source: str) -> None:
    """With train.threads as it is by default: torchrun sets one thread, a single process would have all."""
    for group in ("1", "2"):
        ended = bench.run(group, group, *STUDENTS, *settings, source=source, variables={"OMP_NUM_THREADS": group})
        assert ended.code == 0, ended
    assert bench.result("2") == bench.result("1")
    assert bench.run("1", "other", *STUDENTS, "loss.gamma=0.0", "train.epochs=1").code == 0, "the control: peers matter"
    assert bench.result("other")[1][0] != bench.result("1")[1][0]


def test_students_side_by_side_go_on_in_one_process_and_back(bench: Bench) -> None:
    for name, groups in {"two, one": ("2", "1"), "one, two": ("1", "2")}.items():
        assert bench.run(groups[0], name, *STUDENTS, "train.epochs=1").code == 0
        assert bench.run(groups[1], name, *STUDENTS, "train.epochs=1", options=("--resume", "--extend", "2")).code == 0
    assert bench.result("one, two") == bench.result("two, one")
    assert [each["step"] for each in RunFolder.open(bench.root / "two, one").provenance["processes"]] == [0, STEPS]


def test_other_slices_and_another_order_give_other_bits(bench: Bench) -> None:
    """The control of the test above."""
    for name, settings in {"4": (), "2": ("train.slices=2",), "seed": ("train.seed=1",)}.items():
        assert bench.run("1", name, "train.epochs=1", *settings).code == 0
    assert len({bench.result(name)[0] for name in ("4", "2", "seed")}) == 3


@pytest.mark.parametrize("group", ["2", "4", "4:2"])
def test_a_step_sends_as_much_as_a_ring_all_reduce(bench: Bench, group: str) -> None:
    """And nothing else: no collective in a step."""
    sent = bench.root / "sent"
    sent.mkdir()
    assert bench.run(group, "run", "train.epochs=1", variables={"SENT": str(sent)}).code == 0
    size = int(group[0])
    for rank in range(size):
        steps = json.loads((sent / f"{rank}.json").read_text())
        assert len(steps) == STEPS
        for step in steps:
            assert step["sent"].keys() == {"isend"}
            total, ring = sum(step["sent"].values()), 2 * (size - 1) / size * step["vector"]
            assert 0.99 * ring <= total <= 1.01 * ring


# --- refusals: one line, nothing written


@pytest.mark.parametrize(
    ("group", "settings", "source", "texts"),
    [
        ("3", (), "cache", ("3 processes", "train.slices is 4", "1, 2, 4")),
        ("3", (), "teacher", ("3 processes", "train.slices is 4")),
        ("8", (), "cache", ("8 processes", "train.slices is 4", "set train.slices to 8")),
        ("2", ("train.slices=1",), "cache", ("2 processes", "train.slices is 1", "set train.slices to 2")),
        ("2", ("train.slices=3", "train.batch_size=24"), "cache", ("slices is 3", "power of two")),
        ("2", ("train.slices=2", "train.batch_size=17"), "cache", ("slices is 2", "batch_size 17")),
        ("2", ("train.slices=16",), "cache", ("slices is 16", "at least 2 images")),
        ("2", ("train.slices=16", "train.batch_size=8"), "cache", ("slices is 16", "batch_size 8")),
        ("2", ("train.slices=4", "train.batch_size=12", *MIXING), "cache", ("slice of train.batch_size has 3", "even")),
        ("2", ("train.accumulate=4",), "cache", ("accumulate is 4", "slices of 4 images")),
        ("2", ("loss.method=crd", *LIVE), "teacher", ("crd", "train.slices is 4")),
        ("2", ("train.lernrate=1",), "cache", ("lernrate",)),
        (
            "4",
            ("train.parallel=students", "train.slices=1"),
            "cache",
            ("4 processes", "the recipe has 2", "one process for each"),
        ),
        ("2", ("train.parallel=students",), "cache", ("train.slices is 4", "expected 1")),
    ],
)
def test_what_cannot_be_shared_is_refused(
    bench: Bench, group: str, settings: tuple[str, ...], source: str, texts: tuple[str, ...]
) -> None:
    commands.refused(bench.run(group, "run", *settings, source=source), *texts)
    assert bench.written() == []


def test_an_existing_run_is_refused_once(bench: Bench) -> None:
    assert bench.run("2", "run", "train.epochs=1").code == 0
    before = bench.result("run")
    commands.failed(bench.run("2", "run", "train.epochs=1"), "already holds a run", "--resume")
    commands.failed(bench.run("4", "run", "train.epochs=1", "train.seed=1", options=("--resume",)), "train.seed")
    again = bench.run("4", "run", "train.epochs=1", options=("--resume",))
    assert again.code == 0, again
    assert "finished already" in again.err
    assert bench.result("run") == before


def test_resume_begins_where_nothing_is(bench: Bench) -> None:
    """In no folder, in an empty one, in one whose run kept nothing, and on from a run that has ended an epoch."""
    (bench.root / "empty").mkdir()
    for name in ("none", "empty"):
        ended = bench.run("2", name, "train.epochs=1", options=("--resume",))
        assert ended.code == 0, ended
    assert bench.result("none") == bench.result("empty")
    extended = bench.run("4", "none", options=("--resume", "--extend", "2"))
    assert extended.code == 0, extended
    assert [each["step"] for each in RunFolder.open(bench.root / "none").provenance["processes"]] == [0, STEPS]


# --- failures


def test_nan_in_one_slice(bench: Bench) -> None:
    """All processes end after the same step, with one line that names the slice and its process; the checkpoint is whole."""
    ended = bench.run("4", "run", "train.epochs=3", variables={"NAN": f"2 {STEPS + 1}"})
    commands.failed(ended, f"step {STEPS + 1} (epoch 2, slice 2 of 4, rank 2 on ", "is kept", "lower students.*.lr")
    assert RunFolder.open(bench.root / "run").load().progress.step == STEPS
    assert commands.run("run", "verify", bench.root / "run").code == 0
    assert bench.run("1", "run", "train.epochs=3", options=("--resume",)).code == 0, "without NaN it goes on"
    assert bench.run("1", "whole", "train.epochs=3").code == 0
    assert bench.result("run") == bench.result("whole")


def test_a_damaged_sample_is_named_with_its_process(
    tmp_path: Path, bench: Bench, dataset: DatasetFolder, teacher: TeacherFolder
) -> None:
    """In the share of the last of four processes: one line with rank, host, id and name."""
    split = dataset.split("train")
    sample = int(permutation(split.ids, 0, Stream.SAMPLE_ORDER, 0)[14])  # in the last slice of the first batch
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset.path, damaged)
    damaged_split = DatasetFolder.open(damaged).split("train")
    with open(damaged_split.shard_path(sample), "r+b") as file:
        file.seek(int(damaged_split.offset[sample]) + int(damaged_split.size[sample]) // 2)
        file.write(bytes(8))
    bench = Bench(bench.root, damaged, bench.cache, bench.teacher)
    ended = bench.run("4", "run", "data.backend=folder")
    commands.failed(ended, "rank 3 on ", damaged_split.describe(sample))
    again = bench.run("2", "run", "data.backend=folder", options=("--resume",))
    commands.failed(again, "rank 1 on ", damaged_split.describe(sample))
