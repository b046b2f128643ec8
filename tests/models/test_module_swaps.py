"""Modules that compute the same in another way: values and gradients against PyTorch's."""

import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch._functorch import config as functorch_config
from torch._inductor import metrics

from tests.factories import small_recipe
from udkd.models.module_swaps import (
    INDUCTOR_OPTIONS,
    GatheredMaxPool,
    SavedReLU6,
    fold_batch_norm,
    use_gathered_pool,
    use_saved_relu6,
)
from udkd.training.build_step import inductor_options
from udkd.utils.compile import compiled
from udkd.utils.errors import ConfigError


def gradients(function, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[no-untyped-def]
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x)
    y.backward(torch.arange(y.numel(), dtype=torch.float32).view(y.shape) % 7 - 2.5)
    assert x.grad is not None
    return y.detach(), x.grad


def test_saved_relu6_is_relu6_at_its_corners_too() -> None:
    x = torch.cat([torch.linspace(-3, 9, 97), torch.tensor([0.0, -0.0, 6.0, 1e-30, 5.9999995])])
    for ours, theirs in zip(gradients(SavedReLU6(), x), gradients(F.relu6, x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 2, 0), (3, 3, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(9, 12), (10, 7)])
def test_gathered_pool_is_max_pool(
    kernel: int, stride: int, padding: int, layout: torch.memory_format, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (2, 3, *size), generator=generator).float()  # ties everywhere, as after a ReLU
    x = x.to(memory_format=layout)
    ours = gradients(GatheredMaxPool(kernel, stride, padding), x)
    theirs = gradients(lambda x: F.max_pool2d(x, kernel, stride, padding), x)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("sizes", [(2, 1, 0), pytest.param((3, 2, 1), marks=pytest.mark.long)])
def test_the_backward_of_a_gathered_pool_is_one_kernel(sizes: tuple[int, int, int]) -> None:
    """Sums stored per window would cost more than the atomics that they replace; inductor's options avoid them."""
    options = INDUCTOR_OPTIONS | {"fx_graph_cache": False}
    if hasattr(torch._inductor.config, "realize_cpu_opcount_threshold"):  # PyTorch 2.14
        options["realize_cpu_opcount_threshold"] = INDUCTOR_OPTIONS["realize_opcount_threshold"]
    pool = torch.compile(GatheredMaxPool(*sizes), fullgraph=True, options=options)
    x = torch.randn(2, 8, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    with functorch_config.patch(enable_autograd_cache=False):
        y = pool(x)
        metrics.reset()
        y.backward(torch.ones_like(y))
    assert metrics.generated_kernel_count == 1


ALL_SETTINGS = ["gathered_pool=true", "force_layout=true", "combo_kernels=true"]


def test_options_that_pytorch_renamed_are_one_line_before_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    options = inductor_options(small_recipe(*(f"perf.{setting}" for setting in ALL_SETTINGS)))
    assert options is not None
    assert len(options) == 3
    compiled(F.relu, options)  # this PyTorch has them all
    kept = [name for name in torch._inductor.list_options() if name not in options]
    monkeypatch.setattr(torch._inductor, "list_options", lambda: kept)
    for name in options:
        with pytest.raises(ConfigError, match=rf"has no inductor option {name}, which perf\..* use --set perf\.\w+=\w+$"):
            compiled(F.relu, {name: options[name]})
    compiled(F.relu)


def test_a_missing_limit_of_dynamo_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo, "config", object())
    with pytest.raises(ConfigError, match=r"recompile_limit, which train\.compile needs; expected .*--set train\.compile=off$"):
        compiled(F.relu)


def test_a_fold_that_pytorch_has_moved_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.fx.experimental.optimization", None)
    with pytest.raises(ConfigError, match=r"which teacher\.fold_bn needs; expected .*--set teacher\.fold_bn=false$"):
        fold_batch_norm(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval())


def test_swaps_reach_every_module_of_their_kind() -> None:
    mobilenet = use_saved_relu6(torchvision.models.mobilenet_v2(weights=None))
    assert sum(isinstance(module, SavedReLU6) for module in mobilenet.modules()) == 35
    assert not any(isinstance(module, nn.ReLU6) for module in mobilenet.modules())
    resnet = use_gathered_pool(torchvision.models.resnet18(weights=None))
    assert sum(isinstance(module, GatheredMaxPool) for module in resnet.modules()) == 1
    squeezenet = use_gathered_pool(torchvision.models.squeezenet1_1(weights=None))  # its pools round up
    assert sum(isinstance(module, nn.MaxPool2d) for module in squeezenet.modules()) == 3


def test_folded_batch_norm_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=10)
    model(torch.rand(4, 3, 32, 32))  # statistics that are not 0 and 1
    model.eval()
    folded = fold_batch_norm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules()), "the original is unchanged"
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
