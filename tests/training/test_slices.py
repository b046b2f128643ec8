"""Training in slices on one process, against the same steps with every slice's results kept and their means in float64.

The reference replaces what adds the slices; test_step and test_accumulate test the step of a slice itself.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.factories import small_recipe
from tests.observers import StopAfter
from tests.training.runs import checkpoint_hash, checkpoint_tensors, metrics_without_time
from udkd.data.batch import Batch
from udkd.data.dataset import DatasetFolder
from udkd.models.build import KeyedDropout
from udkd.teacher.folder import TeacherFolder
from udkd.training import build_step as build_step_module
from udkd.training.exchange import Exchange
from udkd.training.metrics import TrainMetrics
from udkd.training.schedule import EpochSchedule
from udkd.training.setup import TrainJob
from udkd.training.step import TrainStep
from udkd.training.student import Student
from udkd.training.trainer import train

CPU = torch.device("cpu")
LONG = pytest.mark.long
DATASET_IMAGES = {"per_class": 12, "val_per_class": 3}
STEPS = 3  # in an epoch: 48 images in batches of 16
NETS = "students=[{architecture='squeezenet1_1', lr=0.01}, {architecture='shufflenet_v2_x0_5', lr=0.05}]"
"""One with dropout, one with batch norm, both fast."""

SLICED = (NETS, "train.batch_size=16", "train.slices=4", "train.epochs=1")
CACHE_SETTINGS = ("teacher.views=2",)
LIVE = ('teacher.source="live"', "teacher.views=2")


class Reference:
    """SlicedStep, with as many copies as slices and means in float64, for one process.

    parameters: what it averages. restores: whether each slice starts from the statistics before the step.
    """

    restores = True

    def __init__(self, step: TrainStep, exchange: Exchange) -> None:
        self._step, self._slices = step, exchange.slices
        self.teacher, self.mutable_state = step.teacher, step.mutable_state

    def __call__(self, batch: Batch, step: Tensor, schedule: EpochSchedule, metrics: TrainMetrics) -> None:
        now = self._step.begin(step, schedule)
        modules = [module for student in self._step.students for module in (student.model, student.connector) if module]
        parameters = [parameter for module in modules for parameter in module.parameters()]
        buffers = [buffer for module in modules for buffer in module.buffers()]
        before = [buffer.clone() for buffer in buffers]
        gradients: list[list[Tensor | None]] = []
        after, means, totals = [], [], []
        size = len(batch.labels) // self._slices
        for index in range(self._slices):
            if self.restores:
                self._set(buffers, before)
            rows = batch.rows(slice(index * size, (index + 1) * size))
            means_RN, total = self._step.backward(rows, schedule, now, metrics, index)
            means.append(means_RN)
            totals.append(total)
            gradients.append([parameter.grad for parameter in parameters])
            after.append([buffer.clone() for buffer in buffers])
            for parameter in parameters:
                parameter.grad = None
        for parameter, each in zip(parameters, zip(*gradients, strict=True), strict=True):
            if each[0] is not None:
                parameter.grad = _mean([value for value in each if value is not None])
        self._set(buffers, [_mean(each) if each[0].is_floating_point() else each[0] for each in zip(*after, strict=True)])
        self._step.finish(now)
        metrics.add(step, _mean(means), len(batch.labels), torch.stack(totals), self._step.student_indices)

    @torch.no_grad()
    def _set(self, tensors: list[Tensor], values: list[Tensor]) -> None:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


class WithoutRestoring(Reference):
    restores = False


def _mean(values: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.stack([value.double() for value in values]).mean(0).to(values[0].dtype)


Runs = Callable[..., Path]


@pytest.fixture
def trained(
    tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Runs:
    def run(name: str, *settings: str, step: type | None = None) -> Path:
        recipe = small_recipe(*SLICED, *settings)
        source = {"cache": cache} if recipe.teacher.source == "cache" else {"teacher": teacher.path}
        with monkeypatch.context() as patch:
            if step is not None:
                patch.setattr(build_step_module, "SlicedStep", step)
            train(TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / name, device=CPU, **source))
        return tmp_path / name

    return run


def _close(one: Path, other: Path, rtol: float = 2e-4, atol: float = 2e-6) -> None:
    """The same checkpoints and rows, to rounding."""
    expected, found = checkpoint_tensors(other), checkpoint_tensors(one)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
    for row, wanted in zip(metrics_without_time(one), metrics_without_time(other), strict=True):
        for part, values in row["train"].items():  # type: ignore[attr-defined]
            assert values == pytest.approx(wanted["train"][part], rel=1e-4, abs=1e-6, nan_ok=False), part  # type: ignore[index]


BOTH = "{{architecture='squeezenet1_1', lr=0.01, {0}}}, {{architecture='shufflenet_v2_x0_5', lr=0.05, {0}}}"


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param((), id="plain"),
        pytest.param(("train.slices=8", "train.epochs=2"), id="slices of two"),
        pytest.param(("train.accumulate=2",), id="accumulate"),
        pytest.param(("views.mixup=0.8", "views.cutmix=1.0", "views.policy='rand_augment'", *LIVE), id="mixing"),
        pytest.param(("train.ema_decay=0.9",), id="ema"),
        pytest.param((f"students=[{BOTH.format('clip_norm=0.05')}]",), id="clip_norm"),
        pytest.param((f"students=[{BOTH.format('optimizer=\"AdamW\", lr=0.001')}]".replace("lr=0.05, ", "").replace("lr=0.01, ", ""),), id="adamw"),
        pytest.param(("train.precision=float16",), id="float16"),
        pytest.param(("train.precision=bfloat16",), id="bfloat16"),
        pytest.param(
            ("students=[{architecture='squeezenet1_1', lr=0.01}, {architecture='shufflenet_v2_x0_5', lr=0.05, "
             "frozen=['conv1.*', 'stage2.*']}]",),
            id="frozen layers and norms",
        ),
        pytest.param(
            ("students=[{architecture='squeezenet1_1', lr=0.01}, {architecture='shufflenet_v2_x0_5', lr=0.05, start_epoch=1}]",
             "train.epochs=2"),
            id="start_epoch",
        ),
        pytest.param(("train.channels_last=false",), id="channels_first"),
        pytest.param(("train.input=resident",), id="resident"),
        pytest.param(("train.progressive_px=24", "train.epochs=2"), id="progressive"),
        pytest.param(("loss.method=dkd",), id="dkd"),
        pytest.param(("loss.method=fitnets", *LIVE), id="fitnets"),
        pytest.param(("loss.method=attention", *LIVE), id="attention"),
        pytest.param(("loss.method=reviewkd", "methods.reviewkd.stages=2", *LIVE), id="reviewkd"),
        pytest.param(("loss.schedules.beta={kind='linear', to=0.1}",), id="a schedule"),
    ],
)
def test_a_run_has_the_means_over_its_slices(trained: Runs, settings: tuple[str, ...]) -> None:
    """Gradients, running statistics, counters, connectors, averages, optimizers and metrics."""
    sliced = trained("sliced", *settings)
    reference = trained("reference", *settings, step=Reference)
    _close(sliced, reference)


def test_the_comparison_finds_statistics_that_are_not_restored(trained: Runs) -> None:
    """The control of the test above."""
    with pytest.raises(AssertionError, match="num_batches_tracked|running"):
        _close(trained("sliced"), trained("other", step=WithoutRestoring))


def test_counters_and_rows_count_steps_and_images(trained: Runs, dataset: DatasetFolder) -> None:
    tensors = checkpoint_tensors(trained("run"))
    counts = [value for name, value in tensors.items() if name.endswith("num_batches_tracked")]
    assert counts
    assert {int(value) for value in counts} == {STEPS}


@pytest.mark.parametrize("slices", [2, 8])
def test_dropout_is_that_of_the_whole_batch(trained: Runs, slices: int) -> None:
    """Without batch norm a sliced step is the step of the batch; only with the batch's masks."""
    nets = "students=[{architecture='squeezenet1_1', lr=0.05, momentum=0.0}, {architecture='squeezenet1_0', lr=0.02}]"
    whole = trained("whole", nets, "train.slices=1")
    _close(trained("sliced", nets, f"train.slices={slices}"), whole, rtol=2e-3, atol=2e-5)


