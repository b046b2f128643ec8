"""Writes the table of docs/speed.md from the results: one column per machine, "not measured yet" where a result is missing."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.common.results import FORMAT, RESULTS
from benchmarks.cost import PAPER_RATIO
from benchmarks.step import SHARE
from udkd.utils.errors import DataError
from udkd.utils.files import write_text
from udkd.utils.terminal import err

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
NOT_MEASURED = "not measured yet"

RENAMED = {"plain": "baseline"}
"""Name in older results -> name today."""

Results = Mapping[str, Mapping[str, Any]]
"""Benchmark -> its JSON, all of one machine."""


def main(
    page: Annotated[Path, typer.Option("--page", help="File that contains the two markers.")] = Path("docs/speed.md"),
    results: Annotated[Path, typer.Option("--results", help="Folder of result files.")] = RESULTS,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail if the file is out of date.")] = False,
) -> None:
    """Write the table between the page's two markers."""
    if not page.is_file():
        raise DataError(f"{page} is not a file; expected a text file with the line {BEGIN}; name one with --page")
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise DataError(f"{page} lacks its markers; expected one line {BEGIN} and, below, one line {END}; add them")
    before, after = text[: text.index(BEGIN)], text[text.index(END) + len(END) :]
    new = f"{before}{BEGIN}\n{table(load(results))}{END}{after}"
    if check and new != text:
        raise DataError(f"{page} differs from the results in {results}; expected the same; run python -m benchmarks report")
    if not check:
        write_text(page, new)
        err.print(f"table written into {page}")


def load(folder: Path) -> dict[str, Results]:
    """Machine -> benchmark -> result. Results of a renamed benchmark count for its new name."""
    machines: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            value = json.loads(path.read_text())
            slug, name, version = value["machine"]["slug"], value["name"], value["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a benchmark result ({error}); expected a benchmark's JSON; delete it") from None
        if version != FORMAT:
            raise DataError(f"{path} has format {version}; expected {FORMAT}; measure again")
        machines.setdefault(slug, {}).setdefault(RENAMED.get(name, name), value)
    return dict(machines)


def table(machines: Mapping[str, Results]) -> str:
    """The table in Markdown, GPUs first. Rows that no machine has measured are listed below it instead."""
    columns = sorted(machines.items(), key=lambda entry: (_device_type(entry[1]) != "cuda", entry[0]))
    header = ["", "the paper", *(_title(results) for _, results in columns)]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---|" * (len(header) - 1)]
    missing = []
    for label, paper, read in TABLE_ROWS:
        cells = [_cell(read, results) for _, results in columns]
        if set(cells) <= {NOT_MEASURED}:
            missing.append(label)
        else:
            lines.append("| " + " | ".join([label, paper, *cells]) + " |")
    return "\n".join(lines) + "\n\n" + "\n".join(_notes(columns, missing)) + "\n"


def _title(results: Results) -> str:
    hardware = next(iter(results.values()))["machine"]["hardware"]
    return hardware["device"] if hardware["type"] == "cuda" else f"{hardware['cores']} cores, {hardware['device']}"


def _device_type(results: Results) -> str:
    return str(next(iter(results.values()))["machine"]["hardware"]["type"])


def _notes(columns: list[tuple[str, Results]], missing: list[str]) -> list[str]:
    lines = [
        "Medians of the rounds; ratios are taken within each round. Hours are projected from images/s, validation not counted."
    ]
    if not any(_device_type(results) == "cuda" for _, results in columns):
        lines.append("No GPU has been measured yet; `scripts/gpu.sh bench 540` adds its column.")
    if missing:
        lines.append(f"No machine has measured yet: {'; '.join(missing)}.")
    lines.append("")
    for slug, results in columns:
        for result in sorted(results.values(), key=lambda result: result["name"]):
            machine = result["machine"]
            load = f", load {machine['load_average_at_start']:.1f}" if machine["hardware"]["type"] == "cpu" else ""
            versions = machine["versions"]
            lines.append(
                f"- `{result['name']}-{slug}.json`: {machine['date'][:10]}, commit {machine['commit']}, "
                f"PyTorch {versions['torch']}{load}."
            )
    return lines


def _cell(read: Callable[[Results], str | None], results: Results) -> str:
    try:
        return read(results) or NOT_MEASURED
    except (KeyError, IndexError):
        return NOT_MEASURED


def _point(row: Mapping[str, Any]) -> str:
    return f"{row['px']} px, batch {row['batch']}"


def _speed(benchmark: str, variant: str) -> Callable[[Results], str | None]:
    """images/s of a variant at each of its settings."""

    def read(results: Results) -> str | None:
        rows = [row for row in results[benchmark]["rows"] if row["variant"] == variant]
        return "; ".join(f"{row['items_per_s']:,.0f} ({_point(row)})" for row in rows)

    return read


def _facts(benchmark: str, start: str, key: str, template: str) -> Callable[[Results], str | None]:
    """Entry `key` of every fact whose name starts with `start`, formatted by `template`."""

    def read(results: Results) -> str | None:
        facts = {name: value for name, value in results[benchmark]["facts"].items() if name.startswith(start) and key in value}
        return "; ".join(f"{template.format(value[key])} ({name.removeprefix(start).strip()})" for name, value in facts.items())

    return read


