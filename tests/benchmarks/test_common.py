"""Shared parts of the benchmarks: timing, results, figures, and the command line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from benchmarks import loss
from benchmarks.__main__ import HERE, main, names
from benchmarks.common import timing
from benchmarks.common.figures import bars, draw
from benchmarks.common.results import BenchmarkResult
from benchmarks.common.timing import Timed, Variant, side_by_side

CPU = torch.device("cpu")


class Completed(NamedTuple):
    code: int
    stdout: str
    stderr: str


Command = Callable[..., Completed]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`python -m benchmarks …` in this process."""

    def run(*args: str) -> Completed:
        capsys.readouterr()
        code: object = 0
        try:
            main(list(args))
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return Completed(code, out, err) if isinstance(code, int) else Completed(1, out, f"{err}{code}\n")

    return run


def test_every_benchmark_is_listed_with_a_line(command: Command) -> None:
    summaries = names()
    assert "loss" in summaries
    assert all(summaries.values()), "the first line of each file states what it measures"
    listed = command()
    assert listed.code == 0
    for name, line in summaries.items():
        assert f"{name} " in listed.stdout
        assert line in listed.stdout
        text = (HERE / f"{name}.py").read_text()
        assert "EXPECTATION" in text or name == "report", f"{name} states no expectation"


def test_an_unknown_benchmark_is_one_line(command: Command) -> None:
    done = command("lose")
    assert done.code == 1
    assert done.stderr == "error: no benchmark is called 'lose'; expected one such as loss; correct it\n"


def test_a_missing_package_is_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("benchmarks.loss", "benchmarks.common", "matplotlib"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = command("loss", "--help")
    assert done.code == 1
    assert "benchmark loss needs the package matplotlib" in " ".join(done.stderr.split())


def test_a_users_mistake_is_one_line(command: Command) -> None:
    done = command("loss", "--device", "cuda:7")
    assert done.code == 1
    assert done.stderr.startswith("error: device cuda:7 was requested")


def test_variants_run_in_turn_and_each_round_starts_with_a_different_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)
    calls: list[str] = []
    variants = [Variant(name, lambda name=name: calls.append(name)) for name in "abc"]
    timed = side_by_side(variants, CPU, rounds=3, warmup=1, min_span_s=0)
    assert [len(one.seconds) for one in timed] == [3, 3, 3]
    assert "".join(calls[-9:]) == "abcbcacab"
    assert [one.name for one in timed] == ["a", "b", "c"]


def test_ratios_are_taken_within_a_round_and_per_item() -> None:
    slow = Timed(name="slow", items=10, seconds=(1.0, 4.0, 2.0))
    fast = Timed(name="fast", items=20, seconds=(1.0, 4.0, 1.0))
    assert fast.ratios(slow) == [0.5, 0.5, 0.25]
    assert fast.items_per_s == 20.0


def test_a_result_has_machine_expectation_and_every_round(tmp_path: Path) -> None:
    result = BenchmarkResult.begin("thing", "nothing  much\nhappens", CPU, {"batch": 2})
    timed = [Timed(name="a", items=2, seconds=(1.0, 2.0, 3.0)), Timed(name="b", items=2, seconds=(0.5, 1.0, 3.0))]
    result.add(timed, baseline="a", batch=2)
    result.add_fact("equal", True)
    path = result.write(tmp_path)
    assert path.name == f"thing-{result.slug}.json"
    stored = json.loads(path.read_text())
    assert stored["expectation"] == "nothing much happens"
    assert stored["settings"] == {"batch": 2}
    assert stored["facts"] == {"equal": True}
    assert stored["machine"]["hardware"]["cores"] >= 1
    assert stored["machine"]["versions"]["torch"]
    assert stored["machine"]["commit"] != ""
    row = stored["rows"][1]
    assert row["seconds"] == {"median": 1.0, "min": 0.5, "max": 3.0, "n": 3, "each": [0.5, 1.0, 3.0]}
    assert row["ratio"]["each"] == [0.5, 0.5, 1.0]
    assert row["items_per_s"] == 2.0
    assert row["batch"] == 2
    assert not list(tmp_path.glob("*.tmp"))


def test_the_same_plot_gives_the_same_svg_and_a_png_that_is_not_blank(tmp_path: Path) -> None:
    def plot(figure, palette) -> None:  # type: ignore[no-untyped-def]
        bars(figure.add_subplot(), palette, ["one", "two"], [1.0, None], unit="hours")

    png, svg = draw(tmp_path / "a", "x", plot)
    _, second_svg = draw(tmp_path / "b", "x", plot)
    assert svg.read_bytes() == second_svg.read_bytes()
    with Image.open(png) as image:
        assert image.size == (1440, 640)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50


def test_loss_measures_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.loss.compiled", lambda loss: loss)
    monkeypatch.setitem(timing.MIN_SPAN_S, "cpu", 0.0)
    loss.main(batches=[8], classes=[10], rounds=2, device="cpu", results=tmp_path)
    (path,) = tmp_path.glob("loss-*.json")
    rows = json.loads(path.read_text())["rows"]
    assert {row["variant"] for row in rows} >= {"eager", "compiled"}
    assert len(list(tmp_path.glob("loss-*.png"))) == len(list(tmp_path.glob("loss-*.svg"))) == 1


@pytest.mark.parametrize("name", sorted(names()))
def test_help_of_every_benchmark(name: str, command: Command) -> None:
    if name not in ("loader", "convert", "cache", "pipeline"):  # they may need packages that are not installed
        done = command(name, "--help")
        assert done.code == 0, done.stderr
        assert "--" in done.stdout
