"""Networks by name from torchvision, timm and a user's module: what is built, its own input, what is refused."""

import pytest
import timm
import timm.data
import torch
from torch import nn

from udkd.augment.preprocessing import IMAGENET, Preprocessing
from udkd.models.architectures import default_preprocessing, own_input
from udkd.models.build import (
    _use_keyed_dropout,
    build,
    check_input_size,
    dropout_keys,
    dropout_layers,
    head_parameter_names,
    meta_state_dict,
    require_keyed_randomness,
)
from udkd.models.features import stages
from udkd.models.module_swaps import fold_batch_norm
from udkd.utils.errors import ConfigError

OWN = "tests.models.own_models:"


@pytest.mark.parametrize("architecture", ["timm/test_resnet", "timm/test_vit", f"{OWN}make"])
def test_a_foreign_network_is_built_by_seed(architecture: str) -> None:
    torch.manual_seed(1)
    first, second, other = (build(architecture, 5, image_px=32, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())
    wanted = meta_state_dict(architecture, 5, 32)
    assert {name: value.shape for name, value in first.items()} == {name: value.shape for name, value in wanted.items()}
    head = head_parameter_names(architecture)
    assert [first[name].shape[0] for name in head] == [5] * len(head)
    assert head[0].endswith("weight")


def test_timms_weights_are_its_own() -> None:
    """The network is the one that timm creates: its state dict loads strictly, and the logits are equal."""
    ours = build("timm/test_vit", 5, image_px=160, seed=0).eval()
    theirs = timm.create_model("test_vit", num_classes=5).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_the_input_that_timm_says() -> None:
    for name in ("vit_tiny_patch16_224", "resnet18.a1_in1k", "convnext_atto", "test_vit"):
        config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        own = own_input(f"timm/{name}")
        assert own is not None
        assert (own.preprocessing.mean, own.preprocessing.std) == (config["mean"], config["std"])
        assert (own.size_px, own.preprocessing.interpolation) == (config["input_size"][-1], config["interpolation"])


def test_the_input_that_others_say() -> None:
    own = own_input(f"{OWN}make")
    wanted = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 0.2), interpolation="bicubic")
    assert own is not None
    assert (own.size_px, own.preprocessing) == (40, wanted)
    assert default_preprocessing(f"{OWN}make") == wanted
    assert own_input(f"{OWN}bare") is None
    assert default_preprocessing("vit_b_16") == IMAGENET
    large = own_input("vit_h_14")
    assert large is not None
    assert (large.size_px, large.preprocessing.interpolation) == (518, "bicubic")


def test_stochastic_depth_is_keyed() -> None:
    """timm's DropPath, whose masks would come from a global generator, is a function of the key."""
    model = build("timm/convnext_atto", 4, image_px=32, seed=0)
    assert not dropout_layers(model), "a probability of 0 needs no key"
    block = nn.Sequential(timm.layers.DropPath(0.5), timm.layers.DropPath(0.5))
    keyed = _use_keyed_dropout(block).train()
    x = torch.ones(64, 3)
    outputs = []
    for key in dropout_keys(0, 0, torch.arange(2).numpy()).tolist():
        for layer in dropout_layers(keyed):
            layer.key.fill_(key)
        outputs.append([keyed(x), keyed(x)])
    assert torch.equal(*outputs[0])
    assert not torch.equal(outputs[0][0], outputs[1][0])
    assert set(outputs[0][0].unique().tolist()) == {0.0, 4.0}, "whole samples, scaled by 1 / (1 - p) twice"


def test_random_numbers_outside_dropout_are_refused_for_students_only() -> None:
    check_input_size(f"{OWN}random", 4, 32)
    with pytest.raises(ConfigError, match=r"draws random numbers in its forward pass \(.*; expected torch.nn.Dropout alone"):
        require_keyed_randomness(f"{OWN}random", 4, 32)
    with pytest.raises(ConfigError, match=r"one Dropout in several places"):
        require_keyed_randomness(f"{OWN}repeated", 4, 32)
    require_keyed_randomness(f"{OWN}make", 4, 32)
    require_keyed_randomness("timm/test_vit", 4, 32)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("timm/resnet18x", "unknown to timm .*; expected one of its names; did you mean timm/resnet18 "),
        ("timm/", "unknown to timm .*; see timm.list_models"),
        (f"{OWN}missing", "has no function 'missing'; expected one that returns"),
        ("no_such_module:make", "no_such_module cannot be imported .*PYTHONPATH="),
        (f"{OWN}no_module", "returned str; expected a torch.nn.Module"),
        (f"{OWN}raises", r"failed \(ValueError: my mistake, own_models\.py:\d+\); expected a function"),
        ("timm/test_vit.wrong", r"has no weights 'test_vit\.wrong'; expected a known tag \(test_vit\.r160_in1k\)"),
        (f"{OWN}fixed", r"returns \[2, 7\] for 2 images; expected logits \[2, 4\]"),
        (":make", "cannot be imported .*ValueError"),
        (".module:make", "cannot be imported .*TypeError"),
        (f"{OWN}failing", r"failed \(KeyError: 'width', own_models.py:\d+\)"),
        (f"{OWN}failing_later", r"cannot take 20 px images \(IndexError: .*, own_models.py:\d+\)"),
        ("os:getcwd", "expected a function that is called with num_classes"),
        ("timm/test_vit", "cannot take 20 px images .*teacher.size_px to its own 160"),
    ],
)
def test_refusals(architecture: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(architecture, 4, image_px=20, seed=0)
    assert "\n" not in str(caught.value)


def test_a_dropout_of_ones_own_is_not_replaced() -> None:
    class Half(nn.Dropout):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input / 2

    assert type(_use_keyed_dropout(nn.Sequential(Half(0.5)))[0]) is Half
    assert type(_use_keyed_dropout(nn.Sequential(nn.Dropout(0.5)))[0]) is not nn.Dropout


@pytest.mark.parametrize("architecture", ["timm/test_vit", "timm/vit_tiny_patch16_224"])
def test_tokens_are_not_taken_for_feature_maps(architecture: str) -> None:
    """Patches before the position embedding are [B, H, W, C] in timm, and were taken for a map of H channels."""
    model = build(architecture, 4, image_px=64, seed=0)
    with pytest.raises(ConfigError, match="VisionTransformer has no feature maps"):
        stages(model, 64)
    assert [stage.channels for stage in stages(build("timm/test_resnet", 4, image_px=64, seed=0), 64)] == [32, 32, 48, 192, 96]


def test_a_network_that_cannot_be_traced_is_not_folded() -> None:
    with pytest.raises(ConfigError, match=r"torch\.fx cannot trace VisionTransformer .*set teacher\.fold_bn to false"):
        fold_batch_norm(build("timm/test_vit", 4, image_px=32, seed=0).eval())
