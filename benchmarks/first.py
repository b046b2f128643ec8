"""Does the code run on this GPU? The GPU tests, a small training of each kind, and bit-for-bit comparisons."""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.table import Table

from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption
from udkd.augment.apply import ViewTable, pixels
from udkd.augment.views import ViewSpec, draw_views
from udkd.utils.environment import choose_device
from udkd.utils.errors import ConfigError
from udkd.utils.terminal import err, out

EXPECTATION = """Every check passes: the GPU tests; streamed, resident, captured, compiled, fused and bfloat16 training; cached
targets equal the teacher's logits, recomputed on the same GPU, bit for bit; so do views on GPU and CPU, and captured runs."""

TRAIN = "-m udkd train smoke --data {folder}/data --device {device} --out {folder}/{name} --set train.threads=1"
CACHED = f"{TRAIN} --cache {{folder}}/cache"
TWO = "-m torch.distributed.run --standalone --nproc-per-node 2"  # on one GPU
ON_ONE = CACHED.replace("{device}", "{device}:0")
SLICES = "--set train.input=resident --set train.slices=4 --set train.deterministic=true"


@dataclass(frozen=True)
class Check:
    """A command for this Python. name: also the name of a training's run folder. after: checks that must pass first."""

    name: str
    command: str
    after: tuple[str, ...] = ()
    needs_gpu: bool = False


CHECKS = (
    Check("views", "-m benchmarks first --device {device} --views"),
    Check("images", "-m udkd.data_prep synth {folder}/images --images 320 --val-images 60 --workers 2"),
    Check(
        "data", "-m udkd.data_prep convert {folder}/images {folder}/data --side 48 --formats resident --workers 2", ("images",)
    ),
    Check("teacher", "-m udkd teacher fit {folder}/data {folder}/teacher --recipe smoke --device {device}", ("data",)),
    Check(
        "cache",
        "-m udkd cache build {folder}/data {folder}/teacher {folder}/cache --recipe smoke --device {device}",
        ("teacher",),
    ),
    Check(
        "targets",
        "-m udkd cache verify {folder}/cache --recompute 320 --data {folder}/data --teacher {folder}/teacher --device {device}",
        ("cache",),
    ),
    Check("stream", f"{CACHED} --backend folder", ("cache",)),
    Check("resident", f"{CACHED} --set train.input=resident", ("cache",)),
    Check("compiled", f"{CACHED} --set train.input=resident --set train.compile=all", ("cache",)),
    Check("cuda-graph", f"{CACHED} --set train.input=resident --set train.cuda_graph=true", ("cache",), needs_gpu=True),
    Check("cuda-graph-again", f"{CACHED} --set train.input=resident --set train.cuda_graph=true", ("cache",), needs_gpu=True),
    Check(
        "cuda-graph-compiled",
        f"{CACHED} --set train.input=resident --set train.cuda_graph=true --set train.compile=all",
        ("cache",),
        needs_gpu=True,
    ),
    Check("fused", f"{CACHED} --set train.compile=loss --set train.loss_impl=fused", ("cache",), needs_gpu=True),
    Check("bfloat16", f"{CACHED} --set train.precision=bfloat16", ("cache",), needs_gpu=True),
    Check("slices", f"{CACHED} {SLICES}", ("cache",), needs_gpu=True),
    Check("slices-cuda-graph", f"{CACHED} {SLICES} --set train.cuda_graph=true", ("cache",), needs_gpu=True),
    Check("slices-of-two", f"{TWO} {ON_ONE} {SLICES}", ("cache",), needs_gpu=True),
    Check("students-of-two", f"{TWO} {ON_ONE} --set train.parallel=students", ("cache",), needs_gpu=True),
    Check("live", f"{TRAIN} --teacher {{folder}}/teacher --set teacher.source=live --backend folder", ("teacher",)),
    Check("evaluation", "-m udkd eval {folder}/stream --device {device}", ("stream",)),
    Check(
        "tests",
        "-m pytest -q -rs -p no:cacheprovider tests/data/test_backends.py tests/data/test_loading.py -k gpu",
        needs_gpu=True,
    ),
)
SAME_BITS = (
    ("stream", "live"),
    ("stream", "resident"),
    ("cuda-graph", "cuda-graph-again"),
    ("slices", "slices-cuda-graph"),
    ("slices", "slices-of-two"),
    ("stream", "students-of-two"),
)
"""Trainings whose weights are compared at the end. A difference is no failure: a GPU may sum in varying order."""

PASSED = "passed"


