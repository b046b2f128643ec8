"""A kind of sample weight is one function with one registration, in any file."""

import pytest
import torch
from torch import Tensor

from tests.factories import small_recipe
from udkd.losses import sample_weight as weights
from udkd.losses.sample_weight import WeightInputs
from udkd.utils.errors import ConfigError


def test_a_weight_from_outside_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_KINDS", dict(weights._KINDS))

    @weights.register_sample_weight("certain", uncertainty="vacuity", needs_labels=True)
    def certain(inputs: WeightInputs) -> Tensor:
        return (inputs.uncertainty_B < 0.5).float() * (inputs.labels_B >= 0)

    recipe = small_recipe("loss.sample_weight=certain", "teacher.estimator=evidential")
    kind = recipe.loss.sample_weighting.kind
    assert (weights.uncertainty_of(kind), weights.needs_labels(kind)) == ("vacuity", True)
    weight_B = weights.sample_weight(kind, torch.zeros(3, 4), torch.tensor([0.1, 0.9, 0.2]), torch.tensor([0, 1, -1]))
    assert weight_B.tolist() == [1, 0, 0]


def test_an_unknown_kind() -> None:
    with pytest.raises(ConfigError, match=r"sample_weight is \"certain\"; expected 'entropy', .* or 'constant'; change it"):
        small_recipe("loss.sample_weight=certain")
    with pytest.raises(ConfigError, match="'certain' is unknown; expected one of entropy, "):
        weights.uncertainty_of("certain")


def test_constant() -> None:
    assert weights.sample_weight("constant", torch.zeros(2, 4), None, None).tolist() == [1, 1]
