"""Does the code run on this GPU? Its tests, a small training of each kind, and what has to be equal bit for bit."""

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
from udkd.augment.views import ViewSpec, draw
from udkd.utils.environment import choose_device
from udkd.utils.errors import ConfigError
from udkd.utils.terminal import err, out

EXPECTATION = """Every check passes: the GPU's tests; streamed, resident, captured, compiled, fused and bfloat16 training;
a cache's targets are its teacher's bits, asked again on the same GPU; views have the CPU's bits; captured runs are equal."""

TRAIN = "-m udkd train smoke --data {folder}/data --device {device} --out {folder}/{name} --set train.threads=1"
CACHED = f"{TRAIN} --cache {{folder}}/cache"


@dataclass(frozen=True)
class Check:
    """A command of this Python's. name: also of the folder that a training fills. after: checks that have to pass first."""

    name: str
    words: str
    after: tuple[str, ...] = ()
    needs_gpu: bool = False


CHECKS = (
    Check("views", "-m benchmarks first --device {device} --views"),
    Check("images", "-m data_prep synth {folder}/images --images 320 --val-images 60 --workers 2"),
    Check("data", "-m data_prep convert {folder}/images {folder}/data --side 48 --formats resident --workers 2", ("images",)),
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
    Check("streamed", f"{CACHED} --backend folder", ("cache",)),
    Check("resident", f"{CACHED} --set train.input=resident", ("cache",)),
    Check("compiled", f"{CACHED} --set train.input=resident --set train.compile=all", ("cache",)),
    Check("captured", f"{CACHED} --set train.input=resident --set train.cuda_graph=true", ("cache",), needs_gpu=True),
    Check("captured-again", f"{CACHED} --set train.input=resident --set train.cuda_graph=true", ("cache",), needs_gpu=True),
    Check(
        "captured-compiled",
        f"{CACHED} --set train.input=resident --set train.cuda_graph=true --set train.compile=all",
        ("cache",),
        needs_gpu=True,
    ),
    Check("fused", f"{CACHED} --set train.compile=loss --set train.loss_impl=fused", ("cache",), needs_gpu=True),
    Check("bfloat16", f"{CACHED} --set train.precision=bfloat16", ("cache",), needs_gpu=True),
    Check("live", f"{TRAIN} --teacher {{folder}}/teacher --set teacher.source=live --backend folder", ("teacher",)),
    Check("evaluation", "-m udkd eval {folder}/streamed --device {device}", ("streamed",)),
    Check(
        "tests",
        "-m pytest -q -rs -p no:cacheprovider tests/data/test_backends.py tests/data/test_loading.py -k gpu",
        needs_gpu=True,
    ),
)
SAME_BITS = (("streamed", "live"), ("streamed", "resident"), ("captured", "captured-again"))
"""Trainings whose weights are compared at the end. A difference fails nothing: a GPU's sums may have no fixed order."""

PASSED = "passed"


