"""The whole GPU set in under nine minutes: one JSON, all figures, whatever is missing on the machine left out by name."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.common.record import RESULTS, Record, ResultsOption
from udkd.console.terminal import err
from udkd.parts.environment import choose_device

EXPECTATION = """On one H200: two students from the cache at 9,400 images/s or more at 224 px, batch 512, so that 50 epochs
of 130,000 images take 12 minutes and the cache 15 s; cached dual / live single at most 1.31; at batch 64 the captured step
twice as fast as the eager one; the plain script beaten 2.5 times with its mixed precision and 5 times without; the compiled
loss 3 to 5 times, the fused one 8 times as fast as eager at batch 256."""


@dataclass(frozen=True)
class Part:
    """A benchmark with its options and the seconds it may take; it writes as it goes, so what it had is kept."""

    words: str
    limit_s: int


PARTS = (
    Part("cost --batch 512 --rounds 5", 170),
    Part("step --batch 64 --only graph --only fused --only saved --only realize --rounds 5", 130),
    Part("plain --batch 512 --rounds 3", 70),
    Part("loss --batch 64 --batch 256 --batch 4096 --classes 100 --rounds 7", 50),
    Part("augment --rounds 5", 50),
    Part("cost --batch 64 --only-ratio --rounds 5", 60),
    Part("scale --batch 64 --batch 1024 --rounds 5", 60),
    Part("step --batch 512 --only pool --only streams --only saved --only compile --rounds 5", 120),
    Part("pipeline --rounds 3", 60),
)


def main(
    budget_s: Annotated[int, typer.Option("--budget", min=10, help="Seconds for everything.")] = 530,
    device: Annotated[str, typer.Option("--device", help="cuda, or cpu to try the command itself.")] = "cuda",
    parts: Annotated[list[str] | None, typer.Option("--part", help="Instead of the set: a benchmark and its options.")] = None,
    results: ResultsOption = RESULTS,
) -> None:
    """Run each benchmark in a process of its own, in the order of their worth, until the time is up."""
    started = time.monotonic()
    chosen = [Part(words, budget_s) for words in parts] if parts else list(PARTS)
    record = Record.begin("gpu", EXPECTATION, choose_device(device), {"parts": [part.words for part in chosen]})
    found: list[dict[str, Any]] = []
    for number, part in enumerate(chosen):
        left = budget_s - (time.monotonic() - started)
        if left < 5:
            record.put(part.words, "left out: the time was up")
            continue
        # A folder each: the same benchmark runs with other options later, and must not replace what it found.
        folder = results / f"gpu-{number}"
        record.put(part.words, run(part, device, folder, min(left, part.limit_s)))
        found += [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        record.facts["results"] = found
        gather(folder, results)
        record.write(results)
    err.print(f"{time.monotonic() - started:.0f} s in all")


def run(part: Part, device: str, folder: Path, limit_s: float) -> str:
    """How a benchmark ended, in a line."""
    command = [sys.executable, "-m", "benchmarks", *part.words.split(), "--device", device, "--results", str(folder)]
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, cwd=Path(__file__).parents[1])
    except subprocess.TimeoutExpired:
        return f"stopped after its {limit_s:.0f} s; what it had measured by then is kept"
    seconds = time.monotonic() - started
    if done.returncode:
        return f"failed after {seconds:.0f} s: {(done.stderr.strip().splitlines() or ['no word'])[-1][:300]}"
    return f"{seconds:.0f} s"


def gather(folder: Path, results: Path) -> None:
    """Move a part's files beside the others; rows of the same benchmark are put together."""
    for path in sorted(folder.glob("*")):
        target = results / path.name
        if path.suffix == ".json" and target.exists():
            new, old = json.loads(path.read_text()), json.loads(target.read_text())
            if new["machine"]["commit"] == old["machine"]["commit"]:
                new["rows"] = old["rows"] + [row for row in new["rows"] if row not in old["rows"]]
                new["facts"] = old["facts"] | new["facts"]
                path.write_text(json.dumps(new, indent=2, sort_keys=True) + "\n")
        path.replace(target)
    if folder.is_dir():
        folder.rmdir()
