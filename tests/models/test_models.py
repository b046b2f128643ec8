"""Networks: dropout whose mask is a hash, weights that are a pure function of the seed, one line for what cannot be built."""

import os
import random

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import StochasticDepth

from udkd.models.build import (
    KeyedDropout,
    build,
    check_input_size,
    dropout_keys,
    dropout_layers,
    first_difference,
    load_weights,
    num_parameters,
)
from udkd.utils.errors import ConfigError
from udkd.utils.hash32 import hash32


def dropout(p: float, key: int = 1, layer: int = 1, *, per_sample: bool = False) -> KeyedDropout:
    module = KeyedDropout(p, layer, per_sample=per_sample).train()
    module.key.fill_(key)
    return module


def mask(module: nn.Module, shape: tuple[int, ...] = (64, 1280)) -> Tensor:
    return module(torch.ones(shape)) > 0


def global_generators() -> tuple[object, ...]:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # type: ignore[index]


def test_hash_equals_python_integers() -> None:
    def slow(x: int) -> int:
        x &= 0xFFFFFFFF
        x = ((x ^ (x >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
        x = ((x ^ (x >> 15)) * 0x735A2D97) & 0xFFFFFFFF
        return x ^ (x >> 15)

    values = [0, 1, 2, 0xFFFFFFFF, 1 << 32, 123456789, (1 << 33) - 1, *range(1000, 9_000_000_000, 99_999_999)]
    assert hash32(torch.tensor(values)).tolist() == [slow(value) for value in values]


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9])
def test_dropout_has_its_rate_and_keeps_the_mean(p: float) -> None:
    n = 64 * 1280
    kept = torch.stack([mask(dropout(p, key)) for key in range(8)]).double()
    assert abs(float(kept.mean()) - (1 - p)) < 5 * (p * (1 - p) / n / 8) ** 0.5
    # No element and no sample is favoured: means over keys, rows and columns scatter as independent draws do.
    for dims, draws in (((0,), 8), ((0, 2), 8 * 1280), ((0, 1), 8 * 64)):
        means = kept.mean(dims)
        assert float(means.var()) == pytest.approx(p * (1 - p) / draws, rel=0.35)
    flat = kept[0].flatten() - kept[0].mean()
    for lag in (1, 2, 64, 1280, 1281):
        assert abs(float((flat[lag:] * flat[:-lag]).mean())) / (p * (1 - p)) < 5 / n**0.5
    y = dropout(p)(torch.full((4, 9), 3.0))
    assert set(y.unique().tolist()) <= {0.0, float(torch.tensor(3.0) * (torch.tensor(True) / (1 - p)))}


def test_keys_layers_and_steps_give_different_masks() -> None:
    masks = [mask(dropout(0.5, key, layer)) for key in (0, 1, 2, 0x9E3779B9, 0xFFFFFFFF) for layer in (1, 2, 3)]
    for n, one in enumerate(masks):
        for other in masks[:n]:
            agree = float((one == other).double().mean())
            assert abs(agree - 0.5) < 5 * 0.5 / one.numel() ** 0.5
    assert torch.equal(mask(dropout(0.5, 7)), mask(dropout(0.5, 7)))


def test_per_sample_drops_complete_samples() -> None:
    kept = mask(dropout(0.3, per_sample=True), (4000, 3, 2, 2)).flatten(1)
    assert (kept.all(1) | ~kept.any(1)).all()
    assert abs(float(kept[:, 0].double().mean()) - 0.7) < 5 * (0.21 / 4000) ** 0.5


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_mask_does_not_depend_on_the_memory_format(per_sample: bool) -> None:
    x = torch.arange(1.0, 1 + 8 * 3 * 5 * 5).view(8, 3, 5, 5)
    module = dropout(0.4, per_sample=per_sample)
    want = module(x)
    assert torch.equal(module(x.to(memory_format=torch.channels_last)), want)
    assert torch.equal(module(x.bfloat16()) == 0, want == 0)
    assert module(x.bfloat16()).dtype == torch.bfloat16
    z = x.clone().requires_grad_()
    module(z).sum().backward()
    torch.testing.assert_close(z.grad, want / x)


def set_dropout_key(model: nn.Module, seed: int, student: int, step: int) -> None:
    """What a step does before its forward pass."""
    for layer in dropout_layers(model):
        layer.key.fill_(int(dropout_keys(seed, student, np.array([step]))[0]))


def test_eager_equals_compiled() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = KeyedDropout(0.2, 1), KeyedDropout(0.5, 2, per_sample=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.other(self.one(x))
            return y

    module, x = Two().train(), torch.ones(16, 40)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    for step in range(3):
        set_dropout_key(module, 5, 0, step)
        assert torch.equal(compiled(x) > 0, module(x) > 0)
        torch.testing.assert_close(compiled(x), module(x))
    # A new key does not recompile.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs == 1


def test_edges_of_p_and_evaluation() -> None:
    x = torch.ones(5, 7)
    assert torch.equal(dropout(0.0)(x), x)
    assert torch.equal(dropout(1.0)(x), torch.zeros(5, 7))
    assert torch.equal(dropout(0.5).eval()(x), x)
    assert dropout(0.5)(torch.ones(0, 7)).shape == (0, 7)
    assert not dropout(0.5).state_dict(), "the key is set by the step and no part of the weights"


def test_the_key_reaches_every_layer_and_differs() -> None:
    model = build("alexnet", 4, image_px=64, seed=0).train()
    layers = dropout_layers(model)
    assert len(layers) == 2
    assert len({layer.layer for layer in layers}) == 2
    names = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    keys = []
    for seed, student, step in names:
        set_dropout_key(model, seed, student, step)
        assert len({int(layer.key) for layer in layers}) == 1
        keys.append(int(layers[0].key))
    assert len(set(keys)) == 4


@pytest.mark.parametrize(
    "architecture",
    [
        "efficientnet_b0",
        "squeezenet1_1",
        *(pytest.param(plain, marks=pytest.mark.long) for plain in ("mobilenet_v2", "resnet18")),
    ],
)
def test_building_and_running_consumes_no_global_randomness(architecture: str) -> None:
    before = global_generators()
    model = build(architecture, 5, image_px=32, seed=3).train()
    left = [each for each in model.modules() if isinstance(each, (nn.Dropout, StochasticDepth)) and each.p > 0]
    assert not left, "all of its randomness is keyed"
    x = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32) / 6144
    set_dropout_key(model, 0, 0, 0)
    one = model(x)
    assert global_generators() == before
    torch.manual_seed(99)
    again = build(architecture, 5, image_px=32, seed=3).train()
    set_dropout_key(again, 0, 0, 0)
    assert torch.equal(again(x), one)
    other = build(architecture, 5, image_px=32, seed=4)
    assert not torch.equal(next(other.parameters()), next(model.parameters()))


REFUSED = {"googlenet": "auxiliary outputs", "inception_v3": "cannot take 224 px images"}


def test_torchvisions_classifiers_are_built_or_refused_in_one_line() -> None:
    """UDKD_LONG_TESTS=1 tries all of them; otherwise every eighth, and those that are refused."""
    known = torchvision.models.list_models(module=torchvision.models)
    assert len(known) > 70
    tried = known if os.environ.get("UDKD_LONG_TESTS") else sorted({*known[::8], *REFUSED})
    for name in tried:
        if name in REFUSED:
            with pytest.raises(ConfigError, match=REFUSED[name]):
                check_input_size(name, 5, 224)
        else:
            check_input_size(name, 5, 224)


@pytest.mark.parametrize("architecture", ["regnet_y_400mf", "regnet_x_400mf", "mnasnet0_5", "shufflenet_v2_x0_5"])
def test_small_networks_of_other_families(architecture: str) -> None:
    model = build(architecture, 5, image_px=32, seed=0).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    state, plain = model.state_dict(), torchvision.models.get_model(architecture, weights=None, num_classes=5).state_dict()
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in plain.items()}
    other = build(architecture, 5, image_px=32, seed=1)
    load_weights(other, dict(state))  # as a checkpoint has them
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_residual_blocks_begin_as_the_identity() -> None:
    for architecture, kind in (("resnet18", BasicBlock), ("resnet50", Bottleneck)):
        model = build(architecture, 3, image_px=32, seed=0).eval()
        blocks = [module for module in model.modules() if isinstance(module, kind)]
        assert len(blocks) == {"resnet18": 8, "resnet50": 16}[architecture]
        for block in blocks:
            x = torch.linspace(0, 1, block.conv1.in_channels * 16).view(1, -1, 4, 4)  # type: ignore[arg-type,operator]
            want = torch.relu(block.downsample(x) if block.downsample else x)  # type: ignore[operator]
            assert torch.equal(block(x), want)
            for name, norm in block.named_modules():
                if isinstance(norm, nn.BatchNorm2d):
                    last = name == ("bn3" if kind is Bottleneck else "bn2")
                    assert (norm.weight == (0 if last else 1)).all(), name


