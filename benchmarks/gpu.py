"""The GPU benchmarks, the most valuable first, within nine minutes: one JSON and all figures."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption
from udkd.utils.environment import choose_device
from udkd.utils.terminal import err

EXPECTATION = """On one H200: two students from the cache at 9,400 images/s or more at 224 px, batch 512, so that 50 epochs
of 130,000 images take 12 minutes and the cache 15 s; cached dual / live single at most 1.31; at batch 64 the captured step
twice as fast as the eager one; the plain script beaten 2.5 times with its mixed precision and 5 times without; the compiled
loss 3 to 5 times, the fused one 8 times as fast as eager at batch 256."""


FINISHED = r"\d+ s"
SKIPPED = "skipped: out of time"
MEASURED_KEYS = ("seconds", "ratio", "items_per_s", "memory_gb")


@dataclass(frozen=True)
class Part:
    """A benchmark with its options and its time limit. Benchmarks write as they go, so a stopped one keeps its rows."""

    command: str
    limit_s: int


PARTS = (
    Part("cost --batch 512 --rounds 5", 240),
    Part("step --batch 64 --only graph --only fused --only 'all of it' --only 'all perf' --only combo --rounds 5", 170),
    Part("loss --batch 64 --batch 256 --batch 4096 --classes 100 --rounds 7", 90),
    Part("baseline --batch 256 --rounds 3", 200),
    Part("cost --batch 64 --only-ratio --rounds 5", 90),
    Part(
        "step --batch 512 --only perf --only saved --only layout --only pool --only combo --only cudnn "
        "--only compile --rounds 5",
        300,
    ),
    Part("augment --rounds 5", 90),
    Part("scale --batch 64 --batch 1024 --rounds 5", 120),
    Part("pipeline --batch 512 --rounds 3", 150),
)
"""Compiling two students takes about a minute per batch size, which the compiler's cache on disk saves later parts.
All parts together may take longer than one call: `--rest` continues, first with parts that were never started.
"""


def main(
    budget_s: Annotated[int, typer.Option("--budget", min=10, help="Seconds for all parts together.")] = 530,
    device: Annotated[str, typer.Option("--device", help="cuda, or cpu to try the command itself.")] = "cuda",
    parts: Annotated[list[str] | None, typer.Option("--part", help="A benchmark with options, instead of the set.")] = None,
    rest: Annotated[bool, typer.Option("--rest", help="Only what an earlier call did not finish; keeps its results.")] = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Run each benchmark in a separate process, the most valuable first, until the time is up."""
    started = time.monotonic()
    selected = [Part(command, budget_s) for command in parts] if parts else list(PARTS)
    result = BenchmarkResult.begin("gpu", EXPECTATION, choose_device(device), {"parts": [part.command for part in selected]})
    if rest:
        result.facts = previous_facts(results / f"gpu-{result.slug}.json")
    finished: list[dict[str, Any]] = result.facts.setdefault("results", [])
    for number, part in unfinished_parts(selected, result.facts):
        left = budget_s - (time.monotonic() - started)
        if left < 5:
            result.facts.setdefault(part.command, SKIPPED)
            continue
        # A folder each: a later part may run the same benchmark with other options and must not replace these results.
        folder = results / f"gpu-{number}"
        result.add_fact(part.command, run(part, device, folder, min(left, part.limit_s)))
        finished += [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        merge_results(folder, results)
        result.write(results)
    result.write(results)
    err.print(f"{time.monotonic() - started:.0f} s in all")


def unfinished_parts(parts: list[Part], facts: dict[str, Any]) -> list[tuple[int, Part]]:
    """The unfinished parts with their numbers, never-started ones first, so that a failing part does not block the others."""
    unfinished = [each for each in enumerate(parts) if not re.fullmatch(FINISHED, facts.get(each[1].command, ""))]
    return sorted(unfinished, key=lambda each: not facts.get(each[1].command, SKIPPED).startswith(SKIPPED))


def previous_facts(path: Path) -> dict[str, Any]:
    """The facts of an earlier call, or an empty dict."""
    return dict(json.loads(path.read_text())["facts"]) if path.is_file() else {}


def run(part: Part, device: str, folder: Path, limit_s: float) -> str:
    """Run a benchmark; returns its outcome in one line. The output of one that fails is kept as a log beside the results."""
    command = [sys.executable, "-m", "benchmarks", *shlex.split(part.command), "--device", device, "--results", str(folder)]
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[1], start_new_session=True
        )
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also ends its compiler and DataLoader processes
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code is None:
        return f"stopped after {limit_s:.0f} s; rows measured by then are kept (see {log.name})"
    seconds = time.monotonic() - started
    if code:
        lines = [line.strip(" │") for line in log.read_text().splitlines() if re.search(r"\w", line)]
        return f"failed after {seconds:.0f} s (see {log.name}): {(lines or ['no output'])[-1][:300]}"
    log.unlink()
    return f"{seconds:.0f} s"


def row_key(row: dict[str, Any]) -> dict[str, Any]:
    """A row's variant and settings, without its measurements."""
    return {key: value for key, value in row.items() if key not in MEASURED_KEYS}


def merge_results(folder: Path, results: Path) -> None:
    """Move a part's files into `results`, merging rows and facts of the same benchmark and commit."""
    for path in sorted(folder.glob("*")):
        target = results / path.name
        if path.suffix == ".json" and target.exists():
            new, old = json.loads(path.read_text()), json.loads(target.read_text())
            if new["machine"]["commit"] == old["machine"]["commit"] != "unknown":
                measured = [row_key(row) for row in new["rows"]]
                new["rows"] = [row for row in old["rows"] if row_key(row) not in measured] + new["rows"]
                new["facts"] = old["facts"] | new["facts"]
                path.write_text(json.dumps(new, indent=2, sort_keys=True) + "\n")
        path.replace(target)
    if folder.is_dir():
        folder.rmdir()
