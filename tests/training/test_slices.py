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
from tests.training.small_networks import network, students
from udkd.data.batch import Batch
from udkd.data.dataset import DatasetFolder
from udkd.teacher.folder import TeacherFolder
from udkd.training import build_step as build_step_module
from udkd.training.exchange import Exchange
from udkd.training.metrics import TrainMetrics
from udkd.training.schedule import EpochSchedule
from udkd.training.setup import TrainJob
from udkd.training.step import TrainStep
from udkd.training.student import Student, make_students
from udkd.training.trainer import train

CPU = torch.device("cpu")
LONG = pytest.mark.long
DATASET_IMAGES = {"per_class": 12, "val_per_class": 3}
STEPS = 3  # in an epoch: 48 images in batches of 16


SLICED = (students(), "teacher.views=2", "train.batch_size=16", "train.slices=4", "train.epochs=1")
DROPOUT = f"students=[{network('dropped')}]"
CACHE_SETTINGS = ("teacher.views=2",)
LIVE = ('teacher.source="live"',)


class Reference:
    """SlicedStep, with as many copies as slices and means in float64, for one process.

    parameters: what it averages. restores: whether each slice starts from the statistics before the step.
    """

    restores = True

    def __init__(self, step: TrainStep, exchange: Exchange) -> None:
        self._step, self._slices, self._exchange = step, exchange.slices, exchange
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
        self._exchange.found_2.copy_(self._exchange.wanted_2)
        metrics.add(step, _mean(means), len(batch.labels), torch.stack(totals), self._step.student_indices)

    @torch.no_grad()
    def _set(self, tensors: list[Tensor], values: list[Tensor]) -> None:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


class WithoutRestoring(Reference):
    restores = False


def _mean(values: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """In the layout of the first one: fused optimizers read memory in its order."""
    return torch.empty_like(values[0]).copy_(torch.stack([value.double() for value in values]).mean(0))


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


def _close(one: Path, other: Path, tolerance: float = 1e-4) -> None:
    """The same checkpoints and rows, to rounding: within a fraction of each tensor's largest number."""
    expected, found = checkpoint_tensors(other), checkpoint_tensors(one)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        difference, largest = (float(each.abs().max()) for each in (value - expected[name], expected[name]))
        assert difference <= tolerance * largest, f"{name}: {difference} of {largest}"
    for row, wanted in zip(metrics_without_time(one), metrics_without_time(other), strict=True):
        for part, values in row["train"].items():  # type: ignore[attr-defined]
            started = [value for value in values if value is not None]
            expected_values = [value for value in wanted["train"][part] if value is not None]  # type: ignore[index]
            assert started == pytest.approx(expected_values, rel=1e-4, abs=1e-6), part


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param((), id="plain"),
        pytest.param(("train.slices=8", "train.epochs=2"), id="slices of two", marks=LONG),
        pytest.param(("train.accumulate=2",), id="accumulate"),
        pytest.param(
            ("views.jitter='uint8'", "views.mixup=0.8", "views.cutmix=1.0", "views.policy='rand_augment'", *LIVE), id="mixing"
        ),
        pytest.param(("train.ema_decay=0.9",), id="ema", marks=LONG),
        pytest.param((students(*["lr=0.05, clip_norm=0.05"] * 2),), id="clip_norm"),
        pytest.param(
            (students("lr=0.001, optimizer='AdamW'", "lr=0.001, optimizer='RMSprop'"), "train.lr_base_batch_size=160"),
            id="optimizers",
        ),
        pytest.param(("train.precision=float16",), id="float16"),
        pytest.param(("train.precision=bfloat16",), id="bfloat16", marks=LONG),
        pytest.param((students("lr=0.05", "lr=0.05, frozen=['blocks.0.*', 'fc.bias']"),), id="frozen layers and norms"),
        pytest.param((students("lr=0.05", "lr=0.05, start_epoch=1"), "train.epochs=2"), id="start_epoch"),
        pytest.param(("train.channels_last=false",), id="channels_first", marks=LONG),
        pytest.param(("train.input=resident",), id="resident", marks=LONG),
        pytest.param(("train.progressive_px=24", "teacher.views=eval", "train.epochs=2", *LIVE), id="progressive"),
        pytest.param(("loss.method=dkd",), id="dkd"),
        pytest.param(("loss.method=fitnets", *LIVE), id="fitnets"),
        pytest.param(("loss.method=attention", "methods.attention.stages=3", *LIVE), id="attention", marks=LONG),
        pytest.param(("loss.method=reviewkd", "methods.reviewkd.stages=2", *LIVE), id="reviewkd", marks=LONG),
        pytest.param(("loss.schedules.beta={kind='linear', to=0.1, until=1.0}",), id="a schedule", marks=LONG),
    ],
)
def test_a_run_has_the_means_over_its_slices(trained: Runs, settings: tuple[str, ...]) -> None:
    """Gradients, running statistics, counters, connectors, averages, optimizers and metrics."""
    sliced = trained("sliced", *settings)
    reference = trained("reference", *settings, step=Reference)
    _close(sliced, reference)