def _efficiency(backend: str) -> Callable[[Results], str | None]:
    def read(results: Results) -> str | None:
        row = results["pipeline"]["rows"][0]
        return f"{results['pipeline']['facts'][f'efficiency of {backend}']:.2f} ({_point(row)})"

    return read


def _speedup(benchmark: str, variant: str, **labels: Any) -> Callable[[Results], str | None]:
    """How many times as fast as its baseline a variant is."""

    def read(results: Results) -> str | None:
        rows = [row for row in results[benchmark]["rows"] if row["variant"] == variant]
        rows = [row for row in rows if all(row.get(name) == value for name, value in labels.items())]
        return "; ".join(f"{1 / row['ratio']['median']:.1f}" + (f" ({_point(row)})" if "px" in row else "") for row in rows)

    return read


def _shares() -> Callable[[Results], str | None]:
    """The percentage of a step's time that each loss takes."""

    def read(results: Results) -> str | None:
        facts = {name: value for name, value in results["step"]["facts"].items() if name.startswith(SHARE)}
        cells = {name: ", ".join(f"{100 * part:.1f} % {loss}" for loss, part in value.items()) for name, value in facts.items()}
        return "; ".join(f"{cell} ({name.removeprefix(SHARE).strip()})" for name, cell in cells.items())

    return read


def _ratio(benchmark: str, name: str) -> Callable[[Results], str | None]:
    """Seconds per image relative to the baseline's, at each of a variant's settings."""

    def read(results: Results) -> str | None:
        rows = [row for row in results[benchmark]["rows"] if row["variant"] == name]
        return "; ".join(f"{row['ratio']['median']:.2f} ({_point(row)})" for row in rows)

    return read


def _processes(key: str) -> Callable[[Results], str | None]:
    """A fraction of every measured number of processes and slices but the plain step's."""

    def read(results: Results) -> str | None:
        rows = [row for row in results["ranks"]["rows"] if key in row and "exchange_ms" in row]
        return "; ".join(f"{row[key]['median']:.2f} ({row['variant']})" for row in rows)

    return read


TABLE_ROWS: tuple[tuple[str, str, Callable[[Results], str | None]], ...] = (
    ("two students from the cache, images/s", "146 (12.36 h)", _speed("cost", "two students, cached teacher")),
    (
        "cached dual / live single",
        f"{PAPER_RATIO:.2f} (live)",
        _facts("cost", "ratios at", "cached dual / live single", "{:.2f}"),
    ),
    (
        "the same, the live teacher's batch norm folded",
        "",
        _facts("cost", "ratios at", "cached dual / live single with a folded teacher", "{:.2f}"),
    ),
    (
        "cached dual / live single where every layer ran at its bound",
        "",
        _facts("cost", "floor at", "cached dual / live single", "{:.2f}"),
    ),
    (
        "live dual / live single",
        f"{PAPER_RATIO:.2f}",
        _facts("cost", "ratios at", "live dual / live single", "{:.2f}"),
    ),
    ("cached dual / cached single", "", _facts("cost", "ratios at", "cached dual / cached single", "{:.2f}")),
    (
        "cached dual / sum of the cached singles",
        "0.82 (live)",
        _facts("cost", "ratios at", "cached dual / sum of the cached singles", "{:.2f}"),
    ),
    (
        "hours for 50 epochs x 130,000, two students, cache included",
        "12.36",
        _facts("cost", "hours at", "two students, cached teacher", "{:.2f}"),
    ),
    ("hours for one, live teacher", "7.58", _facts("cost", "hours at", "ResNet-18, live teacher", "{:.2f}")),
    ("training over a constant batch: resident", "", _efficiency("resident")),
    ("training over a constant batch: folder", "", _efficiency("folder")),
    ("times as fast as the plain script", "", _speedup("baseline", "ours, cached teacher")),
    (
        "compiled loss, times as fast as eager (batch 256, 100 classes)",
        "",
        _speedup("loss", "compiled", batch=256, classes=100),
    ),
    ("fused loss, times as fast as eager (batch 256, 100 classes)", "", _speedup("loss", "fused", batch=256, classes=100)),
    ("the loss's share of a step", "", _shares()),
    ("augmentation, times as fast as torchvision (canvas 256)", "", _speedup("augment", "ours", side=256)),
    ("the same, compiled", "", _speedup("augment", "ours, compiled", side=256)),
    (
        "RandAugment(2, 9) of pixels, times as fast as torchvision",
        "",
        _speedup("augment", "ours", operation="RandAugment(2, 9)"),
    ),
    ("an image's cost with 100,000 samples over that with 1,000", "", _ratio("scale", "100000 samples")),
    ("two students by batch, images/s", "", _speed("scale", "batch")),
    ("images/s of several processes over those of one", "", _processes("speedup")),
    ("the same, over as many without exchange", "", _processes("efficiency")),
    ("share of a step that is exchange", "", _processes("share_of_step")),
    ("step without the cache", "", _ratio("step", "cache off: live teacher")),
    ("step without the CUDA graph", "", _ratio("step", "CUDA graph off")),
    ("step without channels_last", "", _ratio("step", "channels_last off")),
)