def main(
    budget_s: Annotated[int, typer.Option("--budget", min=5, help="Seconds for all checks together.")] = 120,
    device: Annotated[str, typer.Option("--device", help="cuda, or cpu to try the command itself.")] = "cuda",
    at_once: Annotated[int, typer.Option("--at-once", min=0, help="Checks that run in parallel; 0: a third of the cores.")] = 0,
    folder: Annotated[Path, typer.Option("--folder", help="New folder for the checks' files.")] = Path("runs/first"),
    views: Annotated[bool, typer.Option("--views", help="Only compare the device's views with the CPU's.")] = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Run every check in a separate process, several in parallel; exit with 1 if one fails."""
    dev = choose_device(device)
    if views:
        check_views(dev)
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; expected a new folder; remove it or name another with --folder")
    started = time.monotonic()
    result = BenchmarkResult.begin("first", EXPECTATION, dev, {"checks": [check.name for check in CHECKS]})
    folder.mkdir(parents=True, exist_ok=True)
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    at_once = at_once or max(1, (os.cpu_count() or 1) // 3)

    def report(check: Check, outcome: str) -> None:
        result.add_fact(check.name, outcome)
        result.write(results)

    try:
        while waiting := [check for check in CHECKS if check.name not in result.facts]:
            if time.monotonic() - started > budget_s:
                for check in waiting:
                    report(check, "not finished: out of time" if check.name in running else "not started: out of time")
                break
            for check in waiting:
                if check.name in running:
                    process, check_started = running[check.name]
                    if process.poll() is not None:
                        report(check, describe(process.returncode, time.monotonic() - check_started, log_of(folder, check)))
                        stop(running.pop(check.name)[0])
                elif check.needs_gpu and dev.type != "cuda":
                    report(check, "skipped: needs a GPU")
                elif failed := [name for name in check.after if not passed(result.facts.get(name, PASSED))]:
                    report(check, f"not started: {failed[0]} did not pass")
                elif len(running) < at_once and all(name in result.facts for name in check.after):
                    running[check.name] = start(check, device, folder), time.monotonic()
            time.sleep(0.05)
    finally:
        for process, _ in running.values():
            stop(process)
    for one, other in SAME_BITS:
        if all(passed(result.facts.get(name, "")) for name in (one, other)):
            result.facts[f"{one} = {other}"] = same_weights(folder / one, folder / other)
    result.write(results)
    table = Table("check", "outcome")
    for name, line in result.facts.items():
        table.add_row(name, line)
    out.print(table)
    if any(line.startswith(("failed", "not ")) for line in result.facts.values()):
        raise typer.Exit(1)


def passed(outcome: str) -> bool:
    """Whether an outcome, as `describe` returns it, means that the check passed."""
    return outcome.startswith(PASSED)


def log_of(folder: Path, check: Check) -> Path:
    """The log file of a check's output."""
    return folder / f"{check.name}.log"


def start(check: Check, device: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a check in a separate process group, with its output in its log file."""
    command = [word.format(device=device, folder=folder.resolve(), name=check.name) for word in check.command.split(" ")]
    with log_of(folder, check).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a check and every process that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def describe(code: int, seconds: float, log: Path) -> str:
    """A check's outcome in one line; for a failed one with the last line of its log."""
    if code == 0:
        return f"{PASSED}, {seconds:.0f} s"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if re.search(r"\w", line)]
    return f"failed with exit code {code} after {seconds:.0f} s (see {log.name}): {(lines or ['no output'])[-1][:300]}"


def same_weights(one: Path, other: Path) -> str:
    """Whether two finished runs have bit-identical weights."""
    sums = {json.loads((run / "checkpoints" / "last.json").read_text())["sha256"] for run in (one, other)}
    return "the same bits" if len(sums) == 1 else "different bits"


def check_views(device: torch.device) -> None:
    """Compare random views of random canvases, eager and compiled, with the CPU's; exit with 1 if a bit differs."""
    spec, rng = ViewSpec(), np.random.default_rng(0)
    canvas = torch.from_numpy(rng.integers(0, 256, (32, 256, 256, 3), dtype=np.uint8))
    views = draw_views(spec, 0, 0, np.arange(32), np.full((32, 4), 256))
    views_by_name = {"cpu": pixels(canvas, ViewTable.of(views), spec.size_px)}
    for name, compute in (("eager", pixels), ("compiled", torch.compile(pixels))):
        views_by_name[name] = compute(canvas.to(device), ViewTable.of(views, device), spec.size_px).cpu()
    sums = {name: hashlib.sha256(views.numpy().tobytes()).hexdigest()[:16] for name, views in views_by_name.items()}
    out.print("  ".join(f"{name} {value}" for name, value in sums.items()))
    if len(set(sums.values())) > 1:
        err.print(f"error: views on {device} differ from the CPU's: {sums}")
        raise typer.Exit(1)
