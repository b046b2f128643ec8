"""Backends by name. Each is imported only when it is chosen."""

import os
from importlib.util import find_spec

import psutil
import torch

from udkd.data.batch import Backend
from udkd.data.canvas import canvas_bytes
from udkd.data.dataset import Split
from udkd.utils.errors import ConfigError

_MEMORY_SHARE = 0.6  # of what is free: the models, their gradients and everybody else need the rest


def choose_backend(name: str, split: Split, device: torch.device) -> tuple[str, str]:
    """Which backend `name` means here ("auto" picks by what is there and what fits), and why, in words for the user."""
    if name != "auto":
        return name, "it was asked for"
    fits, why = _resident_fits(split, device)
    if fits:
        return "resident", why
    if device.type == "cuda":
        fault = _fault("dali")
        if fault is None:
            return "dali", f"{why}, and DALI decodes on the GPU"
        why = f"{why}, {fault}"
    if not split.has("ffcv") and _installed("ffcv"):
        return "folder", f"{why}, and samples.beton is not there (udkd-prep derive --formats ffcv)"
    fault = _fault("ffcv")
    if fault is None:
        return "ffcv", f"{why}, and FFCV is the fastest on the CPU"
    return "folder", f"{why}, and {fault}"


def _resident_fits(split: Split, device: torch.device) -> tuple[bool, str]:
    if not split.has_canvas():
        return False, "the dataset folder holds no canvas.npy (udkd-prep derive writes it)"
    needed = canvas_bytes(split.num_samples, split.side)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_bytes()
    if needed > _MEMORY_SHARE * free:
        return False, f"canvas.npy takes {needed / 1e9:.1f} GB, more than fits in {free / 1e9:.1f} GB of free memory"
    return True, f"canvas.npy, {needed / 1e9:.2f} GB, fits in {free / 1e9:.1f} GB of free memory"


def _free_bytes() -> int:
    """Memory that is free on the host; where /proc is not mounted, without what the file cache would give back."""
    try:
        return int(psutil.virtual_memory().available)
    except (OSError, psutil.Error):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _fault(name: str) -> str | None:
    """Why a backend's package cannot be used here, in words; None where it can.

    It is imported to know: a package whose libraries are missing, or made for another NumPy or CUDA, looks installed.
    """
    try:
        if name == "dali":
            if not _installed("nvidia.dali"):
                return "DALI is not installed"
            from udkd.data.backends.dali import import_dali

            import_dali()
        else:
            if not _installed("ffcv"):
                return "FFCV is not installed"
            from udkd.data.beton import import_ffcv

            import_ffcv()
    except ConfigError as error:
        return str(error).partition(";")[0]
    return None


def _installed(package: str) -> bool:
    """Without importing it, which takes seconds."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it is part of
        return False


def open_backend(name: str, split: Split, device: torch.device, *, workers: int = 0) -> Backend:
    """Open a backend by name (`choose_backend` tells what "auto" means) on one split. workers: decoding threads, 0 for one per core.

    Raises ConfigError for an unknown name and DataError where the split lacks what the backend reads.
    """
    name, _ = choose_backend(name, split, device)
    if name == "resident":
        from udkd.data.backends.resident import ResidentBackend

        return ResidentBackend(split, device)
    if name == "folder":
        from udkd.data.backends.folder import FolderBackend

        return FolderBackend(split, device, workers=workers)
    if name == "ffcv":
        from udkd.data.backends.ffcv import FfcvBackend

        return FfcvBackend(split, device, workers=workers)
    if name == "dali":
        from udkd.data.backends.dali import DaliBackend

        return DaliBackend(split, device, workers=workers)
    raise ConfigError(f"backend {name!r} is unknown; expected auto, resident, ffcv, dali or folder")
