"""A network's weights as one .safetensors file that other libraries load, with metadata and a checksum."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from udkd.models.state_dicts import plain_tensors
from udkd.utils.errors import DataError
from udkd.utils.files import read_regular
from udkd.utils.parsing import parse_json

_METADATA, _SHA256 = "__metadata__", "sha256"
_ALIGNMENT = 8  # of the first tensor's bytes: the header is padded with spaces


def plain_weights(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A .safetensors file of tensors under their own names; the same arguments give the same bytes.

    `safetensors.torch.load_file` returns a state dict for load_state_dict. Two entries are added to the metadata: format "pt",
    for PyTorch, and sha256, of everything else in the file (`require_intact`).
    """
    header, data = _split(save(plain_tensors(tensors)))
    return _joined(header, dict(metadata) | {"format": "pt"}, data)


def read_metadata(data: bytes) -> dict[str, str]:
    """The metadata of a .safetensors file, empty where it has none. Raises ValueError for another file."""
    metadata = _split(data)[0].get(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not texts by name")
    return metadata


def require_intact(path: Path) -> None:
    """Raise DataError unless a file is, byte for byte, one that `plain_weights` made."""
    try:
        data = read_regular(path)
        header, tensors = _split(data)
        metadata = {name: value for name, value in read_metadata(data).items() if name != _SHA256}
        intact = _joined({name: value for name, value in header.items() if name != _METADATA}, metadata, tensors) == data
    except (OSError, ValueError):
        intact = False
    if not intact:
        raise DataError(f"{path} is damaged; expected the sha256 that it records; run udkd export --format safetensors again")


def _split(data: bytes) -> tuple[dict[str, object], bytes]:
    """Header and tensors' bytes. Raises ValueError."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = parse_json(data[8:end]) if end <= len(data) else None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header, data[end:]


def _joined(header: Mapping[str, object], metadata: Mapping[str, str], data: bytes) -> bytes:
    digest = hashlib.sha256(json.dumps([header, sorted(metadata.items())]).encode())
    digest.update(data)
    # Sorted: safetensors writes several entries in any order.
    entries = dict(sorted({**metadata, _SHA256: digest.hexdigest()}.items()))
    text = json.dumps({_METADATA: entries} | dict(header), separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text + data