def test_other_masks_are_found(trained: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    nets = "students=[{architecture='squeezenet1_1', lr=0.05, momentum=0.0}, {architecture='squeezenet1_0', lr=0.02}]"
    whole = trained("whole", nets, "train.slices=1")
    monkeypatch.setattr(Student, "set_part", lambda self, part: None)
    with pytest.raises(AssertionError):
        _close(trained("sliced", nets, "train.slices=2"), whole, rtol=2e-3, atol=2e-5)


def test_a_parameter_without_gradient_stays(trained: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network may have weights that its output does not depend on: they get no gradient, not one of 0 that decays them."""
    original = build_step_module.TrainStep.__post_init__ if hasattr(build_step_module.TrainStep, "__post_init__") else None
    assert original is None

    class Unused(build_step_module.TrainStep):
        def begin(self, *arguments: object) -> object:
            for student in self.students:
                last = list(student.model.parameters())[0]
                last.requires_grad_(True)
            return super().begin(*arguments)  # type: ignore[arg-type]

        def backward(self, *arguments: object) -> object:
            result = super().backward(*arguments)  # type: ignore[arg-type]
            next(self.students[0].model.parameters()).grad = None
            return result

    monkeypatch.setattr(build_step_module, "TrainStep", Unused)
    run = trained("run")
    name = "features.0.weight"
    initial = small_weights(name)
    assert torch.equal(checkpoint_tensors(run)[f"student.0.{name}"], initial)


def small_weights(name: str) -> Tensor:
    from udkd.training.student import make_students

    model: nn.Module = make_students(small_recipe(*SLICED), 4, CPU)[0].model
    return model.state_dict()[name]


@pytest.mark.parametrize("more", [(), ("train.input=resident",)])
def test_cached_equals_live_and_stopped_equals_uninterrupted(
    tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, cache: Path, more: tuple[str, ...]
) -> None:
    """Bit for bit, also where the teacher's blocks are larger than a slice, or have another size."""
    hashes = []
    settings = (*SLICED, "train.epochs=2", "teacher.views=2", *more)
    for name, source in (("cached", ()), ("live", ('teacher.source="live"',)), ("blocks", ('teacher.source="live"', "teacher.batch_size=3"))):
        given = {"teacher": teacher.path} if source else {"cache": cache}
        recipe = small_recipe(*settings, *source)
        stop = StopAfter(STEPS + 1, 16)
        job = {"recipe": recipe, "data": dataset.path, "out": tmp_path / name, "device": CPU} | given
        if name != "cached":
            assert train(TrainJob(**job, observer=stop, stopped=stop.stopped)).step == STEPS + 2  # type: ignore[arg-type]
        assert train(TrainJob(**job, resume=True)).finished  # type: ignore[arg-type]
        hashes.append(checkpoint_hash(tmp_path / name))
    assert hashes[0] == hashes[1] == hashes[2]


def test_dropout_layers_are_there() -> None:
    from udkd.training.student import make_students

    students = make_students(small_recipe(*SLICED), 4, CPU)
    assert any(isinstance(module, KeyedDropout) for module in students[0].model.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in students[1].model.modules())
