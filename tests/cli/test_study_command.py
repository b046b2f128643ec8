"""udkd study: interruptions, limits and mistakes."""

import csv
import functools
import json
import signal
from pathlib import Path

import pytest

from tests.cli.commands import Command, inside, refused, run, start
from tests.timeouts import wait_until
from udkd.data.dataset import DatasetFolder
from udkd.models.build import parameter_count
from udkd.study.spec import load_study
from udkd.teacher.folder import TeacherFolder

GRID = """
title = "A small grid"
recipe = "smoke"
seeds = [0, 1]
baseline = ["hard"]
set = ["train.batch_size=8", "teacher.batch_size=8", "train.epochs=2", "train.threads=1", "fit.architecture='squeezenet1_1'"]

[[arms]]
name = "hard"
students = ["squeezenet1_1"]
set = ["loss.alpha=1.0", "loss.beta=0.0", "loss.gamma=0.0", "teacher.source='none'", "students.0.lr=0.01"]

[[arms]]
name = "distilled"
students = ["squeezenet1_1"]
set = ["students.0.lr=0.01"]
"""
DATASET_IMAGES = {"per_class": 6, "val_per_class": 3}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("grid") / "grid.toml"
    file.write_text(GRID)
    return file


def test_killed_at_any_moment_the_same_command_resumes(
    tmp_path: Path,
    dataset: DatasetFolder,
    teacher: TeacherFolder,
    grid: Path,
) -> None:
    arguments = ["study", grid, "--data", dataset.path, "--teacher", teacher.path, "--out"]
    plan = run(*arguments, tmp_path / "one", "--dry-run")
    assert plan.code == 0, plan
    assert "distilled, seed 1" in plan.out
    assert "in total" in plan.out
    assert not (tmp_path / "one").exists()
    complete = run(*arguments, tmp_path / "one", "--json")
    assert complete.code == 0, complete
    assert "finished: 4 of 4 runs are done" in complete.last
    assert json.loads(complete.out) == {"grid": json.loads((tmp_path / "one" / "grid" / "study.json").read_text())}
    assert "top-1 %" in complete.err
    killed = start(*arguments, tmp_path / "two")
    wait_for_runs(tmp_path / "two", 2, killed)
    killed.send_signal(signal.SIGKILL)
    killed.finish()
    again = run(*arguments, tmp_path / "two")
    assert again.code == 0, again
    tables = [(tmp_path / name / "grid" / "table.csv").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]
    rows = list(csv.DictReader(tables[0].decode().splitlines()))
    assert [row["n"] for row in rows] == ["2"] * len(rows)
    done = run(*arguments, tmp_path / "two", "--dry-run", "--json")
    assert done.code == 0
    assert "about nothing in total" in done.err
    document = json.loads(done.out)["grid"]
    assert document["seconds"] == sum(item["seconds"] for item in document["work"]) == 0
    assert all(item["done"] == item["total"] > 0 for item in document["work"])
    pair = [start(*arguments, tmp_path / "pair") for _ in range(2)]
    ended = [command.finish(120) for command in pair]
    assert [each.code for each in ended] == [0, 0], ended
    assert all("finished: 4 of 4 runs are done" in each.last for each in ended)
    assert (tmp_path / "pair" / "grid" / "table.csv").read_bytes() == tables[0]
    assert sum(each.err.count("validation top-1") for each in ended) == 8, "four runs of two epochs, each once"


def wait_for_runs(out: Path, count: int, command: Command) -> None:
    def started() -> bool:
        return len(list(out.glob("runs/*/checkpoints/last.json"))) >= count

    assert wait_until(lambda: started() or command.ended())
    assert started(), command.finish()


def test_max_minutes(tmp_path: Path, dataset: DatasetFolder, grid: Path) -> None:
    arguments = ["study", grid, "--data", dataset.path, "--out", tmp_path / "o", "--set", "fit.architecture='squeezenet1_1'"]
    result = run(*arguments, "--max-minutes", 0.01, "--set", "fit.epochs=400", "--json")
    assert result.code == 75, result
    assert "the same command resumes" in result.last
    assert json.loads(result.out)["grid"]["progress"]["finished"] == 0
    assert json.loads((tmp_path / "o" / "grid" / "study.json").read_text())["progress"]["finished"] == 0


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, dataset: DatasetFolder, grid: Path) -> None:
    here = functools.partial(inside, capsys)
    arguments = ["--data", dataset.path, "--out", tmp_path / "o"]
    refused(here("study", "tabel3", *arguments), "study 'tabel3' not found", "table3")
    refused(here("study", grid, *arguments, "--seeds", "1,1"), "--seeds '1,1'; expected different numbers from 0")
    refused(here("study", grid, *arguments, "--seeds", "-1"), "expected different numbers from 0")
    refused(here("study", grid, *arguments, "--set", "loss.alpa=3"), "loss.alpa is not a key of a recipe")
    refused(here("study", grid, *arguments, "--recipe", "nothing"), "recipe 'nothing' not found")
    refused(here("study", grid, "--data", tmp_path, "--out", tmp_path / "o"), "holds no dataset.json")
    refused(here("study", grid, *arguments, "--teacher", tmp_path), "is not a teacher")
    assert not list((tmp_path / "o").glob("runs/*"))


NETWORKS = """
title = "Small networks"
kind = "networks"
baseline = ["large"]
notes = []

[[arms]]
name = "large"
students = ["squeezenet1_0"]

[[arms]]
name = "small"
students = ["shufflenet_v2_x0_5"]
"""


def test_networks_are_measured_without_training(tmp_path: Path, dataset: DatasetFolder) -> None:
    (tmp_path / "networks.toml").write_text(NETWORKS)
    arguments = ["--recipe", "smoke", "--data", dataset.path, "--out", tmp_path]
    result = run("study", tmp_path / "networks.toml", *arguments, "--json")
    assert result.code == 0, result
    values = json.loads((tmp_path / "networks" / "study.json").read_text())
    assert json.loads(result.out) == {"networks": values}
    # torchvision's published counts of parameters.
    counted = {network["architecture"]: network["parameters_1000"] for network in values["networks"]}
    assert counted == {"squeezenet1_0": 1_248_424, "shufflenet_v2_x0_5": 1_366_792}
    for network in values["networks"]:
        assert 4 * network["parameters"] < network["bytes"] < 4.2 * network["parameters"] + 100_000
        assert 0 < network["low_ms"] <= network["latency_ms"] <= network["high_ms"]
    assert "0.91×" in result.err
    page = (tmp_path / "networks" / "index.html").read_text()
    assert "1.2 M" in page
    assert not (tmp_path / "runs").exists()
    plan = run("study", "table4", *arguments, "--dry-run")
    assert "3 networks to measure" in plan.out


def test_the_networks_of_table_4() -> None:
    """torchvision's published counts of parameters."""
    counted = {arm.name: parameter_count(arm.students[0], 1000) for arm in load_study("table4").arms}
    assert counted == {"ResNet-50": 25_557_032, "ResNet-18": 11_689_512, "MobileNetV2": 3_504_872}
    assert [round(25_557_032 / counted[name], 2) for name in ("ResNet-18", "MobileNetV2")] == [2.19, 7.29]
