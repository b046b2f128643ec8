"""Training under every runner: streamed, resident, warmed up, compiled; and options that change a step."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tests.factories import rewrite_json, small_recipe
from tests.models.own_models import Tied
from tests.observers import StopAfter
from tests.training.runs import checkpoint_hash, metrics_without_time
from udkd.augment.apply import ViewTable
from udkd.augment.view_table import EpochViews
from udkd.config.recipe import Recipe
from udkd.data.batch import Batch
from udkd.data.dataset import DatasetFolder
from udkd.models.ema import WeightEMA
from udkd.teacher.cache.build import build_cache
from udkd.teacher.folder import TeacherFolder
from udkd.training import runners
from udkd.training.cuda_graph import warm_up
from udkd.training.lr import ema_rate, progressive_px
from udkd.training.run_folder import RunFolder
from udkd.training.runners import ResidentRunner
from udkd.training.schedule import EpochSchedule, learning_rates
from udkd.training.scoring import score
from udkd.training.setup import TrainSetup
from udkd.training.student import make_students
from udkd.training.trainer import Trainer, TrainJob, train
from udkd.utils.errors import ConfigError, MismatchError

CPU = torch.device("cpu")
SMALLEST = ("students=[{architecture='squeezenet1_1', lr=0.01}]", "train.epochs=2", "train.batch_size=24")
CACHE_SETTINGS = ("teacher.views=2",)


def recipe_of(*more: str) -> Recipe:
    return small_recipe(*SMALLEST, *CACHE_SETTINGS, *more)


def trained(out: Path, recipe: Recipe, dataset: DatasetFolder, cache: Path) -> str:
    train(TrainJob(recipe=recipe, data=dataset.path, out=out, device=CPU, cache=cache))
    return checkpoint_hash(out)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder, cache: Path) -> str:
    """The checkpoint of a run whose batches a backend streamed: with dropout, momentum and another view in each epoch."""
    return trained(tmp_path_factory.mktemp("streamed") / "run", recipe_of(), dataset, cache)


def test_resident_input_trains_the_same_bits(tmp_path: Path, dataset: DatasetFolder, cache: Path, streamed: str) -> None:
    assert trained(tmp_path / "run", recipe_of('train.input="resident"'), dataset, cache) == streamed


@pytest.mark.parametrize("steps", [1, 4])
def test_warm_up_leaves_no_trace(
    tmp_path: Path, dataset: DatasetFolder, cache: Path, streamed: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything before the capture itself, also where an epoch has fewer steps than the warm-up."""
    samples = len(dataset.split("train").ids)
    assert samples // 24 == 4, "as in `streamed`"
    batch = f"train.batch_size={24 if steps == 4 else samples}"
    if steps == 1:
        streamed = trained(tmp_path / "streamed", recipe_of(batch), dataset, cache)
    works = []

    def capture(work: Callable[[], None], mutable_state: Sequence[Tensor]) -> Callable[[], None]:
        warm_up(work, mutable_state)
        works.append(work)
        return work

    made = TrainSetup.make_runner

    def with_warm_up(*arguments: Any) -> ResidentRunner:
        runner = made(*arguments)
        assert isinstance(runner, ResidentRunner)
        runner._capture = capture
        return runner

    monkeypatch.setattr(TrainSetup, "make_runner", with_warm_up)
    assert trained(tmp_path / "run", recipe_of('train.input="resident"', batch), dataset, cache) == streamed
    assert len(works) == 1, "captured once, for all epochs"


def test_impossible_inputs_and_captures_are_one_line(tmp_path: Path, dataset: DatasetFolder, cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.cuda_graph is true; expected a CUDA device"):
        trained(tmp_path / "a", recipe_of('train.input="resident"', "train.cuda_graph=true"), dataset, cache)
    with pytest.raises(ConfigError, match=r"train\.input is resident and the backend is not"):
        trained(tmp_path / "b", recipe_of('train.input="resident"', 'data.backend="folder"'), dataset, cache)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("mixes", [False, pytest.param(True, marks=pytest.mark.long)])
def test_three_graphs_and_no_recompiles(
    tmp_path: Path, dataset: DatasetFolder, cache: Path, monkeypatch: pytest.MonkeyPatch, mixes: bool
) -> None:
    """Augmentation, forward, backward: counted where it is decided, without the minutes that inductor takes."""
    backward_graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        from torch._dynamo.backends.common import aot_autograd
        from torch._functorch.compilers import nop

        def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
            backward_graphs.append(graph)
            return nop(graph, inputs)

        return aot_autograd(fw_compiler=nop, bw_compiler=count)(graph, inputs)  # type: ignore[no-any-return]

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    views = ("views.policy='rand_augment'", "views.erase_prob=0.5", "views.cutmix=1.0", "loss.alpha=1", "loss.beta=0")
    recipe = recipe_of('train.compile="all"', *((*views, "views.jitter='uint8'") if mixes else ()))
    trainer = Trainer(TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / "run", device=CPU, cache=cache))
    trainer._train_epoch(0, 0)
    warm = dict(counters["stats"])
    assert warm["unique_graphs"] == 2, "the floating part of the augmentation; students and loss"
    assert len(backward_graphs) == 1
    trainer._train_epoch(1, 0)  # with an evaluation in between
    trainer.close()
    assert dict(counters["stats"])["unique_graphs"] == warm["unique_graphs"]
    assert len(backward_graphs) == 1
    assert not counters["graph_break"]
    torch._dynamo.reset()


