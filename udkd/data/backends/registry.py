"""Opens backends by name. Those of this package are at the end; other modules may register theirs when imported.

Recipes name backends, and reading a recipe does not import torch: a backend's module is imported when it is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol, TypeVar

from udkd.data.dali_package import import_dali
from udkd.utils.errors import ConfigError
from udkd.utils.progress import SILENT, Observer

if TYPE_CHECKING:
    import torch

    from udkd.data.batch import Backend
    from udkd.data.dataset import Split

_MEMORY_FRACTION = 0.6  # of the free memory: the models, their gradients and other programs need the rest


class Opener(Protocol):
    """Opens a backend on a split. workers: decoding threads, 0 for one per core. Raises DataError or ConfigError."""

    def __call__(self, split: Split, device: torch.device, *, workers: int) -> Backend: ...


_OPENERS: dict[str, Opener] = {}
_AnyOpener = TypeVar("_AnyOpener", bound=Opener)


def register_backend(name: str) -> Callable[[_AnyOpener], _AnyOpener]:
    """Decorate a backend's class, or a function that opens one, to make it available as data.backend = `name`."""
    assert name not in _OPENERS, f"backend {name!r} is registered twice"

    def add(opener: _AnyOpener) -> _AnyOpener:
        _OPENERS[name] = opener
        return opener

    return add


def backend_names() -> tuple[str, ...]:
    """The names that `open_backend` takes: "auto" and every registered backend."""
    return ("auto", *sorted(_OPENERS))


def choose_backend(name: str, split: Split, device: torch.device) -> tuple[str, str]:
    """The backend to use, and the reason. "auto" chooses among those whose package, files and memory are available."""
    if name != "auto":
        return name, "it was requested"
    fits, why = _resident_fits(split, device)
    if fits:
        return "resident", why
    if device.type == "cuda":
        reason = _dali_unusable_reason()
        if reason is None:
            return "dali", f"{why}, and DALI decodes on the GPU"
        why = f"{why}, {reason}"
    if split.has("ffcv"):
        return "ffcv", f"{why}, and samples.beton is there"
    return "folder", f"{why}, and samples.beton is not there (udkd data derive --formats ffcv)"


def _resident_fits(split: Split, device: torch.device) -> tuple[bool, str]:
    import torch

    from udkd.data.canvas import canvas_bytes

    if not split.has("resident"):
        return False, "the dataset folder holds no canvas.npy (udkd data derive writes it)"
    needed = canvas_bytes(split.num_samples, split.side)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_bytes()
    if needed > _MEMORY_FRACTION * free:
        return False, f"canvas.npy takes {needed / 1e9:.1f} GB, more than fits in {free / 1e9:.1f} GB of free memory"
    return True, f"canvas.npy, {needed / 1e9:.2f} GB, fits in {free / 1e9:.1f} GB of free memory"


def _free_bytes() -> int:
    """Free memory on the host, in bytes; if /proc is not mounted, without the memory that the page cache could release."""
    import psutil

    try:
        return int(psutil.virtual_memory().available)
    except (OSError, psutil.Error):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _dali_unusable_reason() -> str | None:
    """Why DALI cannot be used here; None if it can.

    The package is imported to find out: it may be installed without its libraries, or built for another NumPy or CUDA.
    """
    if not _installed("nvidia.dali"):
        return "DALI is not installed"
    try:
        import_dali()
    except ConfigError as error:
        return str(error).partition(";")[0]
    return None


def _installed(package: str) -> bool:
    """Whether a package is installed, without importing it, which takes seconds."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it is part of
        return False


def open_backend(name: str, split: Split, device: torch.device, *, workers: int = 0, observer: Observer = SILENT) -> Backend:
    """Open a backend by name ("auto": see `choose_backend`) on one split. workers: decoding threads, 0 for one per core.

    observer: receives one line with the backend and the reason for it.
    Raises ConfigError for an unknown name, and DataError if the split lacks the files that the backend reads.
    """
    if name not in backend_names():
        raise ConfigError(f"backend {name!r} is unknown; expected {', '.join(backend_names())}; change data.backend")
    chosen, reason = choose_backend(name, split, device)
    observer.note(f"{split.name} images: {chosen} backend, because {reason}")
    return _OPENERS[chosen](split, device, workers=workers)


@register_backend("dali")
def _dali(split: Split, device: torch.device, *, workers: int) -> Backend:
    from udkd.data.backends.dali import DaliBackend

    return DaliBackend(split, device, workers=workers)


@register_backend("ffcv")
def _ffcv(split: Split, device: torch.device, *, workers: int) -> Backend:
    from udkd.data.backends.ffcv import FfcvBackend

    return FfcvBackend(split, device, workers=workers)


@register_backend("folder")
def _folder(split: Split, device: torch.device, *, workers: int) -> Backend:
    from udkd.data.backends.folder import FolderBackend

    return FolderBackend(split, device, workers=workers)


@register_backend("resident")
def _resident(split: Split, device: torch.device, *, workers: int) -> Backend:
    from udkd.data.backends.resident import ResidentBackend

    return ResidentBackend(split, device, workers=workers)
