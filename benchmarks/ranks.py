"""Training in slices by several processes: what the exchange of gradients costs, and how images/s grow with the processes."""

import json
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common.figures import MARKERS, Palette, bars, draw
from benchmarks.common.rank_process import ADDING, ALL_REDUCE, ALONE, BETWEEN, STEP, WITHIN, RankJob, command
from benchmarks.common.results import RESULTS, BenchmarkResult, ResultsOption, RoundsOption
from benchmarks.common.timing import Timed, median_and_range
from udkd.utils.environment import choose_device
from udkd.utils.errors import ConfigError, ProcessGroupError
from udkd.utils.operating_system import available_cores
from udkd.utils.terminal import DeviceOption, err

EXPECTATION = """The vector of both students has 54.5 MB with 100 classes, and a process sends 2 (W - 1) / W of it, as
all_reduce does: 54.5 MB for two. On two CPU cores with Gloo the exchange between two processes takes 60 to 150 ms, 1.5 times
all_reduce of the same vector; packing takes 15 ms a slice and adding 10 ms. A slice of 32 images at 64 px takes 0.6 s on a
core, so the exchange is 15 to 25 % of a step with one slice a process and 5 to 10 % with four. Eight slices in one process cost
5 to 10 % over one. Before the first run, a speed-up of 1.5 to 1.7 was expected of two processes with 2 slices, and of 1.6 to
1.8 with 8. That run gave 1.3 and 1.5, with an exchange of 8 and 3 %, so two processes should slow each other without exchange
too, to a speed-up of 1.4 to 1.6; the efficiency should be 0.9 with 2 slices and 0.97 with 8. The model says
93 % for 8 H200 at 64 images each."""

NO_EXCHANGE = ", no exchange"
PLAIN = RankJob(processes=1, slices=1, batch=0, px=0, steps=0, device="").name

STEP_IMAGE_S, OPTIMIZER_S = 105.9e-6, 0.1e-3
WIRES = {"within a machine": 250e9, "between machines": 40e9, "25 Gbit Ethernet": 25e9 / 8 / 8}
"""Bytes/s of a GPU; the Ethernet of a machine is shared by its 8 GPUs."""
LATENCY_S, MEMORY_BYTES_PER_S, PASSES = 0.1e-3, 4.8e12, 3
ASSUMPTIONS = (
    f"a step takes {1e6 * STEP_IMAGE_S:.1f} us an image and {1e3 * OPTIMIZER_S:.1f} ms: H200, ResNet-18 and MobileNetV2, "
    "224 px, bfloat16, compiled; an estimate, not a measurement",
    "one slice a GPU; no overlap of computation and exchange; data always ready",
    "NVLink: 250 GB/s a GPU, where nccl-tests reports 370 for large sizes; between machines 40 GB/s a GPU (NDR 400), or one "
    "25 Gbit Ethernet for 8 GPUs; 0.1 ms latency for each level",
    "machines of 8 GPUs; the sum is taken within each first, and 1/8 of the vector travels between them",
    "3 passes over the vector that read and write it at 4.8 TB/s",
)


