"""Optimizers: torch.optim's own steps, timm's groups of weight decay, clipping in float64; resumed runs to the same bits."""

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch
from torch import Tensor, nn

from tests.factories import small_recipe
from tests.observers import StopAfter
from tests.training.runs import checkpoint_hash, checkpoint_tensors
from udkd.config.optimizers import _WELL_KNOWN, optimizer_arguments, optimizer_class, optimizer_names, takes
from udkd.config.sections import StudentSection
from udkd.data.dataset import DatasetFolder
from udkd.models.build import build
from udkd.training.optimizer import make_optimizer, require_capturable, set_rate, state_of, step_unless
from udkd.training.student import make_students
from udkd.training.trainer import TrainJob, train
from udkd.utils.errors import ConfigError

CPU = torch.device("cpu")
DATASET_IMAGES = {"per_class": 4, "val_per_class": 1}  # two steps in an epoch
OPTIONS: dict[str, dict[str, Any]] = {
    "AdamW": {"betas": (0.8, 0.95), "eps": 1e-6, "amsgrad": True},
    "RMSprop": {"alpha": 0.9, "centered": True},
    "Adagrad": {"initial_accumulator_value": 0.1},
    "Adafactor": {"beta2_decay": -0.5, "eps": (1e-30, 1e-3)},
}
RATES = (0.02, 0.5, 0.001)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))


def gradients(model: nn.Module, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(parameter.shape, generator=generator) for parameter in model.parameters()]


def section(name: str, **more: Any) -> StudentSection:
    return StudentSection(architecture="resnet18", optimizer=name, optimizer_options=OPTIONS.get(name, {}), **more)


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_is_torchs_with_the_recipes_arguments(name: str) -> None:
    """Against the class itself with its defaults, neither fused nor with state or a rate tensor made beforehand."""
    ours, theirs = network(), network()
    optimizer = make_optimizer(section(name, weight_decay=0.05), ours.named_parameters(), CPU)
    own = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    reference = getattr(torch.optim, name)(theirs.parameters(), lr=0.3, weight_decay=0.05, **own, **OPTIONS.get(name, {}))
    before = [tensor.data_ptr() for tensor in state_of(optimizer)]
    for step, rate in enumerate(RATES):
        set_rate(optimizer, torch.tensor(rate))
        reference.param_groups[0]["lr"] = float(torch.tensor(rate))
        for model in (ours, theirs):
            for parameter, gradient in zip(model.parameters(), gradients(model, step), strict=True):
                parameter.grad = gradient.clone()
        optimizer.step()
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)
        assert optimizer.state[one].keys() == reference.state[other].keys()
        for kind, value in reference.state[other].items():
            torch.testing.assert_close(optimizer.state[one][kind], value, rtol=2e-5, atol=2e-6)
    assert [tensor.data_ptr() for tensor in state_of(optimizer)] == before, "no step allocates state"


@pytest.mark.parametrize("name", _WELL_KNOWN)
def test_what_is_known_without_torch_is_torchs(name: str) -> None:
    """With any values that a recipe takes: the class takes these arguments, or the recipe says why it does not."""
    assert _WELL_KNOWN[name] == tuple(key for key in ("momentum", "nesterov") if takes(name, key))
    for momentum, nesterov, weight_decay in itertools.product((0.0, 0.9, 0.999), (False, True), (0.0, 1e6)):
        values: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        if (nesterov and not (name == "SGD" and momentum)) or (momentum != 0.9 and not takes(name, "momentum")):
            with pytest.raises(ValueError, match="expected"):
                optimizer_arguments(name, {}, **values)
            continue
        arguments = optimizer_arguments(name, {}, **values)
        assert arguments == {"weight_decay": weight_decay} | {key: values[key] for key in _WELL_KNOWN[name]}
        optimizer_class(name)([torch.zeros(1)], lr=0.1, **arguments)


def test_undecayed_parameters_are_timms() -> None:
    model = build("mobilenet_v2", 4, image_px=32, seed=0)
    optimizer = make_optimizer(section("AdamW", weight_decay=0.05, decay_1d=False), model.named_parameters(), CPU)
    names = {parameter: name for name, parameter in model.named_parameters()}

    def named(groups: list[dict[str, Any]]) -> dict[float, set[str]]:
        return {group["weight_decay"]: {names[parameter] for parameter in group["params"]} for group in groups}

    assert named(optimizer.param_groups) == named(timm.optim.param_groups_weight_decay(model, weight_decay=0.05))
    assert optimizer.param_groups[0]["lr"] is optimizer.param_groups[1]["lr"], "one tensor for both"
    listed = make_optimizer(section("SGD", decay_1d=False), model.named_parameters(), CPU, no_decay={"features.0.0.weight"})
    assert any(names[parameter] == "features.0.0.weight" for parameter in listed.param_groups[1]["params"])
    assert len(make_optimizer(section("SGD"), model.named_parameters(), CPU).param_groups) == 1


