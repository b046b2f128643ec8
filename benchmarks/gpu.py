"""The whole GPU set in under nine minutes: one JSON, all figures, whatever is missing on the machine left out by name."""

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

from benchmarks.common.record import RESULTS, BenchmarkResult, ResultsOption
from udkd.utils.environment import choose_device
from udkd.utils.terminal import err

EXPECTATION = """On one H200: two students from the cache at 9,400 images/s or more at 224 px, batch 512, so that 50 epochs
of 130,000 images take 12 minutes and the cache 15 s; cached dual / live single at most 1.31; at batch 64 the captured step
twice as fast as the eager one; the plain script beaten 2.5 times with its mixed precision and 5 times without; the compiled
loss 3 to 5 times, the fused one 8 times as fast as eager at batch 256."""


FINISHED = r"\d+ s"
LEFT_OUT = "left out: the time was up"
MEASURED = ("seconds", "ratio", "items_per_s", "memory_gb")


@dataclass(frozen=True)
class Part:
    """A benchmark with its options and the seconds it may take; it writes as it goes, so what it had is kept."""

    words: str
    limit_s: int


PARTS = (
    Part("cost --batch 512 --rounds 5", 240),
    Part("step --batch 64 --only graph --only fused --only 'all of it' --only 'all levers' --only combo --rounds 5", 170),
    Part("loss --batch 64 --batch 256 --batch 4096 --classes 100 --rounds 7", 90),
    Part("plain --batch 256 --rounds 3", 200),
    Part("cost --batch 64 --only-ratio --rounds 5", 90),
    Part(
        "step --batch 512 --only lever --only saved --only layout --only pool --only combo --only cudnn "
        "--only compile --rounds 5",
        300,
    ),
    Part("augment --rounds 5", 90),
    Part("scale --batch 64 --batch 1024 --rounds 5", 120),
    Part("pipeline --batch 512 --rounds 3", 150),
)
"""Compiling two students takes about a minute for each batch size; the compiler's cache on disk spares the next part it.
Together they may take longer than one call: `--rest` goes on, first with what was never begun.
"""


def main(
    budget_s: Annotated[int, typer.Option("--budget", min=10, help="Seconds for everything.")] = 530,
    device: Annotated[str, typer.Option("--device", help="cuda, or cpu to try the command itself.")] = "cuda",
    parts: Annotated[list[str] | None, typer.Option("--part", help="Instead of the set: a benchmark and its options.")] = None,
    rest: Annotated[bool, typer.Option("--rest", help="Only what an earlier call did not finish; its results stay.")] = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Run each benchmark in a process of its own, in the order of their worth, until the time is up."""
    started = time.monotonic()
    chosen = [Part(words, budget_s) for words in parts] if parts else list(PARTS)
    record = BenchmarkResult.begin("gpu", EXPECTATION, choose_device(device), {"parts": [part.words for part in chosen]})
    if rest:
        record.facts = earlier(results / f"gpu-{record.slug}.json")
    found: list[dict[str, Any]] = record.facts.setdefault("results", [])
    for number, part in turns(chosen, record.facts):
        left = budget_s - (time.monotonic() - started)
        if left < 5:
            record.facts.setdefault(part.words, LEFT_OUT)
            continue
        # A folder each: the same benchmark runs with other options later, and must not replace what it found.
        folder = results / f"gpu-{number}"
        record.put(part.words, run(part, device, folder, min(left, part.limit_s)))
        found += [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        gather(folder, results)
        record.write(results)
    record.write(results)
    err.print(f"{time.monotonic() - started:.0f} s in all")


def turns(parts: list[Part], facts: dict[str, Any]) -> list[tuple[int, Part]]:
    """The unfinished parts with their numbers: those that were never begun first, so that one that fails starves none."""
    unfinished = [each for each in enumerate(parts) if not re.fullmatch(FINISHED, facts.get(each[1].words, ""))]
    return sorted(unfinished, key=lambda each: not facts.get(each[1].words, LEFT_OUT).startswith(LEFT_OUT))


def earlier(path: Path) -> dict[str, Any]:
    """The facts of an earlier call; none where there was none."""
    return dict(json.loads(path.read_text())["facts"]) if path.is_file() else {}


def run(part: Part, device: str, folder: Path, limit_s: float) -> str:
    """How a benchmark ended, in a line. What it said is kept as a log beside the results where it did not end well."""
    command = [sys.executable, "-m", "benchmarks", *shlex.split(part.words), "--device", device, "--results", str(folder)]
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    with log.open("w") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[1], start_new_session=True
        )
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # its compilers' and loaders' processes too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code is None:
        return f"stopped after its {limit_s:.0f} s; what it had measured by then is kept (see {log.name})"
    seconds = time.monotonic() - started
    if code:
        words = [line.strip(" │") for line in log.read_text().splitlines() if re.search(r"\w", line)]
        return f"failed after {seconds:.0f} s (see {log.name}): {(words or ['no word'])[-1][:300]}"
    log.unlink()
    return f"{seconds:.0f} s"


def identity(row: dict[str, Any]) -> dict[str, Any]:
    """What was measured, without what came out."""
    return {key: value for key, value in row.items() if key not in MEASURED}


def gather(folder: Path, results: Path) -> None:
    """Move a part's files beside the others; rows of the same benchmark are put together."""
    for path in sorted(folder.glob("*")):
        target = results / path.name
        if path.suffix == ".json" and target.exists():
            new, old = json.loads(path.read_text()), json.loads(target.read_text())
            if new["machine"]["commit"] == old["machine"]["commit"] != "unknown":
                measured = [identity(row) for row in new["rows"]]
                new["rows"] = [row for row in old["rows"] if identity(row) not in measured] + new["rows"]
                new["facts"] = old["facts"] | new["facts"]
                path.write_text(json.dumps(new, indent=2, sort_keys=True) + "\n")
        path.replace(target)
    if folder.is_dir():
        folder.rmdir()