def test_stopped_and_resumed_with_everything_on(
    tmp_path: Path, dataset: DatasetFolder, cache: Path, teacher: TeacherFolder
) -> None:
    """Averaged weights, progressive sizes, flip averaging, scaled rates: a resumed run ends in the same bits."""
    settings = (
        'teacher.views="eval"',
        "train.ema_decay=0.9",
        "train.progressive_px=24",
        "train.progressive_until=0.5",
        "evaluation.flip_tta=true",
        "train.lr_base_batch_size=8",
        "perf.gathered_pool=true",
        'train.input="resident"',
    )
    recipe = small_recipe(*SMALLEST, *settings)
    folder = build_cache(tmp_path / "cache", dataset=dataset, teacher=teacher, recipe=recipe, device=CPU).cache.folder
    options = {"recipe": recipe, "data": dataset.path, "device": CPU, "cache": folder}
    train(TrainJob(out=tmp_path / "complete", **options))
    observer = StopAfter(5, batch_size=24)
    outcome = train(TrainJob(out=tmp_path / "run", observer=observer, stopped=observer.stopped, **options))
    assert outcome.step == 5
    assert train(TrainJob(out=tmp_path / "run", resume=True, **options)).finished
    assert checkpoint_hash(tmp_path / "run") == checkpoint_hash(tmp_path / "complete")
    rows = metrics_without_time(tmp_path / "run")
    assert rows == metrics_without_time(tmp_path / "complete")
    assert [row["size_px"] for row in rows] == [24, 32]


def test_a_run_of_an_older_version_resumes(tmp_path: Path, dataset: DatasetFolder, cache: Path) -> None:
    """Its recipe lacks the keys that were added later: they take their defaults."""
    out = tmp_path / "run"
    uninterrupted = trained(out, recipe_of(), dataset, cache)
    config = RunFolder.open(out).config
    del config["perf"], config["train"]["input"], config["evaluation"]["flip_tta"]
    rewrite_json(out / "config.json", lambda values: config)
    options = {"data": dataset.path, "out": out, "device": CPU, "cache": cache, "resume": True}
    assert train(TrainJob(recipe=recipe_of(), **options)).finished
    assert checkpoint_hash(out) == uninterrupted
    with pytest.raises(MismatchError, match=r"train\.input: stored 'stream', wanted 'resident'"):
        train(TrainJob(recipe=recipe_of('train.input="resident"'), **options))


def test_the_optimizer_follows_the_formula_and_reads_its_rate_from_a_tensor() -> None:
    """PyTorch's SGD in float64, by hand: g = grad + wd p; m = mu m + g; p -= lr m."""
    recipe = small_recipe("students=[{architecture='squeezenet1_1', lr=0.1, momentum=0.9, weight_decay=0.01}]")
    (student,) = make_students(recipe, 4, CPU)
    weights = [parameter.detach().double() for parameter in student.model.parameters()]
    momenta = [torch.zeros_like(weight) for weight in weights]
    generator = torch.Generator().manual_seed(0)
    for rate in (0.1, 0.05, 0.0):
        student.set_step_inputs(torch.tensor(rate), torch.tensor(7))
        for index, parameter in enumerate(student.model.parameters()):
            grad = torch.rand(parameter.shape, generator=generator)
            parameter.grad = torch.empty_like(parameter).copy_(grad)
            momenta[index] = 0.9 * momenta[index] + grad.double() + 0.01 * weights[index]
            weights[index] = weights[index] - rate * momenta[index]
        student.optimizer_step(torch.tensor(0.0))
    for parameter, weight in zip(student.model.parameters(), weights, strict=True):
        assert parameter.grad is None
        torch.testing.assert_close(parameter.detach().double(), weight, rtol=2e-6, atol=2e-6)


def test_the_weight_average_follows_its_formula() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = WeightEMA.of(model)
    want = model[0].weight.detach().double().clone()
    for step in range(4):
        with torch.no_grad():
            model[0].weight += 1.0
        model[1].num_batches_tracked += 1
        rate = ema_rate(step, 0.5)
        average.update(model, torch.tensor(rate))
        want += rate * (model[0].weight.detach().double() - want)
    torch.testing.assert_close(average.model[0].weight.double(), want)  # type: ignore[index]
    assert int(average.model[1].num_batches_tracked) == 4  # type: ignore[index]
    assert not average.model.training
    assert [ema_rate(step, 0.5) for step in (0, 2, 100)] == [0.9, 0.75, 0.5]


