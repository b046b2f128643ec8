"""A study of networks alone: parameters, bytes on disk, latency at batch 1. Nothing is trained.

Letters: C classes.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from udkd.data.dataset import DatasetFolder
from udkd.models.build import build, num_parameters, size_of
from udkd.report import style
from udkd.report.page import Facts, Note, Page, Row, Section, Table, render
from udkd.report.text import comma_list
from udkd.study.plan import StudyPlan
from udkd.study.tables import csv_text
from udkd.utils.environment import environment, set_threads
from udkd.utils.files import write_json, write_text
from udkd.utils.progress import Observer

IMAGENET_CLASSES = 1000
REPEATS, WARM_UP = 30, 5


@dataclass(frozen=True, kw_only=True)
class NetworkMeasurement:
    """A network's size and speed.

    parameters, parameters_1000: with the data's C classes, and with 1,000. bytes: of its weights as safetensors, with C.
    latency_ms: seconds of one image's forward pass on the CPU, in ms: the median of REPEATS; low, high: the quartiles.
    """

    arm: str
    architecture: str
    parameters: int
    parameters_1000: int
    bytes: int
    latency_ms: float
    low_ms: float
    high_ms: float


def measure_networks(plan: StudyPlan, data: Path, folder: Path, observer: Observer) -> tuple[list[NetworkMeasurement], Path]:
    """Measure every arm's first student on this CPU and write study.json, table.csv and the page. Returns the page's path."""
    dataset = DatasetFolder.open(data)
    set_threads(plan.base.train.threads)
    measured = []
    for arm in plan.arms:
        recipe = plan.recipe_of(arm.name)
        observer.note(f"{arm.name}: {recipe.students[0].architecture} at {recipe.views.size_px} px")
        measured.append(_measure(arm.name, recipe.students[0].architecture, len(dataset.classes), recipe.views.size_px))
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "format": "udkd-networks",
        "version": 1,
        "study": plan.study.model_dump(mode="json"),
        "classes": len(dataset.classes),
        "size_px": plan.base.views.size_px,
        "machine": {name: value for name, value in environment(torch.device("cpu")).items() if name != "command"},
        "networks": [asdict(network) for network in measured],
    }
    write_json(folder / "study.json", values)
    rows = [[_text(value) for value in asdict(own).values()] for own in measured]
    write_text(folder / "table.csv", csv_text(list(asdict(measured[0])), rows))
    write_text(folder / "index.html", render(_page(plan, measured, values), style.css()))
    return measured, folder / "index.html"


def ratios(plan: StudyPlan, measured: Sequence[NetworkMeasurement]) -> list[float]:
    """How many times fewer parameters than the baseline's network, with 1,000 classes, as the paper counts."""
    base = next((own.parameters_1000 for own in measured if own.arm in plan.study.baseline), measured[0].parameters_1000)
    return [base / own.parameters_1000 for own in measured]


def _measure(arm: str, architecture: str, num_classes: int, size_px: int) -> NetworkMeasurement:
    model = build(architecture, num_classes, image_px=size_px, seed=0).eval()
    times = sorted(_latencies_ms(model, size_px))
    return NetworkMeasurement(
        arm=arm,
        architecture=architecture,
        parameters=num_parameters(model),
        parameters_1000=size_of(architecture, IMAGENET_CLASSES),
        bytes=len(save(model.state_dict())),
        latency_ms=median(times),
        low_ms=times[len(times) // 4],
        high_ms=times[-1 - len(times) // 4],
    )


def _text(value: float | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@torch.no_grad()
def _latencies_ms(model: nn.Module, size_px: int) -> list[float]:
    x_1CHW = torch.zeros(1, 3, size_px, size_px)
    times = []
    for repeat in range(WARM_UP + REPEATS):
        started = time.perf_counter()
        model(x_1CHW)
        if repeat >= WARM_UP:
            times.append(1000 * (time.perf_counter() - started))
    return times


def fastest_text(measured: Sequence[NetworkMeasurement]) -> str:
    """Which network answers first; several where their quartiles overlap."""
    first = min(measured, key=lambda own: own.latency_ms)
    even = [own.arm for own in measured if own.low_ms <= first.high_ms]
    if len(even) == 1:
        return f"{first.arm} is the quickest, {first.latency_ms:.1f} ms an image."
    return f"{comma_list(even)} are equally quick, {first.latency_ms:.1f} ms an image: their quartiles overlap."


def _page(plan: StudyPlan, measured: Sequence[NetworkMeasurement], values: dict[str, Any]) -> Page:
    rows = [
        Row(
            label=own.arm,
            cells=(
                f"{own.parameters_1000 / 1e6:.1f} M",
                f"{ratio:.2f}×",
                f"{own.parameters / 1e6:.2f} M",
                f"{own.bytes / 1e6:.1f}",
                f"{own.latency_ms:.2f}",
                f"{own.low_ms:.2f} to {own.high_ms:.2f}",
            ),
        )
        for own, ratio in zip(measured, ratios(plan, measured), strict=True)
    ]
    classes, size_px, hardware = values["classes"], values["size_px"], values["machine"]["hardware"]
    head = (
        "",
        "parameters",
        "fewer",
        f"with {classes} classes",
        "MB on disk",
        "latency, ms",
        "quartiles",
    )
    table = Table(
        name="networks",
        title="Size and latency",
        head=head,
        rows=rows,
        caption="Parameters as the paper counts them, with 1,000 classes. "
        f"MB are float32 weights of {classes} classes. Latency: one image of {size_px} px, eager PyTorch on this CPU, "
        f"{hardware['threads']} threads, the median of {REPEATS} passes after {WARM_UP} that do not count.",
    )
    facts = [(name, ", ".join(f"{key} {value}" for key, value in seen.items())) for name, seen in values["machine"].items()]
    return Page(
        title=plan.study.title,
        subtitle=f"{comma_list([own.arm for own in measured])} · {size_px} px · {hardware['device']}",
        lead=f"{plan.study.question} {fastest_text(measured)}".strip(),
        sections=[
            Section(anchor="networks", title="Result", blocks=[table, *(Note(text=note) for note in plan.study.notes)]),
            Section(
                anchor="making",
                title="How to make it again",
                blocks=[Facts(title="Hardware, versions", facts=facts, open=True)],
            ),
        ],
        footer="Written by udkd; study.json beside this page holds every number.",
    )
