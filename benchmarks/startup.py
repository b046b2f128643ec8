"""What a command costs before it begins: seconds, processor time and memory of the first minute's commands."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.timing import Timed, median_and_range
from udkd.config.loading import load_recipe
from udkd.data.dataset import DatasetFolder
from udkd.data_prep.api import convert
from udkd.data_prep.synth import synth
from udkd.teacher.cache.import_logits import import_cache
from udkd.utils.errors import RunError
from udkd.utils.launcher import module_environment

EXPECTATION = """On an idle core --help, a misspelt command and recipe list take 0.2 to 0.3 s and 30 MB: the interpreter, typer
and rich. A misspelt key of a recipe and cache info add NumPy and pydantic: 0.3 to 0.4 s and 55 MB. cache info with --data and
data info read the manifest with pyarrow: 0.5 s and 115 MB. All are below 0.5 s and 150 MB, as none imports torch, which takes
1.5 to 4 s and 650 MB by itself."""

# A small process starts the command: the peak of a child is at least the memory that its parent had.
MEASURE = """
import json, os, sys, time
out = os.open(os.devnull, os.O_WRONLY)
actions = [(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)]
started = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=actions)
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - started
cpu_s = usage.ru_utime + usage.ru_stime
peak_mb = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
print(json.dumps([seconds, cpu_s, peak_mb, os.waitstatus_to_exitcode(status)]))
"""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one start. peak_mb: of resident memory."""

    seconds: float
    cpu_s: float
    peak_mb: float
    exit_code: int


def main(rounds: RoundsOption = 7, results: ResultsOption = RESULTS) -> None:
    """Time commands that need no network, beside an empty program and `import torch`."""
    with tempfile.TemporaryDirectory(prefix="udkd-benchmark-") as temporary:
        folder = Path(temporary)
        _prepare(folder)
        result = BenchmarkResult.begin("startup", EXPECTATION, torch.device("cpu"), {"images": 1600})
        commands = _commands()
        costs: dict[str, list[Cost]] = {name: [] for name in commands}
        for round_number in range(-1, rounds):  # the first one fills the file cache
            for name, (code, *arguments) in commands.items():
                cost = measure([str(argument) for argument in arguments], folder)
                if cost.exit_code != code:
                    raise RunError(f"{name} ended with {cost.exit_code}; expected {code}; run it by hand to see why")
                if round_number >= 0:
                    costs[name].append(cost)
    timed = [Timed(name=name, items=1, seconds=tuple(cost.seconds for cost in each)) for name, each in costs.items()]
    for row in result.add(timed):
        each = costs[row["variant"]]
        row["cpu_seconds"] = median_and_range([cost.cpu_s for cost in each])
        row["peak_mb"] = median_and_range([cost.peak_mb for cost in each])
    result.write(results)


def measure(arguments: Sequence[str], folder: Path) -> Cost:
    """What `python ARGUMENTS…` costs in a folder."""
    command = [sys.executable, "-I", "-S", "-c", MEASURE, sys.executable, "-P", *arguments]
    done = subprocess.run(command, cwd=folder, env=module_environment(), capture_output=True, text=True, check=True)
    seconds, cpu_s, peak_mb, code = json.loads(done.stdout)
    return Cost(seconds=seconds, cpu_s=cpu_s, peak_mb=peak_mb, exit_code=code)


def _commands() -> dict[str, tuple[object, ...]]:
    """Name -> exit code and arguments of Python."""
    lines = {
        "udkd --help": 0,
        "udkd --version": 0,
        "udkd trian": 2,
        "udkd recipe list": 0,
        "udkd recipe show imagenet100-paper": 0,
        "udkd train smoke --data data --out run --set train.epoch=3": 1,
        "udkd cache info cache": 0,
        "udkd cache info cache --data data": 0,
        "udkd data info data": 0,
    }
    programs = ("pass", "import udkd", "import udkd; udkd.load_recipe('smoke')")
    commands: dict[str, tuple[object, ...]] = {f"python -c {program!r}": (0, "-c", program) for program in programs}
    commands |= {line: (code, "-m", *line.split()) for line, code in lines.items()}
    return commands | {"python -c 'import torch'": (0, "-c", "import torch")}


def _prepare(folder: Path) -> None:
    """A dataset of 1,600 small images, and a cache of random logits for it."""
    synth(folder / "images", classes=10, images=1600, val_images=200, seed=0, workers=2)
    convert(folder / "images", folder / "data", side=64, formats="none")
    dataset = DatasetFolder.open(folder / "data")
    logits = np.random.default_rng(0).normal(size=(len(dataset.train.ids), len(dataset.classes)))
    np.save(folder / "logits.npy", logits.astype(np.float32))
    import_cache(folder / "cache", dataset=dataset, logits=folder / "logits.npy", recipe=load_recipe("smoke"))