def test_tied_weights_are_averaged_once() -> None:
    model = Tied(2)
    average = WeightEMA.of(model)
    with torch.no_grad():
        model.first.weight += 1.0
    want = average.model.first.weight + 0.25  # type: ignore[operator]
    average.update(model, torch.tensor(0.25))
    torch.testing.assert_close(average.model.first.weight, want)
    assert average.model.second.weight is average.model.first.weight  # type: ignore[union-attr]


def test_progressive_sizes_grow_in_steps() -> None:
    sizes = [progressive_px(epoch, epochs=16, first_px=128, last_px=224, until=0.75) for epoch in range(16)]
    assert sizes == sorted(sizes)
    assert set(sizes) == {128, 160, 192, 224}
    assert (sizes[0], sizes[11], sizes[12], sizes[-1]) == (128, 224, 224, 224)
    assert all(size % 32 == 0 for size in sizes)
    assert {progressive_px(epoch, epochs=3, first_px=0, last_px=48, until=0.75) for epoch in range(3)} == {48}


def test_rates_scale_with_the_batch() -> None:
    recipe = small_recipe("train.batch_size=24", "train.lr_base_batch_size=8", "train.epochs=2")
    plain = small_recipe("train.batch_size=24", "train.epochs=2")
    for step in (0, 3, 7):
        assert learning_rates(recipe, step, 4) == pytest.approx([3 * rate for rate in learning_rates(plain, step, 4)])


def test_progressive_sizes_need_evaluation_targets() -> None:
    with pytest.raises(ConfigError, match=r"train\.progressive_px changes the training views"):
        small_recipe("teacher.views=2", "train.progressive_px=16")
    with pytest.raises(ConfigError, match="squeezenet1_1 cannot take 16 px images"):
        make_students(small_recipe("train.progressive_px=16"), 4, CPU)
    with pytest.raises(ConfigError, match=r"train\.progressive_px 64 is above views\.size_px 32"):
        small_recipe("train.progressive_px=64")


class OneBatch:
    """A backend of one batch, whose first image is brighter on the left."""

    num_samples = 2

    def epoch(self, order: np.ndarray, batch_size: int) -> list[Batch]:
        canvas = torch.zeros(2, 36, 36, 3, dtype=torch.uint8)
        canvas[0] = (255 - 7 * torch.arange(36)).view(1, 36, 1)
        return [Batch(ids=torch.arange(2), canvas=canvas, labels=torch.tensor([0, 1]))]


def test_flip_averaging_ignores_left_and_right(dataset: DatasetFolder) -> None:
    views = EpochViews(small_recipe("views.size_px=8", "evaluation.resize_px=8").evaluation_spec, 0, dataset.split("val"), CPU)

    def left_minus_right(x: Tensor) -> Tensor:
        side = x[..., :4].mean((1, 2, 3)) - x[..., 4:].mean((1, 2, 3))
        return torch.stack([side, torch.zeros_like(side)], dim=1)

    options = {"batch": 2, "precision": "float32"}
    seen = score([left_minus_right], OneBatch(), np.arange(2), views, **options)  # type: ignore[arg-type]
    blind = score([left_minus_right], OneBatch(), np.arange(2), views, flip=True, **options)  # type: ignore[arg-type]
    assert seen.each[0].loss != pytest.approx(blind.each[0].loss)
    assert blind.each[0].loss == pytest.approx(np.log(2), abs=1e-6)


def test_views_are_drawn_ahead_and_a_failure_reaches_the_caller(
    dataset: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, split = small_recipe().views.spec, dataset.split("train")
    direct, ahead = (EpochViews(spec, 3, split, CPU) for _ in range(2))
    ahead.prepare(5)
    for name in ("window", "bounds", "flip", "kind", "factor"):
        assert torch.equal(getattr(direct.table(5), name), getattr(ahead.table(5), name))
    before = threading.active_count()
    assert ahead.table(5) is ahead.table(5)
    assert threading.active_count() == before

    def broken(*arguments: object) -> object:
        raise ValueError("views cannot be drawn")

    monkeypatch.setattr("udkd.augment.view_table.draw_views", broken)
    ahead.prepare(6)
    with pytest.raises(ValueError, match="views cannot be drawn"):
        ahead.table(6)


def test_a_schedule_has_the_values_of_each_step(dataset: DatasetFolder) -> None:
    recipe = small_recipe("train.ema_decay=0.9")
    views = EpochViews(recipe.views.spec, 0, dataset.split("train"), CPU).table(1)
    schedule = EpochSchedule.of(recipe, 1, 12, 1, views, CPU)
    assert schedule.lr.shape == schedule.dropout_keys.shape == (12, 2)
    assert schedule.lr[3].tolist() == pytest.approx(learning_rates(recipe, 15, 12))
    assert schedule.ema_rates[0].item() == pytest.approx(ema_rate(12, 0.9))
    assert len(schedule.dropout_keys.unique()) == 24
    copy = runners._clone(schedule)
    runners._copy(EpochSchedule.of(recipe, 0, 12, 0, views, CPU), copy)
    assert copy.lr[0].tolist() == pytest.approx(learning_rates(recipe, 0, 12))
    assert isinstance(copy.views, ViewTable)
    assert copy.views.window.data_ptr() != views.window.data_ptr()
