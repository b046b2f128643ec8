"""The benchmark of several processes: what it counts and computes, and a small run of it."""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks import ranks
from benchmarks.common.rank_process import ADDING, ALL_REDUCE, ALONE, BETWEEN, STEP, WITHIN, RankJob, sent_in_a_step
from benchmarks.common.results import BenchmarkResult
from tests.forks import forked
from udkd.training.exchange import Exchange
from udkd.utils.errors import ConfigError
from udkd.utils.workers import WorkerGroup

CPU = torch.device("cpu")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "distributed.md"
NUMBERS = 16_384


def count_bytes(rank: int, size: int, folder: Path, more: bool) -> None:
    """Write what a process sends in an exchange. more: with a collective that is not counted by its call."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    with contextlib.closing(Exchange(size, WorkerGroup(rank=rank, size=size, local_size=size, store=store))) as exchange:
        vector = torch.full((NUMBERS,), float(rank))

        def step() -> None:
            exchange.sum(vector)
            if more:
                dist.all_reduce(vector)

        sent = sent_in_a_step(step)
    (folder / f"{rank}.json").write_text(json.dumps(sent))


@pytest.mark.parametrize(("size", "more"), [(2, False), (4, False), (2, True)])
def test_counted_bytes_are_those_that_the_kernel_sends(tmp_path: Path, size: int, more: bool) -> None:
    children = [forked(count_bytes, rank, size, tmp_path, more) for rank in range(size)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * size
    for rank in range(size):
        sent = json.loads((tmp_path / f"{rank}.json").read_text())
        formula = 2 * (size - 1) / size * 4 * NUMBERS
        assert sent["vector"] == 4 * NUMBERS
        assert sum(sent["sent"].values()) == formula
        if sent["sent_by_tcp"] is None:
            pytest.skip("only Linux counts the bytes of a connection")
        assert sent["sent_by_tcp"] == pytest.approx(formula * (2 if more else 1), rel=0.05)


def measured(step: float, within: float, adding: float, between: float | None = None) -> dict[str, Any]:
    seconds = {STEP: [9.0, step, 0.1], WITHIN: [within], ADDING: [adding]}
    if between is None:
        return {"seconds": seconds}
    seconds |= {BETWEEN: [between], ALL_REDUCE: [between / 2], ALONE: [step - 2 * between]}
    return {"seconds": seconds, "vector": 100, "sent": {"all_to_all": 50, "all_gather": 50}, "sent_by_tcp": 101}


def test_efficiency_and_share_are_taken_within_rounds() -> None:
    jobs = [
        RankJob(processes=processes, slices=slices, batch=10 * slices, px=8, steps=1, device="cpu")
        for processes, slices in ((1, 1), (2, 2))
    ]
    result = BenchmarkResult.begin("ranks", "nothing", CPU, {"px": 8, "batch": 10})
    single = [{"seconds": {STEP: [seconds]}} for seconds in (1.0, 2.0, 1.0)]
    double = [measured(*each) for each in ((2.0, 0.2, 0.0, 0.3), (2.5, 0.25, 0.0, 0.25), (1.25, 0.25, 0.0, 0.25))]
    ranks.add_rows(result, dict(zip(jobs, (single, double), strict=True)))
    plain, row, alone = result.rows
    assert plain["speedup"]["each"] == [1, 1, 1]
    assert row["variant"] == "2 processes, 2 slices"
    assert row["speedup"]["each"] == pytest.approx([1, 1.6, 1.6])
    assert row["efficiency"]["each"] == pytest.approx([0.7, 0.8, 0.6])
    assert alone["variant"] == "2 processes, 2 slices, no exchange"
    assert alone["speedup"]["each"] == pytest.approx([2 / 1.4, 2, 8 / 3])
    assert row["share_of_step"]["each"] == pytest.approx([0.25, 0.2, 0.4])
    assert row["exchange_ms"]["packing"]["median"] == pytest.approx(250)
    assert row["bytes"]["2 (W - 1) / W of it"] == 100


def test_the_page_has_the_numbers_of_the_model() -> None:
    table = PAGE.read_text().split("<!-- ranks: model -->\n")[1].split("\n\n")[0]
    shown = [[int(cell) for cell in re.findall(r"(\d+) %", line)] for line in table.splitlines()[2:]]
    estimates = ranks.model(54.5e6)["estimates"]
    assert shown == [[round(100 * each["efficiency"]) for each in estimates[start : start + 3]] for start in (0, 3, 6)]


def test_three_processes_are_one_line() -> None:
    with pytest.raises(ConfigError, match="--processes 1, 3; expected powers of two"):
        ranks.main(processes=[3], device="cpu")


@pytest.mark.long
def test_two_processes_are_measured(tmp_path: Path) -> None:
    students = 'students=[{architecture="squeezenet1_1"}]'
    ranks.main(processes=[2], slices=2, batch=2, px=32, steps=1, settings=[students], rounds=1, device="cpu", results=tmp_path)
    (path,) = tmp_path.glob("ranks-*.json")
    rows = {row["variant"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == [
        "1 process, 1 slice",
        "1 process, 2 slices",
        "2 processes, 2 slices",
        "2 processes, 2 slices, no exchange",
    ]
    two = rows["2 processes, 2 slices"]["bytes"]
    assert two["vector"] >= 4 * 700_000
    assert sum(two["sent, by call"].values()) == two["2 (W - 1) / W of it"]
    assert 0 < rows["2 processes, 2 slices"]["share_of_step"]["median"] < 1
    assert "between processes" not in rows["1 process, 2 slices"]["exchange_ms"]
    assert list(tmp_path.glob("ranks-*.svg"))