@pytest.mark.parametrize(
    ("architecture", "image_px", "message"),
    [
        ("resnet81", 32, "architecture 'resnet81' is unknown; expected a name of torchvision, timm/NAME or module:function;"),
        ("", 32, "architecture '' is unknown; expected a name of torchvision, timm/NAME or module:function; did you"),
        ("../resnet18", 32, "architecture '../resnet18' is unknown"),
        ("ssd300_vgg16", 300, "architecture 'ssd300_vgg16' is unknown"),
        ("alexnet", 16, "alexnet cannot take 16 px images ("),
        ("vit_b_32", 48, "vit_b_32 cannot take 48 px images (Wrong image height"),
        ("googlenet", 64, "googlenet returns auxiliary outputs; expected logits alone; choose another architecture"),
    ],
)
def test_what_cannot_be_built_is_one_line(architecture: str, image_px: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(architecture, 4, image_px=image_px, seed=0)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_papers_parameter_counts() -> None:
    """Table IV, in millions, with 1000 classes."""
    with torch.device("meta"):
        counts = [num_parameters(torchvision.models.get_model(name)) for name in ("resnet50", "resnet18", "mobilenet_v2")]
    assert [round(count / 1e6, 1) for count in counts] == [25.6, 11.7, 3.5]


def test_first_difference() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    assert first_difference(state, state) == ""
    assert first_difference({"a": state["a"]}, state) == "it lacks b"
    assert first_difference(state | {"b": torch.zeros(5)}, state) == "b is [5], expected [4]"
    assert first_difference(state | {"c": torch.zeros(1)}, state) == "it also holds c"
