"""A method registered from outside the package: its options are part of recipes, its term is trained."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.factories import make_dataset, make_teacher, small_recipe, unregister_method
from udkd.config.recipe import Recipe
from udkd.losses.methods.registry import MethodInputs, MethodSetup, register_method
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import TrainJob, train
from udkd.utils.errors import ConfigError
from udkd.utils.options import Positive, Section


class ScaledSection(Section):
    """A squared error with a learnable scale."""

    weight: Positive = 2.0


class Scaled(nn.Module):
    def __init__(self, options: ScaledSection, setup: MethodSetup) -> None:
        super().__init__()
        self.options = options
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: MethodInputs) -> Tensor:
        error = inputs.logits.float() * self.scale - inputs.teacher_logits.float()
        return self.options.weight * error.square().mean()


@pytest.fixture
def registered() -> Iterator[None]:
    register_method("scaled", ScaledSection)(Scaled)
    yield
    unregister_method("scaled")


def test_a_method_from_outside_is_trained(tmp_path: Path, registered: None) -> None:
    dataset = make_dataset(tmp_path / "data", per_class=4, val_per_class=1)
    teacher = make_teacher(tmp_path / "teacher", dataset)
    recipe = small_recipe(
        'loss.method="scaled"', "methods.scaled.weight=0.5", "train.epochs=1", 'teacher.source="live"', "loss.beta=0"
    )
    assert recipe.to_dict()["methods"]["scaled"] == {"weight": 0.5}
    assert Recipe.from_dict(recipe.to_dict(), "again") == recipe
    out, device = tmp_path / "run", torch.device("cpu")
    assert train(TrainJob(recipe=recipe, data=dataset.path, out=out, device=device, teacher=teacher.path)).finished
    run = RunFolder.open(out)
    assert run.load().tensors["connector.1.scale"] != 1
    assert min(run.metrics()[0]["train"]["method"]) > 0
    with pytest.raises(ConfigError, match=r"methods\.scaled\.wait is not a key of a recipe; expected weight"):
        small_recipe("methods.scaled.wait=1")


def test_a_method_that_is_not_registered_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"loss\.method is \"scaled\"; expected 'none', .*'crd'.* or 'rkd'; change it"):
        small_recipe('loss.method="scaled"')
    with pytest.raises(AssertionError, match="registered already"):
        register_method("crd", ScaledSection)
