"""JSON that carries its own checksum: any byte of it that has changed is found when it is read.

`{"a": 1}` is stored as `{"a": 1, "checksum": "…"}`, the sha256 of the JSON of the rest. As each file holds its own, one rename
replaces values and checksum together, and whoever knows JSON can still read it. Earlier versions wrote none: what has no
checksum is read unchecked, so models of stored JSON must refuse unknown keys (a changed letter may hide the key itself).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from udkd.utils.parsing import parse_json

CHECKSUM = "checksum"

_Dump = Callable[[Mapping[str, Any]], bytes]


def checked_bytes(values: Mapping[str, Any]) -> bytes:
    """A file of indented JSON with sorted keys and the checksum; `values_of` undoes it."""
    return _with_checksum(values, _pretty)


def checked_line(values: Mapping[str, Any]) -> bytes:
    """One line of a .jsonl file, line break included, keys in their order and the checksum last; `values_of_line` undoes it."""
    return _with_checksum(values, _line)


def values_of(data: bytes) -> dict[str, Any]:
    """What `checked_bytes` was given. Raises ValueError: no JSON object, or not to the byte what was written."""
    return _values(data, _pretty)


def values_of_line(data: bytes) -> dict[str, Any]:
    """What `checked_line` was given, of a line with its line break. Raises ValueError as `values_of` does."""
    return _values(data, _line)


def has_checksum(data: bytes) -> bool:
    """Whether a file or line that can be read is one with a checksum. Raises ValueError: no JSON object."""
    return CHECKSUM in _object(data)


def _pretty(values: Mapping[str, Any]) -> bytes:
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode(errors="backslashreplace")  # a path's undecodable bytes as JSON's \udcXX


def _line(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, allow_nan=False) + "\n").encode()


def _digest(values: Mapping[str, Any], dump: _Dump) -> str:
    return hashlib.sha256(dump(values)).hexdigest()


def _with_checksum(values: Mapping[str, Any], dump: _Dump) -> bytes:
    assert CHECKSUM not in values, "the checksum is ours to add"
    return dump({**values, CHECKSUM: _digest(values, dump)})


def _object(data: bytes) -> dict[str, Any]:
    values = parse_json(data)
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    return values


def _values(data: bytes, dump: _Dump) -> dict[str, Any]:
    values = _object(data)
    if CHECKSUM not in values:
        return values
    rest = {name: value for name, value in values.items() if name != CHECKSUM}
    try:
        same = values[CHECKSUM] == _digest(rest, dump) and dump(values) == data  # the digest alone would pass 1e5 for 1E5
    except RecursionError:
        same = False
    if not same:
        raise ValueError("it has changed since it was written, by its own checksum")
    return rest
