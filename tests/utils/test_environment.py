"""The choice of a device, and the settings of a process."""

import contextlib
import platform
import resource

import pytest
import torch

import udkd
from udkd.utils.environment import _tf32, choose_device, cudnn_benchmark, environment
from udkd.utils.errors import ConfigError


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc decides for itself")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    """glibc by default gives 40 MB back to the system and faults 10,240 pages in again, each time."""
    choose_device("cpu")
    for _ in range(30):  # until the heap has grown
        torch.ones(10 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(10 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 5 * 10_240


@pytest.mark.parametrize("before", [False, True])
def test_a_search_for_convolutions_leaves_cudnn_on_and_the_process_unchanged(
    monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """torch.backends.cudnn.flags would switch cuDNN off: a convolution is then two launches for each image."""
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", before)
    tf32 = cudnn.allow_tf32
    with contextlib.suppress(ZeroDivisionError), cudnn_benchmark(not before):
        assert (cudnn.benchmark, cudnn.enabled, cudnn.allow_tf32) == (not before, True, tf32)
        raise ZeroDivisionError
    assert cudnn.benchmark == before


def test_the_package_knows_its_version() -> None:
    assert udkd.__version__ == environment(torch.device("cpu"))["versions"]["udkd"]


def test_tf32_is_recorded_where_a_process_has_set_it_the_newer_way() -> None:
    """PyTorch raises on reading allow_tf32 then."""
    matmul = torch.backends.cuda.matmul
    before, recorded = matmul.fp32_precision, _tf32()
    assert recorded == {"convolutions": True, "products": False}, "PyTorch's defaults"
    try:
        matmul.fp32_precision = "tf32"
        assert _tf32() == {"convolutions": True, "products": True}
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "cuda:x"])
def test_a_missing_device_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        choose_device(name)
