"""Backends by name. Each is imported only when it is chosen."""

import psutil
import torch

from udkd.formats.dataset import Split, canvas_bytes
from udkd.words.batch import Backend
from udkd.words.errors import ConfigError

_MEMORY_SHARE = 0.6  # of what is free: the models, their gradients and everybody else need the rest


def choose(name: str, split: Split, device: torch.device) -> tuple[str, str]:
    """Which backend `name` means here ("auto" picks by what is there and what fits), and why, in words for the user."""
    if name != "auto":
        return name, "it was asked for"
    if not split.has_canvas():
        return "folder", "the dataset folder holds no canvas.npy (udkd-prep derive writes it)"
    needed = canvas_bytes(split.num_samples, split.side)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > _MEMORY_SHARE * free:
        return "folder", f"canvas.npy takes {needed / 1e9:.1f} GB, more than fits in {free / 1e9:.1f} GB of free memory"
    return "resident", f"canvas.npy, {needed / 1e9:.2f} GB, fits in {free / 1e9:.1f} GB of free memory"


def open_backend(name: str, split: Split, device: torch.device, *, workers: int = 0) -> Backend:
    """Open a backend by name (`choose` tells what "auto" means) on one split. workers: decoding threads, 0 for one per core.

    Raises ConfigError for an unknown name and DataError where the split lacks what the backend reads.
    """
    name, _ = choose(name, split, device)
    if name == "resident":
        from udkd.backends.resident import ResidentBackend

        return ResidentBackend(split, device)
    if name == "folder":
        from udkd.backends.folder import FolderBackend

        return FolderBackend(split, device, workers=workers)
    if name == "dali":
        from udkd.backends.dali import DaliBackend

        return DaliBackend(split, device, workers=workers)
    raise ConfigError(f"backend {name!r} is unknown; expected auto, resident, dali or folder")