@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_gradients_are_clipped_to_their_common_norm(clip_norm: float) -> None:
    options = f"{{architecture='squeezenet1_1', momentum=0.0, weight_decay=0.0, clip_norm={clip_norm}}}"
    (student,) = make_students(small_recipe(f"students=[{options}]"), 4, CPU)
    start = [parameter.detach().double().numpy().copy() for parameter in student.model.parameters()]
    grads = gradients(student.model, 0)
    for parameter, gradient in zip(student.model.parameters(), grads, strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
    student.set_step_inputs(torch.tensor(1.0), torch.tensor(0))
    student.optimizer_step(torch.tensor(0.0))
    norm = np.sqrt(sum((gradient.double().numpy() ** 2).sum() for gradient in grads))
    for before, gradient, parameter in zip(start, grads, student.model.parameters(), strict=True):
        want = before - gradient.double().numpy() * min(1.0, clip_norm / (norm + 1e-6))
        np.testing.assert_allclose(parameter.detach().numpy(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adafactor"])
def test_a_step_is_left_out_where_a_gradient_overflowed(name: str) -> None:
    """SGD's kernel does it itself; for the others the weights and the state are put back."""
    model = network()
    optimizer = make_optimizer(section(name), model.named_parameters(), CPU)
    set_rate(optimizer, torch.tensor(0.1))

    def step(found: float) -> list[Tensor]:
        for parameter, gradient in zip(model.parameters(), gradients(model, 0), strict=True):
            parameter.grad = gradient / (1 - found)
        step_unless(optimizer, torch.tensor(found))
        return copy.deepcopy([*model.parameters(), *state_of(optimizer)])

    first, second, third = step(0.0), step(1.0), step(0.0)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not torch.equal(second[0], third[0])


MIXED = (
    "students=[{architecture='squeezenet1_1', lr=0.01}, "
    "{architecture='squeezenet1_1', name='b', lr=0.001, optimizer='AdamW', decay_1d=false, clip_norm=1.0, "
    "optimizer_options={betas=[0.8, 0.9]}}, "
    "{architecture='squeezenet1_1', name='c', lr=0.001, optimizer='RMSprop', schedule='wsd', decay_epochs=1.0}, "
    "{architecture='squeezenet1_1', name='d', lr=0.001, optimizer='NAdam'}]"
)


def test_resumed_equals_uninterrupted(tmp_path: Path, dataset: DatasetFolder, cache: Path) -> None:
    """SGD, AdamW, RMSprop and NAdam, interrupted between two steps of the first epoch, to the last bit."""
    recipe = small_recipe(MIXED, "train.epochs=2", "train.batch_size=8")
    job = TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / "a", device=CPU, cache=cache)
    train(job)
    interrupted = vars(job) | {"out": tmp_path / "b"}
    assert train(TrainJob(**(interrupted | {"stopped": StopAfter(0).stopped}))).step == 1
    assert train(TrainJob(**(interrupted | {"resume": True}))).finished
    assert checkpoint_hash(tmp_path / "a") == checkpoint_hash(tmp_path / "b")
    kinds = {".".join(name.split(".")[:3]) for name in checkpoint_tensors(tmp_path / "a") if name.startswith("optimizer.")}
    assert kinds == {
        *(f"optimizer.1.{kind}" for kind in ("step", "exp_avg", "exp_avg_sq")),
        *(f"optimizer.2.{kind}" for kind in ("step", "square_avg", "momentum_buffer")),
        *(f"optimizer.3.{kind}" for kind in ("step", "mu_product", "exp_avg", "exp_avg_sq")),
    }


def test_sgd_keeps_the_names_of_earlier_checkpoints() -> None:
    (student,) = make_students(small_recipe("students=[{architecture='squeezenet1_1'}]"), 4, CPU)
    names = {name for name, _ in student.model.named_parameters()}
    expected = {f"{kind}.0.{name}" for kind in ("student", "momentum") for name in names}
    assert student.tensors().keys() == expected


def test_a_cuda_graph_refuses_a_step_that_waits() -> None:
    settings = ["train.input=resident", "train.cuda_graph=true"]
    recipe = small_recipe(*settings, "students=[{architecture='squeezenet1_1', optimizer='Adafactor'}]")
    with pytest.raises(ConfigError, match=r"cuda_graph is true and the optimizer Adafactor, whose step waits"):
        make_students(recipe, 4, torch.device("cuda"))
    for name in ("SGD", "AdamW", "RMSprop", "NAdam"):
        require_capturable(name, "cuda")