def test_the_comparison_finds_statistics_that_are_not_restored(trained: Runs) -> None:
    """The control of the test above."""
    with pytest.raises(AssertionError, match=r"\.1\.blocks"):
        _close(trained("sliced"), trained("other", step=WithoutRestoring))


def test_batch_norm_counts_steps_not_slices(trained: Runs) -> None:
    tensors = checkpoint_tensors(trained("run"))
    counts = [value for name, value in tensors.items() if name.endswith("num_batches_tracked")]
    assert counts
    assert {int(value) for value in counts} == {STEPS}


@pytest.mark.parametrize("slices", [2, pytest.param(8, marks=LONG)])
def test_dropout_is_that_of_the_whole_batch(trained: Runs, slices: int) -> None:
    """Without batch norm a sliced step is the step of the batch; only with the batch's masks."""
    whole = trained("whole", DROPOUT, "train.slices=1")
    _close(trained("sliced", DROPOUT, f"train.slices={slices}"), whole)


def test_other_masks_are_found(trained: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    whole = trained("whole", DROPOUT, "train.slices=1")
    monkeypatch.setattr(Student, "set_part", lambda self, part: None)
    with pytest.raises(AssertionError):
        _close(trained("sliced", DROPOUT, "train.slices=2"), whole)


def test_a_parameter_without_gradient_stays(trained: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network may have weights that its output does not depend on: they get no gradient, not one of 0 that decays them."""
    real, name = TrainStep.backward, "blocks.0.0.weight"

    def without_first(self: TrainStep, *arguments: object) -> object:
        result = real(self, *arguments)  # type: ignore[arg-type]
        self.students[0].model.get_parameter(name).grad = None
        return result

    monkeypatch.setattr(TrainStep, "backward", without_first)
    initial = make_students(small_recipe(*SLICED), 4, CPU)[0].model.get_parameter(name)
    trained_tensors = checkpoint_tensors(trained("run"))
    assert torch.equal(trained_tensors[f"student.0.{name}"], initial)
    assert not trained_tensors[f"momentum.0.{name}"].any()
    _close(trained("sliced"), trained("reference", step=Reference))


@pytest.mark.parametrize("more", [(), pytest.param(("train.input=resident",), marks=LONG)])
def test_cached_equals_live_and_stopped_equals_uninterrupted(
    tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, cache: Path, more: tuple[str, ...]
) -> None:
    """Bit for bit, also where the teacher's blocks are larger than a slice, or have another size."""
    hashes = []
    settings = (*SLICED, "train.epochs=2", "teacher.views=2", *more)
    for name, source in (
        ("cached", ()),
        ("live", ('teacher.source="live"',)),
        ("blocks", ('teacher.source="live"', "teacher.batch_size=3")),
    ):
        given = {"teacher": teacher.path} if source else {"cache": cache}
        recipe = small_recipe(*settings, *source)
        stop = StopAfter(STEPS + 1, 16)
        job = {"recipe": recipe, "data": dataset.path, "out": tmp_path / name, "device": CPU} | given
        if name != "cached":
            assert train(TrainJob(**job, observer=stop, stopped=stop.stopped)).step == STEPS + 2  # type: ignore[arg-type]
        assert train(TrainJob(**job, resume=True)).finished  # type: ignore[arg-type]
        hashes.append(checkpoint_hash(tmp_path / name))
    assert hashes[0] == hashes[1] == hashes[2]


def test_the_networks_have_what_is_tested() -> None:
    made = make_students(small_recipe(*SLICED), 4, CPU)
    assert made[0].dropout_layers
    assert any(isinstance(module, nn.BatchNorm2d) for module in made[1].model.modules())
