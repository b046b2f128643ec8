"""Where a run happens: device, threads, versions, hardware."""

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

_ALWAYS_TAKEN_THREADS = 256
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def choose_device(name: str) -> torch.device:
    """Find a device and make this process ready for it; "auto" takes a GPU where there is one.

    Raises ConfigError for a device that is not there.
    """
    device = _find(name)
    if device.type == "cpu":
        _keep_freed_memory()
    elif device.index is not None:  # graphs, streams and Triton kernels go to the current device
        torch.cuda.set_device(device)
    return device


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next step, up to the most that was ever held.

    It gives big blocks back and every step faults them in again, 20,000 pages a step of both students at 32 px, batch 64:
    about a tenth of the step's processor time. Elsewhere than on glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)


def _find(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise ConfigError(f"device {name!r} is unknown; expected auto, cpu, cuda or cuda:N; change --device")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name} was asked for and PyTorch sees {torch.cuda.device_count()} GPUs; expected one of those; "
            "use --device auto or cpu"
        )
    return device


def set_threads(threads: int) -> None:
    """PyTorch's threads on the CPU; 0 leaves them. Sums are ordered by them, so bit-equal runs need the same number.

    Raises ConfigError for many more than there are cores, which would wait for each other without an end.
    """
    cores = len(os.sched_getaffinity(0))
    most = max(_ALWAYS_TAKEN_THREADS, 4 * cores)
    if not 0 <= threads <= most:
        raise ConfigError(f"train.threads is {threads} on {cores} cores; expected 0 to {most}; change it")
    if threads:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def convolution_search(search: bool) -> Iterator[None]:
    """Within it cuDNN times its algorithms for each convolution that it meets first, or takes what its rules say.

    Not torch.backends.cudnn.flags: whatever that is not told it switches off, cuDNN itself first.
    """
    asked, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, search
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = asked


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for the record."""
    return {
        "versions": {name: _version(name) for name in ("udkd", "torch", "torchvision", "numpy", "pillow")}
        | {"python": platform.python_version()},
        "hardware": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
        }
        | ({} if device.type == "cpu" else {"tf32": _tf32()}),
        "command": " ".join(sys.argv),
    }


def _tf32() -> dict[str, bool]:
    """Where float32 is computed with 10 bits of mantissa on a GPU: PyTorch's defaults are convolutions, not products."""
    # Not allow_tf32: once a process has set fp32_precision, asking the older name is an error.
    cudnn: Any = torch.backends.cudnn
    asked = {"convolutions": cudnn.conv, "products": torch.backends.cuda.matmul}
    return {name: module.fp32_precision == "tf32" for name, module in asked.items()}


def _version(package: str) -> str:
    """The installed version; a checkout that is on the path but not installed has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The CPU's name, as the kernel tells it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
