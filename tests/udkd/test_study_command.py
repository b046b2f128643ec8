"""udkd study in the hands of an impatient user."""

import csv
import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.patience import patience, until
from tests.small import make_dataset, make_teacher
from tests.udkd.test_commands import Call, call, refused, start  # noqa: F401 (a fixture)
from udkd.formats.dataset import DatasetFolder
from udkd.formats.teacher import TeacherFolder

GRID = """
title = "A small grid"
recipe = "smoke"
seeds = [0, 1]
baseline = ["hard"]
set = ["train.batch=8", "teacher.batch=8", "train.epochs=2", "train.threads=1", "train.log_every_steps=1"]

[[arms]]
name = "hard"
students = ["squeezenet1_1"]
set = ["loss.alpha=1.0", "loss.beta=0.0", "loss.gamma=0.0", "teacher.source='none'", "students.0.lr=0.01"]

[[arms]]
name = "taught"
students = ["squeezenet1_1"]
set = ["students.0.lr=0.01"]
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    return make_dataset(tmp_path_factory.mktemp("data"), per_class=6, val_per_class=3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder) -> TeacherFolder:
    return make_teacher(tmp_path_factory.mktemp("teacher"), dataset)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("grid") / "grid.toml"
    file.write_text(GRID)
    return file


def test_killed_at_any_moment_the_same_command_goes_on(
    call: Call,  # noqa: F811
    tmp_path: Path,
    dataset: DatasetFolder,
    teacher: TeacherFolder,
    grid: Path,
) -> None:
    words = ["study", grid, "--data", dataset.path, "--teacher", teacher.path, "--out"]
    plan = call(*words, tmp_path / "one", "--dry-run")
    assert plan.code == 0, plan
    assert "taught, seed 1" in plan.out
    assert "in all" in plan.out
    assert not (tmp_path / "one").exists()
    whole = call(*words, tmp_path / "one")
    assert whole.code == 0, whole
    assert "finished: 4 of 4 runs are done" in whole.last
    process = start(*words, tmp_path / "two")
    wait_for_runs(tmp_path / "two", 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=patience(60))
    again = call(*words, tmp_path / "two")
    assert again.code == 0, again
    tables = [(tmp_path / name / "grid" / "table.csv").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]
    rows = list(csv.DictReader(tables[0].decode().splitlines()))
    assert [row["n"] for row in rows] == ["2"] * len(rows)
    done = call(*words, tmp_path / "two", "--dry-run")
    assert done.code == 0
    assert "about nothing in all" in done.out
    pair = [start(*words, tmp_path / "pair") for _ in range(2)]
    said = [process.communicate(timeout=patience(120))[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(text[-600:] for text in said)
    assert all("finished: 4 of 4 runs are done" in text for text in said)
    assert (tmp_path / "pair" / "grid" / "table.csv").read_bytes() == tables[0]
    assert sum(text.count("validation top-1") for text in said) == 8, "four runs of two epochs, each once"


def wait_for_runs(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    def there() -> bool:
        return len(list(out.glob("runs/*/checkpoints/last.json"))) >= count

    assert until(lambda: there() or process.poll() is not None)
    assert there(), process.communicate()


def test_time_is_up(call: Call, tmp_path: Path, dataset: DatasetFolder, grid: Path) -> None:  # noqa: F811
    words = ["study", grid, "--data", dataset.path, "--out", tmp_path / "o", "--set", "fit.architecture='squeezenet1_1'"]
    result = call(*words, "--max-minutes", 0.01, "--set", "fit.epochs=400")
    assert result.code == 75, result
    assert "the same command goes on" in result.last
    assert json.loads((tmp_path / "o" / "grid" / "study.json").read_text())["progress"]["finished"] == 0


def test_mistakes_are_one_line(call: Call, tmp_path: Path, dataset: DatasetFolder, grid: Path) -> None:  # noqa: F811
    words = ["--data", dataset.path, "--out", tmp_path / "o"]
    refused(call("study", "tabel3", *words), "study 'tabel3' not found", "table3")
    refused(call("study", grid, *words, "--seeds", "1,1"), "--seeds '1,1'; expected different numbers from 0")
    refused(call("study", grid, *words, "--seeds", "-1"), "expected different numbers from 0")
    refused(call("study", grid, *words, "--set", "loss.alpa=3"), "loss.alpa is no key of a recipe")
    refused(call("study", grid, *words, "--recipe", "nothing"), "recipe 'nothing' not found")
    refused(call("study", grid, "--data", tmp_path, "--out", tmp_path / "o"), "holds no dataset.json")
    refused(call("study", grid, *words, "--teacher", tmp_path), "is no teacher")
    assert not list((tmp_path / "o").glob("runs/*"))


def test_networks_are_measured_without_training(call: Call, tmp_path: Path, dataset: DatasetFolder) -> None:  # noqa: F811
    result = call("study", "table4", "--recipe", "smoke", "--data", dataset.path, "--out", tmp_path)
    assert result.code == 0, result
    values = json.loads((tmp_path / "table4" / "study.json").read_text())
    # torchvision's published counts of parameters.
    counted = {own["architecture"]: own["parameters_1000"] for own in values["networks"]}
    assert counted == {"resnet50": 25_557_032, "resnet18": 11_689_512, "mobilenet_v2": 3_504_872}
    assert [round(25_557_032 / counted[name], 2) for name in ("resnet18", "mobilenet_v2")] == [2.19, 7.29]
    for own in values["networks"]:
        assert 4 * own["parameters"] < own["bytes"] < 4.2 * own["parameters"] + 100_000
        assert 0 < own["low_ms"] <= own["latency_ms"] <= own["high_ms"]
    assert "2.19×" in result.out
    page = (tmp_path / "table4" / "index.html").read_text()
    assert "25.6 M" in page
    assert not (tmp_path / "runs").exists()
