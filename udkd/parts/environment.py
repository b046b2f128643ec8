"""Where a run happens: device, threads, versions, hardware."""

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from udkd.words.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """Find a device; "auto" takes a GPU where there is one. Raises ConfigError for a device that is not there."""
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
    """PyTorch's threads on the CPU; 0 leaves them. Sums are ordered by them, so bit-equal runs need the same number."""
    if threads:
        torch.set_num_threads(threads)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for the record."""
    return {
        "versions": {name: _version(name) for name in ("udkd", "torch", "torchvision", "numpy", "pillow")}
        | {"python": platform.python_version()},
        "hardware": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
        },
        "command": " ".join(sys.argv),
    }


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
