"""The product's own step on made-up canvases that lie on the device: what is timed is the step, not a disk.

Letters: N samples, C classes, S canvas side.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from udkd.augment.apply import ViewTable
from udkd.augment.views import draw
from udkd.config.recipe import Recipe, load_recipe
from udkd.data.batch import Batch
from udkd.losses.sample_weight import entropy_weight
from udkd.models.build import build
from udkd.models.module_swaps import fold_batch_norm
from udkd.teacher.cache.tables import DeviceTable, TargetTable
from udkd.teacher.ensemble import TeacherEnsemble
from udkd.teacher.frozen import FrozenTeacher
from udkd.teacher.sources import LiveTargets, NoTargets
from udkd.teacher.target import TargetSource, TeacherTargets
from udkd.teacher.targets import pack
from udkd.training.build_step import build_step
from udkd.training.metrics import TrainMetrics, recorded_rows
from udkd.training.runners import CudaGraphCapture, ResidentRunner, StepRunner, StreamingRunner
from udkd.training.schedule import EpochSchedule
from udkd.training.student import make_students
from udkd.utils.compile import compiled
from udkd.utils.environment import convolution_search

CLASSES = 100
RESNET, MOBILENET, TEACHER = "resnet18", "mobilenet_v2", "resnet50"


@dataclass(frozen=True)
class TimedStep:
    """A step ready to be timed. run: takes one step of `batch` images."""

    run: Callable[[], object]
    batch: int


def paper_recipe(device: torch.device, *settings: str, px: int, batch: int) -> Recipe:
    """The paper's recipe with all of ours on: on a GPU bfloat16, three graphs, recorded; on a CPU the loss compiled."""
    ours = (
        [
            'train.precision="bfloat16"',
            'teacher.precision="bfloat16"',
            'train.compile="all"',
            'train.input="resident"',
            "train.cuda_graph=true",
        ]
        if device.type == "cuda"
        else ['train.compile="loss"']
    )
    sizes = [f"views.size_px={px}", f"views.resize_px={px}", f"evaluation.resize_px={px * 8 // 7}"]
    return load_recipe(
        "imagenet100-paper", [*sizes, f"train.batch_size={batch}", f"teacher.batch_size={batch}", *ours, *settings]
    )


def canvases(count: int, side: int, device: torch.device, seed: int = 0) -> Batch:
    """`count` canvases of smooth colour with grain: uint8 [N, S, S, 3], drawn on the device."""
    generator = torch.Generator(device=device).manual_seed(seed)
    canvas_NSS3 = torch.empty(count, side, side, 3, dtype=torch.uint8, device=device)
    for start in range(0, count, 1024):
        part = canvas_NSS3[start : start + 1024]
        coarse = torch.rand(len(part), 3, 4, 4, generator=generator, device=device)
        smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").permute(0, 2, 3, 1)
        grain = torch.rand(len(part), side, side, 1, generator=generator, device=device)
        part.copy_(smooth * 215 + grain * 40)
    labels_N = torch.randint(0, CLASSES, (count,), generator=generator, device=device)
    return Batch(ids=torch.arange(count, device=device), canvas=canvas_NSS3, labels=labels_N)


def make(
    recipe: Recipe, rows: Batch, device: torch.device, *, targets: TargetTable | None = None, architecture: str = TEACHER
) -> TimedStep:
    """A step of `recipe` over `rows`, again and again. A live teacher is an untrained one: it costs what a trained one does.

    targets: of a cached teacher; made up where they are not given.
    """
    lessons = _lessons(recipe, rows, device, targets, architecture)
    students = make_students(recipe, CLASSES, device)
    step = build_step(recipe, recipe.views.spec, students, lessons, device)
    tally = TrainMetrics.empty(len(students), device, recorded_rows(recipe))
    batch, count = recipe.train.batch_size, len(rows.labels)
    steps = count // batch
    assert steps, f"{count} samples for a batch of {batch}"
    ids = np.arange(count, dtype=np.int64)
    plan = EpochSchedule.of(recipe, 0, steps, 0, view_table(recipe, count, rows.canvas.shape[1], device), device)
    drive: StepRunner
    if recipe.train.input == "stream":
        drive = StreamingRunner(step, InMemory(rows), batch)
    else:
        drive = ResidentRunner(step, rows, batch, tally, capture=recorder(device) if recipe.train.cuda_graph else None)

    def endless() -> Iterator[int]:
        order = np.random.default_rng(0).permutation(ids)[: steps * batch]
        while True:
            tally.clear()
            yield from drive.epoch(order, plan, tally)

    taken = endless()

    def take() -> int:
        with convolution_search(recipe.perf.cudnn_benchmark):  # the plain script asks for it in the same process
            return next(taken)

    return TimedStep(take, batch)


