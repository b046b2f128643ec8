"""The machine that a run uses: device, threads, versions, hardware."""

import contextlib
import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from udkd.utils.errors import ConfigError
from udkd.utils.operating_system import available_cores, processor_name

_ALWAYS_ALLOWED_THREADS = 256
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def choose_device(name: str) -> torch.device:
    """Select a device and prepare this process for it; "auto" takes a GPU if there is one.

    Raises ConfigError for a device that does not exist.
    """
    device = _parse_device(name)
    if device.type == "cpu":
        _keep_freed_memory()
    elif device.index is not None:  # graphs, streams and Triton kernels go to the current device
        torch.cuda.set_device(device)
    return device


def resolve_device(device: torch.device | str) -> torch.device:
    """A device unchanged, or the device with a name of `choose_device`, without preparing it. Raises ConfigError."""
    return _parse_device(device) if isinstance(device, str) else device


def prepare_device(device: torch.device | str) -> torch.device:
    """A device unchanged, or `choose_device` of a name."""
    return choose_device(device) if isinstance(device, str) else device


def _keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees for the next step. Does nothing on other C libraries.

    By default large blocks are returned to the kernel and faulted in again by every step: 20,000 pages per step for both
    students at 32 px, batch 64, about a tenth of the step's CPU time.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)


def _parse_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise ConfigError(f"device {name!r} is unknown; expected auto, cpu, cuda or cuda:N; change --device")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name} was requested and PyTorch sees {torch.cuda.device_count()} GPUs; expected one of those; "
            "use --device auto or cpu"
        )
    return device


def set_threads(threads: int) -> None:
    """Set the number of PyTorch's CPU threads; 0 keeps it. Sums depend on it: bit-equal runs need the same number.

    Raises ConfigError for far more threads than cores: they would wait for each other forever.
    """
    cores = available_cores()
    limit = max(_ALWAYS_ALLOWED_THREADS, 4 * cores)
    if not 0 <= threads <= limit:
        raise ConfigError(f"train.threads is {threads} on {cores} cores; expected 0 to {limit}; change it")
    if threads:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def cudnn_benchmark(search: bool) -> Iterator[None]:
    """Within the block, cuDNN times its algorithms for each new convolution (search) or chooses one by heuristics."""
    # Not torch.backends.cudnn.flags: it turns off every flag that is not passed to it, including cuDNN itself.
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, search
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def set_cublas_workspace(*, deterministic: bool) -> None:
    """Let cuBLAS add in a fixed order, which it does only if this is set before it is first used in the process."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextlib.contextmanager
def deterministic(only: bool) -> Iterator[None]:
    """Within the block, PyTorch uses only kernels whose sums have a fixed order (only); it raises an error for others."""
    before = torch.are_deterministic_algorithms_enabled()
    if only:
        set_cublas_workspace(deterministic=True)
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware and command line as JSON values, for a run folder."""
    return {
        "versions": {name: package_version(name) for name in ("udkd", "torch", "torchvision", "numpy", "pillow")}
        | {"python": platform.python_version()},
        "hardware": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
            "cores": available_cores(),
            "threads": torch.get_num_threads(),
        }
        | ({} if device.type == "cpu" else {"tf32": _tf32()}),
        "command": " ".join(sys.argv),
    }


def _tf32() -> dict[str, bool]:
    """Which float32 operations a GPU computes with TF32's 10-bit mantissa. PyTorch's default: convolutions only."""
    # Not allow_tf32: reading it is an error once a process has set fp32_precision.
    cudnn: Any = torch.backends.cudnn
    modules = {"convolutions": cudnn.conv, "products": torch.backends.cuda.matmul}
    return {name: module.fp32_precision == "tf32" for name, module in modules.items()}


def package_version(package: str) -> str:
    """The installed version of a package; a checkout that is only on sys.path has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
