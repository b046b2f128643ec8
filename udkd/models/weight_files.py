"""Reads weight files of any origin, .safetensors or PyTorch's formats, without running code from them.

Pickles are only read with `torch.load(weights_only=True)`. PyTorch's zip format has a CRC-32 for each part, which torch.load
does not check and this module does. PyTorch's older format and .safetensors have no checksum.
"""

import argparse
import contextlib
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

from udkd.augment.preprocessing import Preprocessing
from udkd.models.plain_weights import read_metadata
from udkd.utils.errors import ConfigError, DataError
from udkd.utils.files import open_regular
from udkd.utils.parsing import parse_json

_MAX_DEPTH = 3  # state dicts are nested in one or two dictionaries
_MAX_INFLATION = 50  # limit on the uncompressed size of a zip relative to the file: PyTorch does not compress
_PIECE = 1 << 20
_CLASSES = ("class_to_idx", "classes", "class_names", "idx_to_class")


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """The content of a weights file.

    entries: every dictionary of tensors, by the path of its keys ("state_dict", "ema.model"; "" for the top level).
    classes: names of the outputs in order; None if the file has none. architecture: the recorded name, or "".
    preprocessing: of the network's input, where a run of udkd wrote the file; else None. sha256: of the file, in hex.
    unchecked: why a flipped bit would go unnoticed, or "".
    """

    path: Path
    entries: Mapping[str, Mapping[str, Tensor]]
    classes: tuple[str, ...] | None = None
    architecture: str = ""
    preprocessing: Preprocessing | None = None
    sha256: str = ""
    unchecked: str = ""


def read_weights(path: Path) -> WeightsFile:
    """Read a weights file with any suffix. Raises DataError if it is missing or damaged, or holds Python objects."""
    try:
        file = open_regular(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise DataError(f"{path} is not a file; expected weights as .safetensors or .pth; check the path") from None
    with file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        file.seek(0)
        head = file.read(16)
        value, facts, unchecked = _load(path, file, head)
    entries = {name: tensors for name, tensors in _dictionaries(value) if tensors}
    if not entries:
        raise DataError(f"{path} holds no state dict; expected tensors by name; save model.state_dict()")
    architecture = facts.get("arch") or facts.get("architecture")
    return WeightsFile(
        path=path,
        entries=entries,
        classes=_classes(facts),
        architecture=architecture if isinstance(architecture, str) else "",
        preprocessing=_preprocessing(path, facts),
        sha256=sha256,
        unchecked=unchecked,
    )


def _load(path: Path, file: BinaryIO, head: bytes) -> tuple[Any, Mapping[Any, Any], str]:
    """The object in a file, the entries beside it by name, and the text for WeightsFile.unchecked."""
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        file.seek(0)
        try:
            data = file.read()
            return load(data), _parsed(read_metadata(data)), ".safetensors has no checksum"
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise DataError(f"{path} is not a safetensors file ({_first_line(error)}); check where it is from") from None
    unchecked = "PyTorch's format before 1.6 has no checksum"
    if head.startswith(b"PK"):
        unchecked = "" if _check_zip(path, file) else "it was saved without checksums"
    elif head[257:262] == b"ustar" or _is_tar(file):
        raise DataError(
            f"{path} is a tar, as PyTorch wrote before 0.1.10, or an archive of something else; expected a file of torch.save, "
            "as reading this one would run code; unpack it, or if you trust it load it in PyTorch and save its state dict"
        )
    file.seek(0)
    try:
        # argparse.Namespace is often saved with weights, and holds plain values.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sparse tensors, which as_float32 rejects
            value = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files torch.load may raise anything
        raise DataError(_load_error(path, head, error)) from None
    return value, value if isinstance(value, dict) else {}, unchecked


def _parsed(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Metadata of .safetensors, which are texts: those that are JSON lists or objects as values."""
    values: dict[str, Any] = dict(metadata)
    for name, text in metadata.items():
        if text.startswith(("[", "{")):
            with contextlib.suppress(ValueError):
                values[name] = parse_json(text)
    return values


def _is_tar(file: BinaryIO) -> bool:
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:"):
            return True
    except (tarfile.TarError, OSError, ValueError, EOFError):
        return False


def _check_zip(path: Path, file: BinaryIO) -> bool:
    """Check every part of a zip against its CRC-32; False if none is recorded.

    Raises DataError if the zip is damaged or was not written by torch.save.
    """
    file.seek(0, 2)
    size = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            names = [part.filename for part in parts]
            _require_torch(path, names)
            if sum(part.file_size for part in parts) > _MAX_INFLATION * size:
                raise DataError(f"{path} claims to hold more than {_MAX_INFLATION} times its {size:,} bytes; expected weights")
            # torch.serialization.set_crc32_options(False) writes 0 for each.
            recorded = any(part.CRC for part in parts if part.file_size)
            for part in parts if recorded else ():
                with archive.open(part) as content:
                    while content.read(_PIECE):
                        pass
            return recorded
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is damaged ({_first_line(error)}); expected the bytes that were saved, by its checksums; download it again"
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


def _load_error(path: Path, head: bytes, error: Exception) -> str:
    """The error message for a file that torch.load refuses."""
    unknown = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error)) or re.search(
        r"add_safe_globals\(\[(\w+)", str(error)
    )
    if unknown is not None:
        return (
            f"{path} holds a Python object ({unknown[1][:80]}), which only running its code could read; expected tensors by "
            "name; if you trust it, load it in PyTorch and save model.state_dict() alone"
        )
    return (
        f"{path} cannot be read as weights (it starts with {head!r}; {_first_line(error)[:200]}); "
        "expected a state dict of tensors; download it again or save model.state_dict()"
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _dictionaries(value: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors in every dictionary, by the path of its keys. A dictionary with several paths is yielded once."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    for path, entry, depth in waiting:  # grows during the loop
        if not isinstance(entry, dict) or id(entry) in seen:
            continue
        seen.add(id(entry))
        names = [name for name in entry if isinstance(name, str)]
        yield path, {name: entry[name] for name in names if isinstance(entry[name], Tensor)}
        if depth < _MAX_DEPTH:
            waiting += [(f"{path}.{name}" if path else name, entry[name], depth + 1) for name in names]


def _preprocessing(path: Path, facts: Mapping[Any, Any]) -> Preprocessing | None:
    """The preprocessing in the metadata of RUN/students/NAME.safetensors; None for other files, whose scale is unknown."""
    if "udkd_version" not in facts:
        return None
    try:
        mean, std = (tuple(float(value) for value in facts[key]) for key in ("mean", "std"))
        return Preprocessing(mean=mean, std=std, interpolation=facts["interpolation"])  # type: ignore[arg-type]  # it checks
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise DataError(
            f"{path}: mean, std or interpolation in its metadata cannot be used ({_first_line(error)[:200]}); expected what "
            "udkd wrote; write it again with udkd export --format safetensors"
        ) from None


def _classes(root: Mapping[Any, Any]) -> tuple[str, ...] | None:
    """Class names in output order, from a list, or a dictionary in either direction; None if none are recorded."""
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
