"""udkd's training step on synthetic canvases in device memory, so that only the step is timed, without a disk.

Letters: N samples, C classes, S canvas side.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from udkd.augment.apply import ViewTable
from udkd.augment.mixing import pairs_together, partners
from udkd.augment.preprocessing import NetworkInput
from udkd.augment.views import draw_views
from udkd.config.loading import load_recipe
from udkd.config.recipe import Recipe
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
from udkd.training.cuda_graph import CudaGraphCapture
from udkd.training.exchange import Exchange
from udkd.training.metrics import TrainMetrics, recorded_rows
from udkd.training.runners import ResidentRunner, StepRunner, StreamingRunner
from udkd.training.schedule import EpochSchedule
from udkd.training.student import make_students
from udkd.utils.compile import compiled
from udkd.utils.environment import cudnn_benchmark

CLASSES = 100
RESNET, MOBILENET, TEACHER = "resnet18", "mobilenet_v2", "resnet50"


@dataclass(frozen=True)
class TimedStep:
    """A training step that is ready to be timed. run: takes one step of `batch` images."""

    run: Callable[[], object]
    batch: int


def paper_recipe(device: torch.device, *settings: str, px: int, batch: int) -> Recipe:
    """The paper's recipe with our optimisations: bfloat16, compiled, in a CUDA graph on a GPU; a compiled loss on a CPU."""
    optimisations = (
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
        "imagenet100-paper", [*sizes, f"train.batch_size={batch}", f"teacher.batch_size={batch}", *optimisations, *settings]
    )


def canvases(count: int, side: int, device: torch.device, seed: int = 0) -> Batch:
    """`count` canvases of smooth colour with grain, uint8 [N, S, S, 3], generated on the device, with random labels."""
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


def make_step(
    recipe: Recipe,
    samples: Batch,
    device: torch.device,
    *,
    targets: TargetTable | None = None,
    architecture: str = TEACHER,
    exchange: Exchange | None = None,
) -> TimedStep:
    """A step of `recipe` that can be repeated indefinitely over `samples`. A live teacher is untrained, at the same cost.

    targets: of a cached teacher; synthetic ones by default. exchange: with other processes, where there are some.
    """
    target_source = _target_source(recipe, samples, device, targets, architecture)
    students = make_students(recipe, CLASSES, device)
    step = build_step(recipe, recipe.views.spec, students, target_source, device, exchange=exchange)
    metrics = TrainMetrics.empty(len(students), device, recorded_rows(recipe))
    batch, count = recipe.train.batch_size, len(samples.labels)
    steps = count // batch
    assert steps, f"{count} samples for a batch of {batch}"
    ids = np.arange(count, dtype=np.int64)
    schedule = EpochSchedule.of(recipe, 0, steps, 0, view_table(recipe, count, samples.canvas.shape[1], device), device)
    runner: StepRunner
    if recipe.train.input == "stream":
        runner = StreamingRunner(step, InMemoryBackend(samples), batch, exchange=exchange)
    else:
        capture = shared_capture(device) if recipe.train.cuda_graph else None
        runner = ResidentRunner(step, samples, batch, metrics, capture=capture, exchange=exchange)

    def endless_epochs() -> Iterator[int]:
        order = np.random.default_rng(0).permutation(ids)
        if recipe.views.spec.mixes:
            order = pairs_together(order, partners(0, 0, ids, len(ids)))
        order = order[: steps * batch]
        while True:
            metrics.clear()
            yield from runner.epoch(order, schedule, metrics)

    batches = endless_epochs()

    def run() -> int:
        with cudnn_benchmark(recipe.perf.cudnn_benchmark):  # the plain script turns it on in the same process
            return next(batches)

    return TimedStep(run, batch)


@cache
def shared_capture(device: torch.device) -> CudaGraphCapture:
    """One capture per process: all variants share its memory pool, which is as large as the largest variant's graph."""
    return CudaGraphCapture(device)


def view_table(recipe: Recipe, count: int, side: int, device: torch.device) -> ViewTable:
    """The training views of `count` samples whose originals had ImageNet's most common size."""
    sizes = np.tile(np.array([375, 500, side, side]), (count, 1))
    spec, ids = recipe.views.spec, np.arange(count, dtype=np.int64)
    partner = partners(0, 0, ids, count) if spec.mixes else None
    return ViewTable.of(draw_views(spec, 0, 0, ids, sizes, partner), device)


def synthetic_targets(count: int, device: torch.device) -> DeviceTable:
    """Targets in a cache's format with random values: a lookup costs the same for any values."""
    generator = torch.Generator(device=device).manual_seed(1)
    packed = pack(torch.rand(count, CLASSES, generator=generator, device=device) * 16)
    return DeviceTable({"logits": packed.logits}, entropy_weight(packed.entropy, CLASSES), CLASSES)


def frozen_teacher(
    recipe: Recipe, device: torch.device, architecture: str = TEACHER, *, compile: bool | None = None
) -> FrozenTeacher:
    """An untrained teacher with the recipe's settings. compile: by default the same as for the students."""
    model = build(architecture, CLASSES, image_px=recipe.views.size_px, seed=0).eval().requires_grad_(False)
    if recipe.teacher.fold_bn:
        model = fold_batch_norm(model)
    model = model.to(device).to(memory_format=torch.channels_last)
    compile = recipe.train.compile == "all" if compile is None else compile
    return FrozenTeacher(
        model=compiled(model) if compile else model,
        input=NetworkInput(size_px=recipe.views.size_px),
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


class InMemoryBackend:
    """A backend over samples in device memory, to time a step without loading."""

    def __init__(self, samples: Batch) -> None:
        self.num_samples = len(samples.labels)
        self._samples = samples

    def epoch(self, order: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """See udkd.data.batch.Backend."""
        order_E = torch.from_numpy(order).to(self._samples.labels.device)  # once: each copy blocks the host
        for start in range(0, len(order), batch_size):
            ids_B = order_E[start : start + batch_size]
            yield Batch(ids=ids_B, canvas=self._samples.canvas[ids_B], labels=self._samples.labels[ids_B])

    def close(self) -> None:
        """Do nothing."""

    def describe(self) -> str:
        """A name for messages."""
        return "synthetic"


class TableTargets:
    """Cached targets that are looked up in a table in memory, without a cache folder."""

    num_features = 0

    def __init__(self, table: TargetTable) -> None:
        self._table = table

    def load(self, view: int) -> None:
        """Nothing to load."""

    def __call__(self, batch: Batch, x_BCHW: Tensor, view: int, labels: object = None) -> TeacherTargets:
        logits_BC, weight_B = self._table.lookup(batch.ids)
        return TeacherTargets(logits=logits_BC, weight=weight_B)


def _target_source(
    recipe: Recipe, samples: Batch, device: torch.device, targets: TargetTable | None, architecture: str
) -> TargetSource:
    if recipe.loss.beta == 0:
        return NoTargets()
    if recipe.teacher.source == "cache":
        return TableTargets(targets or synthetic_targets(len(samples.labels), device))
    ensemble = TeacherEnsemble(
        members=(frozen_teacher(recipe, device, architecture),),
        estimator=recipe.teacher.estimator_settings,
        storage=recipe.teacher.storage,
    )
    return LiveTargets(ensemble, None)  # as in the paper, the teacher sees the students' views