def main(
    processes: Annotated[
        list[int] | None,
        typer.Option("--processes", min=1, help="Powers of two; repeatable. Default: to the number of GPUs or cores."),
    ] = None,
    slices: Annotated[int, typer.Option("--slices", min=1, help="Measured for every number of processes that divides it.")] = 8,
    batch: Annotated[int, typer.Option("--batch", min=0, help="Images a slice; 0: 128 on a GPU, else 32.")] = 0,
    px: Annotated[int, typer.Option("--px", min=0, help="Side of the views; 0: 224 on a GPU, else 64.")] = 0,
    steps: Annotated[int, typer.Option("--steps", min=0, help="Steps a timed span; 0: 50 on a GPU, else 1.")] = 0,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key; repeatable.")] = None,
    rounds: RoundsOption = 5,
    device: DeviceOption = "auto",
    results: ResultsOption = RESULTS,
) -> None:
    """Time the two students' step for 1, 2, 4, ... processes of torchrun: with a slice for each, and with a fixed number."""
    dev = choose_device(device)
    gpu = dev.type == "cuda"
    batch, px, steps = batch or (128 if gpu else 32), px or (224 if gpu else 64), steps or (50 if gpu else 1)
    processes = sorted({1, *(processes or powers_of_two(torch.cuda.device_count() if gpu else available_cores()))})
    if any(count & (count - 1) for count in processes):
        raise ConfigError(f"--processes {', '.join(map(str, processes))}; expected powers of two, such as 1, 2, 4; change them")
    options = {"processes": processes, "slices": slices, "batch": batch, "px": px, "steps": steps, "set": settings or []}
    result = BenchmarkResult.begin("ranks", EXPECTATION, dev, options)
    jobs = [
        RankJob(
            processes=count,
            slices=each,
            batch=each * batch,
            px=px,
            steps=steps,
            device=dev.type,
            settings=tuple(settings or ()),
        )
        for count in processes
        for each in sorted({count, slices} if slices % count == 0 else {count})
    ]
    measured: dict[RankJob, list[dict[str, Any]]] = {job: [] for job in jobs}
    for round_index in range(rounds):  # torchrun starts anew, and each round starts with a different job
        for offset in range(len(jobs)):
            job = jobs[(round_index + offset) % len(jobs)]
            measured[job].append(run(job))
            err.print(f"{job.name}: {1e3 * statistics.median(measured[job][-1]['seconds'][STEP]):.0f} ms a step")
        result.rows = []
        add_rows(result, measured)
        vector_bytes = max(each[0].get("vector", 0) for each in measured.values())
        result.facts["model, not measured"] = model(vector_bytes or 54.5e6)
        result.write(results)
    draw(results, f"ranks-{result.slug}", lambda figure, palette: _plot(result, figure, palette), height=3.6)


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ... up to `limit`."""
    return [1 << power for power in range(max(1, limit).bit_length())]


def run(job: RankJob) -> dict[str, Any]:
    """Start a job's processes, and return what the first one measured. Raises ProcessGroupError where they fail."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "measured.json"
        code = subprocess.run(command(job, out), cwd=Path(__file__).parents[1]).returncode
        if code:
            raise ProcessGroupError(f"{job.name} ended with exit code {code}; expected 0; see the error above")
        return dict(json.loads(out.read_text()))


def add_rows(result: BenchmarkResult, measured: Mapping[RankJob, Sequence[Mapping[str, Any]]]) -> None:
    """A row for each job: a step beside that of one process with one slice of as many images, and its exchange.

    Several processes have a second row: the same step in all of them at once, with no exchange between them.
    speedup: images/s over those of one process with one slice. efficiency: over those of as many processes without exchange.
    exchange_ms: its parts, each timed by itself.
    """
    jobs = [(job, rounds, part) for job, rounds in measured.items() for part in (STEP, ALONE) if part in rounds[0]["seconds"]]
    timed = [
        Timed(
            name=job.name + (NO_EXCHANGE if part == ALONE else ""),
            items=job.batch,
            seconds=tuple(statistics.median(each["seconds"][part]) for each in rounds),
        )
        for job, rounds, part in jobs
    ]
    labels = {"px": result.settings["px"], "batch": result.settings["batch"]}
    for row, (job, rounds, part) in zip(result.add(timed, baseline=PLAIN, **labels), jobs, strict=True):
        row |= {"processes": job.processes, "slices": job.slices}
        row["speedup"] = median_and_range([1 / ratio for ratio in row["ratio"]["each"]])
        if job.slices == 1 or part == ALONE:
            continue
        if job.processes > 1:
            alone = [statistics.median(each["seconds"][ALONE]) for each in rounds]
            efficiency = [one / seconds for one, seconds in zip(alone, row["seconds"]["each"], strict=True)]
            row["efficiency"] = median_and_range(efficiency)
        parts = [exchange_parts({name: statistics.median(each) for name, each in one["seconds"].items()}) for one in rounds]
        row["exchange_ms"] = {name: median_and_range([1e3 * each[name] for each in parts]) for name in parts[0]}
        shares = [
            sum(each[name] for name in ("packing", "adding", "between processes") if name in each) / seconds
            for each, seconds in zip(parts, row["seconds"]["each"], strict=True)
        ]
        row["share_of_step"] = median_and_range(shares)
        if job.processes > 1:
            first, formula = rounds[0], 2 * (job.processes - 1) / job.processes * rounds[0]["vector"]
            row["bytes"] = {
                "vector": first["vector"],
                "2 (W - 1) / W of it": formula,
                "sent, by call": first["sent"],
                "sent, counted by the kernel": first["sent_by_tcp"],
            }
        err.print(f"{job.name}: speed-up {row['speedup']['median']:.2f}, exchange {row['share_of_step']['median']:.1%}")