@cache
def recorder(device: torch.device) -> CudaGraphCapture:
    """One for a process: the memory of all variants' graphs is that of the largest, not their sum."""
    return CudaGraphCapture(device)


def view_table(recipe: Recipe, count: int, side: int, device: torch.device) -> ViewTable:
    """The training views of `count` samples whose originals were ImageNet's commonest size."""
    sizes = np.tile(np.array([375, 500, side, side]), (count, 1))
    return ViewTable.of(draw(recipe.views.spec, 0, 0, np.arange(count, dtype=np.int64), sizes), device)


def made_up_targets(count: int, device: torch.device) -> DeviceTable:
    """Targets as a cache holds them, of a made-up teacher: a lookup costs the same whatever the numbers."""
    generator = torch.Generator(device=device).manual_seed(1)
    packed = pack(torch.rand(count, CLASSES, generator=generator, device=device) * 16)
    return DeviceTable({"logits": packed.logits}, entropy_weight(packed.entropy, CLASSES), CLASSES)


def frozen(recipe: Recipe, device: torch.device, architecture: str = TEACHER, *, compile: bool | None = None) -> FrozenTeacher:
    """An untrained teacher as the recipe wants it run. compile: None as the students are."""
    model = build(architecture, CLASSES, image_px=recipe.views.size_px, seed=0).eval().requires_grad_(False)
    if recipe.teacher.fold_bn:
        model = fold_batch_norm(model)
    model = model.to(device).to(memory_format=torch.channels_last)
    compile = recipe.train.compile == "all" if compile is None else compile
    return FrozenTeacher(
        model=compiled(model) if compile else model,
        architecture=architecture,
        weights_sha256="",
        num_classes=CLASSES,
        device=device,
        batch=recipe.teacher.batch_size,
        precision=recipe.teacher.precision,
        channels_last=True,
        folded=recipe.teacher.fold_bn,
        compiled=compile,
    )


class InMemory:
    """A backend of rows that lie on the device: what a step costs where images cost nothing."""

    def __init__(self, rows: Batch) -> None:
        self.num_samples = len(rows.labels)
        self._rows = rows

    def epoch(self, order: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """See udkd.data.batch.Backend."""
        order_E = torch.from_numpy(order).to(self._rows.labels.device)  # once: each copy makes the host wait
        for start in range(0, len(order), batch_size):
            ids_B = order_E[start : start + batch_size]
            yield Batch(ids=ids_B, canvas=self._rows.canvas[ids_B], labels=self._rows.labels[ids_B])

    def close(self) -> None:
        """Nothing is held."""

    def describe(self) -> str:
        """Made up."""
        return "made up"


class TableLessons:
    """Cached targets without a folder."""

    num_features = 0

    def __init__(self, table: TargetTable) -> None:
        self._table = table

    def load(self, view: int) -> None:
        """Nothing to load."""

    def __call__(self, batch: Batch, x_BCHW: Tensor, view: int) -> TeacherTargets:
        logits_BC, weight_B = self._table.lookup(batch.ids)
        return TeacherTargets(logits=logits_BC, weight=weight_B)


def _lessons(recipe: Recipe, rows: Batch, device: torch.device, targets: TargetTable | None, architecture: str) -> TargetSource:
    if recipe.loss.beta == 0:
        return NoTargets()
    if recipe.teacher.source == "cache":
        return TableLessons(targets or made_up_targets(len(rows.labels), device))
    panel = TeacherEnsemble(
        members=(frozen(recipe, device, architecture),), estimator=recipe.teacher.estimation, storage=recipe.teacher.stored
    )
    return LiveTargets(panel, None)  # what the paper's does: it sees the students' view
