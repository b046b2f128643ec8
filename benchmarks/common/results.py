"""The record of one benchmark: what was expected, on which machine, what came out; one JSON file."""

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

from benchmarks.common.timing import Timed, spread
from udkd.utils.environment import environment
from udkd.utils.files import write_json
from udkd.utils.terminal import err

FORMAT = 1
RESULTS = Path(__file__).resolve().parents[1] / "results"

ResultsOption = Annotated[Path, typer.Option("--results", help="Folder for the JSON and the figures.")]
RoundsOption = Annotated[int, typer.Option("--rounds", min=1, help="Repeats; medians and spreads are taken over them.")]


@dataclass
class BenchmarkResult:
    """Grows while a benchmark runs; `write` makes it a file.

    rows: one for each timed variant. facts: whatever else was found. settings: what the benchmark was asked to do.
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
        """Say what is expected, before anything is measured, and note the machine as it is now."""
        err.print(f"expected: {' '.join(expectation.split())}")
        return cls(name, " ".join(expectation.split()), device, dict(settings), machine(device))

    def add(self, timed: Sequence[Timed], *, baseline: str | None = None, **labels: Any) -> list[dict[str, Any]]:
        """One row for each variant: seconds a call, items a second, and the ratio to `baseline` within each round.

        A ratio is of seconds an item: 0.5 is twice as fast. labels: what tells these rows from others, such as batch=64.
        """
        base = next((one for one in timed if one.name == baseline), None)
        assert baseline is None or base is not None, f"no variant is called {baseline}"
        rows = []
        for one in timed:
            row = labels | {"variant": one.name, "seconds": spread(one.seconds), "items_per_s": one.items_per_s}
            if base is not None:
                row |= {"baseline": baseline, "ratio": spread(one.ratios(base))}
            rows.append(row)
            _say(row, labels)
        self.rows += rows
        return rows

    def put(self, name: str, value: Any) -> None:
        """Note a fact under a name."""
        self.facts[name] = value
        err.print(f"{name}: {value}")

    @property
    def slug(self) -> str:
        """The machine in a file name, such as "nvidia-h200" or "2-cores-intel-xeon-platinum"."""
        return self.machine["slug"]  # type: ignore[no-any-return]

    def write(self, folder: Path) -> Path:
        """Write NAME-<hardware>.json into `folder`, replacing an older one, and say where."""
        folder.mkdir(parents=True, exist_ok=True)
        self.machine["load_average_at_end"] = os.getloadavg()[0]
        path = folder / f"{self.name}-{self.slug}.json"
        values = {key: getattr(self, key) for key in ("name", "expectation", "settings", "machine", "rows", "facts")}
        write_json(path, {"format": FORMAT} | values)
        err.print(f"written: {path}")
        return path


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware, versions, commit and date. load_average: how busy others kept the processor (its cores stand beside it)."""
    known = environment(device)
    hardware = known["hardware"] | {"memory_gb": round(psutil.virtual_memory().total / 1e9, 1), "type": device.type}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        hardware |= {"gpu_memory_gb": round(properties.total_memory / 1e9, 1), "processors": properties.multi_processor_count}
        known["versions"] |= {"cuda": torch.version.cuda}
    name = re.sub(r"\((?:r|tm)\)|@.*|\bcpu\b|processor", " ", hardware["device"].lower())
    words = re.findall(r"[a-z0-9.]+", name if device.type == "cuda" else f"{hardware['cores']} cores {name}")
    return {
        "slug": "-".join(words).replace(".", "-"),
        "hardware": hardware,
        "versions": known["versions"],
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average_at_start": os.getloadavg()[0],
    }


def _commit() -> str:
    """The commit of this checkout, with a plus sign where files differ; outside one what UDKD_COMMIT says, or "unknown"."""
    here = Path(__file__).parent
    try:
        found = [
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
            for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("UDKD_COMMIT", "unknown")
    return found[0] + ("+" if found[1] else "")


def _say(row: Mapping[str, Any], labels: Mapping[str, Any]) -> None:
    """One line for whoever watches."""
    where = " ".join(f"{name}={value}" for name, value in labels.items())
    seconds = row["seconds"]
    line = f"{where:32} {row['variant']:28} {1e3 * seconds['median']:10.3f} ms  {row['items_per_s']:12,.0f}/s"
    if "ratio" in row:
        ratio = row["ratio"]
        line += f"   {ratio['median']:.3f} of {row['baseline']} ({ratio['min']:.3f} to {ratio['max']:.3f})"
    err.print(line)
