"""Weights that others have saved, .safetensors or PyTorch's own: read without running anything that a file holds.

Only `torch.load(weights_only=True)` ever looks into a pickle. PyTorch's zip format has a CRC-32 of each of its parts, which
torch.load does not compare; here they are. Its older format and .safetensors have no checksum at all.
"""

import argparse
import hashlib
import re
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from udkd.utils.errors import DataError
from udkd.utils.files import open_regular

_DEEPEST = 3  # state dicts lie within one or two dictionaries
_MOST_INFLATED = 50  # times its size that a zip may claim to hold: PyTorch itself does not compress
_PIECE = 1 << 20
_CLASSES = ("class_to_idx", "classes", "class_names", "idx_to_class")


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """What a file holds.

    entries: every dictionary of tensors by the path of its keys ("state_dict", "ema.model"; "" is the file as a whole).
    classes: names of the outputs in order, where the file records them. architecture: what it calls itself, or "".
    sha256: of its bytes. unchecked: why a flipped bit in it could not be seen, or "".
    """

    path: Path
    entries: Mapping[str, Mapping[str, Tensor]]
    classes: tuple[str, ...] | None = None
    architecture: str = ""
    sha256: str = ""
    unchecked: str = ""


def read_weights(path: Path) -> WeightsFile:
    """Read a weights file, whatever its name ends in. Raises DataError: no such file, damaged, or more than tensors in it."""
    try:
        file = open_regular(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise DataError(f"{path} is no file; expected weights as .safetensors or .pth; check the path") from None
    with file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        file.seek(0)
        head = file.read(16)
        value, unchecked = _value(path, file, head)
    entries = {name: tensors for name, tensors in _dictionaries(value) if tensors}
    if not entries:
        raise DataError(f"{path} holds no state dict; expected tensors by name; save model.state_dict()")
    root = value if isinstance(value, dict) else {}
    architecture = root.get("arch")
    return WeightsFile(
        path=path,
        entries=entries,
        classes=_classes(root),
        architecture=architecture if isinstance(architecture, str) else "",
        sha256=sha256,
        unchecked=unchecked,
    )


def _value(path: Path, file: BinaryIO, head: bytes) -> tuple[Any, str]:
    """The object in a file, and why its bits are not checked."""
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        file.seek(0)
        try:
            return load(file.read()), ".safetensors has no checksum"
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise DataError(f"{path} is no safetensors file ({_line(error)}); check where it is from") from None
    unchecked = "PyTorch's format before 1.6 has no checksum"
    if head.startswith(b"PK"):
        unchecked = "" if _require_whole(path, file) else "it was saved without checksums"
    elif head[257:262] == b"ustar" or _is_tar(file):
        raise DataError(
            f"{path} is a tar, as PyTorch wrote before 0.1.10, or an archive of something else; expected a file of torch.save, "
            "as reading that one would run code; unpack it, or where you trust it load it in PyTorch and save its state dict"
        )
    file.seek(0)
    try:
        # Of what people save beside their weights, the one class that holds values and does nothing.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse tensors, which nobody takes
            return torch.load(file, map_location="cpu", weights_only=True), unchecked
    except Exception as error:  # torch.load raises whatever the damage causes
        raise DataError(_unreadable(path, head, error)) from None


def _is_tar(file: BinaryIO) -> bool:
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:"):
            return True
    except (tarfile.TarError, OSError, ValueError, EOFError):
        return False


def _require_whole(path: Path, file: BinaryIO) -> bool:
    """Read a zip's parts against their CRC-32; False where it records none.

    Raises DataError: damage, or no file of torch.save.
    """
    file.seek(0, 2)
    size = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            names = [part.filename for part in parts]
            _require_torch(path, names)
            if sum(part.file_size for part in parts) > _MOST_INFLATED * size:
                raise DataError(f"{path} claims to hold more than {_MOST_INFLATED} times its {size:,} bytes; expected weights")
            # torch.serialization.set_crc32_options(False) writes 0 for each.
            recorded = any(part.CRC for part in parts if part.file_size)
            for part in parts if recorded else ():
                with archive.open(part) as content:
                    while content.read(_PIECE):
                        pass
            return recorded
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is damaged ({_line(error)}); expected the bytes that were saved, by its own checksums; fetch it again"
        ) from None


def _require_torch(path: Path, names: list[str]) -> None:
    tops = {name.rsplit("/", 1)[-1] for name in names}
    if "constants.pkl" in tops:
        raise DataError(
            f"{path} is a TorchScript archive, which holds code; expected a state dict; load it with torch.jit.load and save "
            "its state_dict()"
        )
    if "data.pkl" not in tops:
        held = ", ".join(name[:60] for name in names[:3])
        raise DataError(f"{path} is a zip of {held or 'nothing'}; expected a file of torch.save; unpack it first")


def _unreadable(path: Path, head: bytes, error: Exception) -> str:
    """What to say of a file that torch.load refuses."""
    unknown = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error)) or re.search(
        r"add_safe_globals\(\[(\w+)", str(error)
    )
    if unknown is not None:
        return (
            f"{path} holds a Python object ({unknown[1][:80]}), which only running its code could read; expected tensors by "
            "name; where you trust it, load it in PyTorch and save model.state_dict() alone"
        )
    return (
        f"{path} cannot be read as weights (it starts with {head!r}; {_line(error)[:200]}); "
        "expected a state dict of tensors; fetch it again or save model.state_dict()"
    )


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _dictionaries(value: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors of every dictionary, by the path of its keys; each dictionary once, whatever names it has."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    for path, found, depth in waiting:  # it grows while we go
        if not isinstance(found, dict) or id(found) in seen:
            continue
        seen.add(id(found))
        names = [name for name in found if isinstance(name, str)]
        yield path, {name: found[name] for name in names if isinstance(found[name], Tensor)}
        if depth < _DEEPEST:
            waiting += [(f"{path}.{name}" if path else name, found[name], depth + 1) for name in names]


def _classes(root: Mapping[Any, Any]) -> tuple[str, ...] | None:
    """Class names by output, of a list, or of a dictionary either way round; None where nothing of the kind is recorded."""
    for key in _CLASSES:
        value = root.get(key)
        if isinstance(value, dict):
            numbered = {name: number for name, number in value.items() if type(number) is int and isinstance(name, str)}
            numbered = numbered or {name: number for number, name in value.items() if type(number) is int}
            named = {number: name for name, number in numbered.items()}
            value = [named[number] for number in sorted(named)] if sorted(named) == list(range(len(value))) else None
        if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
            return tuple(value)
    return None
