"""The result of one benchmark as a JSON file: expectation, machine, measurements."""

import datetime
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer

from benchmarks.common.timing import Timed, median_and_range
from udkd.utils.environment import environment
from udkd.utils.files import write_json
from udkd.utils.terminal import err

FORMAT = 1
RESULTS = Path(__file__).resolve().parents[1] / "results"

ResultsOption = Annotated[Path, typer.Option("--results", help="Folder for the JSON and the figures.")]
RoundsOption = Annotated[int, typer.Option("--rounds", min=1, help="Repetitions, over which medians and ranges are taken.")]


@dataclass
class BenchmarkResult:
    """Collects measurements while a benchmark runs; `write` stores them in a file.

    rows: one per timed variant. facts: all other measurements. settings: the benchmark's options.
    """

    name: str
    expectation: str
    device: torch.device
    settings: Mapping[str, Any]
    machine: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def begin(cls, name: str, expectation: str, device: torch.device, settings: Mapping[str, Any]) -> "BenchmarkResult":
        """Print the expectation before anything is measured, and record the state of the machine."""
        err.print(f"expected: {' '.join(expectation.split())}")
        return cls(name, " ".join(expectation.split()), device, dict(settings), machine(device))

    def add(self, timed: Sequence[Timed], *, baseline: str | None = None, **labels: Any) -> list[dict[str, Any]]:
        """Add one row per variant: seconds per call, items per second, and the ratio to `baseline` within each round.

        A ratio is of seconds per item: 0.5 is twice as fast. labels: what distinguishes these rows, such as batch=64.
        """
        base = next((variant for variant in timed if variant.name == baseline), None)
        assert baseline is None or base is not None, f"no variant is called {baseline}"
        rows = []
        for variant in timed:
            seconds = median_and_range(variant.seconds)
            row = labels | {"variant": variant.name, "seconds": seconds, "items_per_s": variant.items_per_s}
            if base is not None:
                row |= {"baseline": baseline, "ratio": median_and_range(variant.ratios(base))}
            rows.append(row)
            _print_row(row, labels)
        self.rows += rows
        return rows

    def add_fact(self, name: str, value: Any) -> None:
        """Store a measurement under a name, and print it."""
        self.facts[name] = value
        err.print(f"{name}: {value}")

    @property
    def slug(self) -> str:
        """The machine in a file name, such as "nvidia-h200" or "2-cores-intel-xeon-platinum"."""
        return self.machine["slug"]  # type: ignore[no-any-return]

    def write(self, folder: Path) -> Path:
        """Write NAME-<hardware>.json into `folder`, replacing an older one; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        self.machine["load_average_at_end"] = os.getloadavg()[0]
        path = folder / f"{self.name}-{self.slug}.json"
        values = {key: getattr(self, key) for key in ("name", "expectation", "settings", "machine", "rows", "facts")}
        write_json(path, {"format": FORMAT} | values)
        err.print(f"written: {path}")
        return path


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware, versions, commit, date, and the load average, to be compared with the number of cores."""
    info = environment(device)
    hardware = info["hardware"] | {"memory_gb": round(psutil.virtual_memory().total / 1e9, 1), "type": device.type}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        hardware |= {"gpu_memory_gb": round(properties.total_memory / 1e9, 1), "processors": properties.multi_processor_count}
        info["versions"] |= {"cuda": torch.version.cuda}
    name = re.sub(r"\((?:r|tm)\)|@.*|\bcpu\b|processor", " ", hardware["device"].lower())
    slug_parts = re.findall(r"[a-z0-9.]+", name if device.type == "cuda" else f"{hardware['cores']} cores {name}")
    return {
        "slug": "-".join(slug_parts).replace(".", "-"),
        "hardware": hardware,
        "versions": info["versions"],
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average_at_start": os.getloadavg()[0],
    }


def _commit() -> str:
    """This checkout's commit, with a plus sign for uncommitted changes; without git the value of UDKD_COMMIT, or "unknown"."""
    here = Path(__file__).parent
    try:
        commit, changes = [
            subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
            for args in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("UDKD_COMMIT", "unknown")
    return commit + ("+" if changes else "")


def _print_row(row: Mapping[str, Any], labels: Mapping[str, Any]) -> None:
    """Print a row as one line of progress."""
    text = " ".join(f"{name}={value}" for name, value in labels.items())
    seconds = row["seconds"]
    line = f"{text:32} {row['variant']:28} {1e3 * seconds['median']:10.3f} ms  {row['items_per_s']:12,.0f}/s"
    if "ratio" in row:
        ratio = row["ratio"]
        line += f"   {ratio['median']:.3f} of {row['baseline']} ({ratio['min']:.3f} to {ratio['max']:.3f})"
    err.print(line)