def exchange_parts(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the parts of an exchange, from what was timed: adding was timed together with packing, and alone."""
    parts = {"packing": max(0.0, seconds[WITHIN] - seconds[ADDING]), "adding": seconds[ADDING]}
    if BETWEEN in seconds:
        parts |= {"between processes": seconds[BETWEEN], "all_reduce of the same vector": seconds[ALL_REDUCE]}
    return parts


def model(vector_bytes: float) -> dict[str, Any]:
    """Milliseconds, efficiency and images/s as ASSUMPTIONS give them, by number of GPUs, network and images a GPU."""
    estimates = []
    for machines, network in ((1, ""), (4, "between machines"), (4, "25 Gbit Ethernet")):
        exchange_s = modelled_exchange_s(vector_bytes, machines, WIRES.get(network, 0.0))
        for batch in (64, 128, 256):
            compute_s = batch * STEP_IMAGE_S + OPTIMIZER_S
            efficiency = compute_s / (compute_s + exchange_s)
            estimates.append(
                {
                    "gpus": 8 * machines,
                    "network": network or "within a machine",
                    "batch": batch,
                    "exchange_ms": 1e3 * exchange_s,
                    "efficiency": efficiency,
                    "images_per_s": 8 * machines * batch / (compute_s + exchange_s),
                }
            )
    return {"assumptions": list(ASSUMPTIONS), "vector_bytes": vector_bytes, "estimates": estimates}


def modelled_exchange_s(vector_bytes: float, machines: int, wire: float) -> float:
    """Seconds of an exchange by ASSUMPTIONS. wire: bytes/s of a GPU between the machines."""
    seconds = PASSES * 2 * vector_bytes / MEMORY_BYTES_PER_S
    seconds += LATENCY_S + 2 * 7 / 8 * vector_bytes / WIRES["within a machine"]
    if machines > 1:
        seconds += LATENCY_S + 2 * (machines - 1) / machines * vector_bytes / 8 / wire
    return seconds


def _plot(result: BenchmarkResult, figure: Figure, palette: Palette) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(5, 4))
    rows = result.rows
    spans = [(row["speedup"]["min"], row["speedup"]["max"]) for row in rows]
    values = [row["speedup"]["median"] for row in rows]
    names = [row["variant"].replace(NO_EXCHANGE, NO_EXCHANGE.replace(" ", "\n", 1)) for row in rows]
    bars(left, palette, names, values, unit="images/s over one process", spans=spans)
    left.set_title(f"measured: {result.settings['px']} px, {result.settings['batch']} images a slice")
    _plot_model(result.facts["model, not measured"]["estimates"], right, palette)


def _plot_model(estimates: Sequence[Mapping[str, Any]], axes: Axes, palette: Palette) -> None:
    kinds = list(dict.fromkeys((each["gpus"], each["network"]) for each in estimates))
    for index, (gpus, network) in enumerate(kinds):
        chosen = [each for each in estimates if (each["gpus"], each["network"]) == (gpus, network)]
        batches, values = [each["batch"] for each in chosen], [each["efficiency"] for each in chosen]
        axes.plot(batches, values, marker=MARKERS[index], color=palette.student(index), label=f"{gpus}, {network}")
    batches = sorted({each["batch"] for each in estimates})
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("images a GPU")
    axes.set_ylabel("efficiency")
    axes.set_title("a model of H200, not measured")
    axes.legend(title="GPUs, network", loc="center right", bbox_to_anchor=(1, 0.64), fontsize=8, title_fontsize=8)