def main(
    budget_s: Annotated[int, typer.Option("--budget", min=5, help="Seconds for everything.")] = 120,
    device: Annotated[str, typer.Option("--device", help="cuda, or cpu to try the command itself.")] = "cuda",
    at_once: Annotated[
        int, typer.Option("--at-once", min=0, help="Checks that run at the same time; 0: a third of the cores.")
    ] = 0,
    folder: Annotated[Path, typer.Option("--folder", help="Where data, teacher, cache and runs go.")] = Path("runs/first"),
    views: Annotated[bool, typer.Option("--views", help="Only compare views on the device with the CPU's.")] = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Run every check in a process of its own, as many at once as there are cores for; exit 1 where one fails."""
    where = choose_device(device)
    if views:
        same_views(where)
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty; expected a new folder for the checks; remove it or name another with --folder"
        )
    started = time.monotonic()
    record = BenchmarkResult.begin("first", EXPECTATION, where, {"checks": [check.name for check in CHECKS]})
    folder.mkdir(parents=True, exist_ok=True)
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    at_once = at_once or max(1, (os.cpu_count() or 1) // 3)

    def say(check: Check, line: str) -> None:
        record.put(check.name, line)
        record.write(results)

    try:
        while waiting := [check for check in CHECKS if check.name not in record.facts]:
            if time.monotonic() - started > budget_s:
                for check in waiting:
                    say(check, "not finished: the time was up" if check.name in running else "not begun: the time was up")
                break
            for check in waiting:
                if check.name in running:
                    process, begun = running[check.name]
                    if process.poll() is not None:
                        say(check, outcome(process.returncode, time.monotonic() - begun, log_of(folder, check)))
                        stop(running.pop(check.name)[0])
                elif check.needs_gpu and where.type != "cuda":
                    say(check, "left out: needs a GPU")
                elif failed := [name for name in check.after if not passed(record.facts.get(name, PASSED))]:
                    say(check, f"not begun: {failed[0]} did not pass")
                elif len(running) < at_once and all(name in record.facts for name in check.after):
                    running[check.name] = start(check, device, folder), time.monotonic()
            time.sleep(0.05)
    finally:
        for process, _ in running.values():
            stop(process)
    for one, other in SAME_BITS:
        if all(passed(record.facts.get(name, "")) for name in (one, other)):
            record.facts[f"{one} = {other}"] = same_weights(folder / one, folder / other)
    record.write(results)
    table = Table("check", "outcome")
    for name, line in record.facts.items():
        table.add_row(name, line)
    out.print(table)
    if any(line.startswith(("failed", "not ")) for line in record.facts.values()):
        raise typer.Exit(1)


def passed(line: str) -> bool:
    """Whether a check's outcome lets those after it begin."""
    return line.startswith(PASSED)


def log_of(folder: Path, check: Check) -> Path:
    """What a check prints."""
    return folder / f"{check.name}.log"


def start(check: Check, device: str, folder: Path) -> subprocess.Popen[bytes]:
    """Begin a check in a process group of its own, its output going to its log."""
    words = [word.format(device=device, folder=folder.resolve(), name=check.name) for word in check.words.split(" ")]
    with log_of(folder, check).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a check and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def outcome(code: int, seconds: float, log: Path) -> str:
    """A check in a line; of one that failed with the last words of its log."""
    if code == 0:
        return f"{PASSED}, {seconds:.0f} s"
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if re.search(r"\w", line)]
    return f"failed with exit code {code} after {seconds:.0f} s (see {log.name}): {(said or ['no word'])[-1][:300]}"


def same_weights(one: Path, other: Path) -> str:
    """Whether two finished runs ended with the same bits."""
    sums = {json.loads((run / "checkpoints" / "last.json").read_text())["sha256"] for run in (one, other)}
    return "the same bits" if len(sums) == 1 else "other bits"


def same_views(device: torch.device) -> None:
    """Compare random views of random canvases, eager and compiled, with the CPU's; exit 1 where a bit differs."""
    spec, rng = ViewSpec(), np.random.default_rng(0)
    canvas = torch.from_numpy(rng.integers(0, 256, (32, 256, 256, 3), dtype=np.uint8))
    views = draw(spec, 0, 0, np.arange(32), np.full((32, 4), 256))
    found = {"cpu": pixels(canvas, ViewTable.of(views), spec.size_px)}
    for name, how in (("eager", pixels), ("compiled", torch.compile(pixels))):
        found[name] = how(canvas.to(device), ViewTable.of(views, device), spec.size_px).cpu()
    sums = {name: hashlib.sha256(views.numpy().tobytes()).hexdigest()[:16] for name, views in found.items()}
    out.print("  ".join(f"{name} {value}" for name, value in sums.items()))
    if len(set(sums.values())) > 1:
        err.print(f"error: views on {device} are not the CPU's: {sums}")
        raise typer.Exit(1)
