"""A study that only measures networks: parameters, bytes on disk, latency at batch size 1. Nothing is trained.

Letters: C classes.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from udkd.data.dataset import DatasetFolder
from udkd.models.build import build, num_parameters, parameter_count
from udkd.models.state_dicts import plain_tensors
from udkd.report import style
from udkd.report.page import Facts, Note, Page, PageSection, Row, Table, render
from udkd.report.text import comma_list
from udkd.study.plan import StudyPlan
from udkd.study.spec import Study
from udkd.study.tables import csv_text
from udkd.training.make_teacher import IMAGENET_CLASSES
from udkd.utils.environment import environment, set_threads
from udkd.utils.files import write_json, write_text
from udkd.utils.progress import Observer

FORMAT, VERSION = "udkd-networks", 1

REPEATS, WARM_UP = 30, 5


@dataclass(frozen=True, kw_only=True)
class NetworkMeasurement:
    """A network's size and speed.

    parameters, parameters_1000: with the dataset's C classes, and with 1,000. bytes: of the weights as safetensors, with C
    classes. latency_ms: the median time of one image's forward pass on the CPU over REPEATS; low_ms, high_ms: the quartiles.
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
    """Measure every arm's first student on this CPU; write study.json, table.csv and the page. Returns the page's path too."""
    dataset = DatasetFolder.open(data)
    set_threads(plan.base.train.threads)
    measured = []
    for arm in plan.arms:
        recipe = plan.recipe_of(arm.name)
        observer.note(f"{arm.name}: {recipe.students[0].architecture} at {recipe.views.size_px} px")
        measured.append(_measure(arm.name, recipe.students[0].architecture, len(dataset.classes), recipe.views.size_px))
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "format": FORMAT,
        "version": VERSION,
        "study": plan.study.stored(),
        "classes": len(dataset.classes),
        "size_px": plan.base.views.size_px,
        "machine": {name: value for name, value in environment(torch.device("cpu")).items() if name != "command"},
        "networks": [asdict(network) for network in measured],
    }
    write_json(folder / "study.json", values)
    rows = [[_text(value) for value in asdict(network).values()] for network in measured]
    write_text(folder / "table.csv", csv_text(list(asdict(measured[0])), rows))
    return measured, write_page(folder, values)


def write_page(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write the page of a study.json. Returns its path."""
    path = folder / "index.html"
    write_text(path, render(_page(values), style.css()))
    return path


def parameter_ratios(study: Study, measured: Sequence[NetworkMeasurement]) -> list[float]:
    """The baseline network's number of parameters over each network's, with 1,000 classes, as in the paper."""
    base = next((network for network in measured if network.arm in study.baseline), measured[0])
    return [base.parameters_1000 / network.parameters_1000 for network in measured]


def _measure(arm: str, architecture: str, num_classes: int, size_px: int) -> NetworkMeasurement:
    model = build(architecture, num_classes, image_px=size_px, seed=0).eval()
    times = sorted(_latencies_ms(model, size_px))
    return NetworkMeasurement(
        arm=arm,
        architecture=architecture,
        parameters=num_parameters(model),
        parameters_1000=parameter_count(architecture, IMAGENET_CLASSES),
        bytes=len(save(plain_tensors(model.state_dict()))),
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
    """A sentence that names the network of the lowest latency; several where their quartiles overlap."""
    first = min(measured, key=lambda network: network.latency_ms)
    tied = [network.arm for network in measured if network.low_ms <= first.high_ms]
    if len(tied) == 1:
        return f"{first.arm} is the fastest, {first.latency_ms:.1f} ms per image."
    return f"{comma_list(tied)} are equally fast, {first.latency_ms:.1f} ms per image: their quartiles overlap."


def _page(values: Mapping[str, Any]) -> Page:
    study, measured = Study.of_stored(values["study"]), [NetworkMeasurement(**network) for network in values["networks"]]
    rows = [
        Row(
            label=network.arm,
            cells=(
                f"{network.parameters_1000 / 1e6:.1f} M",
                f"{ratio:.2f}×",
                f"{network.parameters / 1e6:.2f} M",
                f"{network.bytes / 1e6:.1f}",
                f"{network.latency_ms:.2f}",
                f"{network.low_ms:.2f} to {network.high_ms:.2f}",
            ),
        )
        for network, ratio in zip(measured, parameter_ratios(study, measured), strict=True)
    ]
    classes, size_px, hardware = values["classes"], values["size_px"], values["machine"]["hardware"]
    table = Table(
        name="networks",
        title="Size and latency",
        head=("", "parameters", "fewer", f"with {classes} classes", "MB on disk", "latency, ms", "quartiles"),
        rows=rows,
        caption=f"Parameters with 1,000 classes, as in the paper. MB: float32 weights with {classes} classes. Latency: one "
        f"image of {size_px} px, eager PyTorch on this CPU, {hardware['threads']} threads, the median of {REPEATS} passes "
        f"after {WARM_UP} warm-up passes.",
    )
    facts = [(name, ", ".join(f"{key} {value}" for key, value in part.items())) for name, part in values["machine"].items()]
    return Page(
        title=study.title,
        subtitle=f"{comma_list([network.arm for network in measured])} · {size_px} px · {hardware['device']}",
        lead=f"{study.question} {fastest_text(measured)}".strip(),
        sections=[
            PageSection(anchor="networks", title="Result", blocks=[table, *(Note(text=note) for note in study.notes)]),
            PageSection(
                anchor="reproduce",
                title="How to reproduce it",
                blocks=[Facts(title="Hardware, versions", facts=facts, open=True)],
            ),
        ],
        footer="Written by udkd; every number is in study.json, beside this page.",
    )
