"""JSON with a checksum inside: reading detects any changed byte.

`{"a": 1}` is stored as `{"a": 1, "checksum": "…"}`, the sha256 of the JSON without the checksum. One rename replaces values
and checksum together, and any JSON reader can still read the file. Earlier versions wrote no checksum, so JSON without one is
read unchecked. Models of stored JSON must therefore refuse unknown keys: damage to the key "checksum" itself makes it unknown.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from udkd.utils.parsing import parse_json

CHECKSUM = "checksum"

_Dump = Callable[[Mapping[str, Any]], bytes]


def dump_checked(values: Mapping[str, Any]) -> bytes:
    """The bytes of a file: indented JSON with sorted keys and the checksum. `load_checked` is the inverse."""
    return _with_checksum(values, _pretty)


def dump_checked_line(values: Mapping[str, Any]) -> bytes:
    """A line of a .jsonl file, line break included: keys in their order, the checksum last. See `load_checked_line`."""
    return _with_checksum(values, _line)


def load_checked(data: bytes) -> dict[str, Any]:
    """The values passed to `dump_checked`. Raises ValueError if it is not a JSON object or a byte has changed."""
    return _values(data, _pretty)


def load_checked_line(data: bytes) -> dict[str, Any]:
    """The values passed to `dump_checked_line`, from a line with its line break. Raises ValueError like `load_checked`."""
    return _values(data, _line)


def has_checksum(data: bytes) -> bool:
    """Whether the JSON of a file or line has a checksum. Raises ValueError if it is not a JSON object."""
    return CHECKSUM in _object(data)


def _pretty(values: Mapping[str, Any]) -> bytes:
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode(errors="backslashreplace")  # a path's undecodable bytes as JSON's \udcXX


def _line(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, allow_nan=False) + "\n").encode()


def _digest(values: Mapping[str, Any], dump: _Dump) -> str:
    return hashlib.sha256(dump(values)).hexdigest()


def _with_checksum(values: Mapping[str, Any], dump: _Dump) -> bytes:
    assert CHECKSUM not in values, "the checksum is added here"
    return dump({**values, CHECKSUM: _digest(values, dump)})


def _object(data: bytes) -> dict[str, Any]:
    values = parse_json(data)
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    return values


def _values(data: bytes, dump: _Dump) -> dict[str, Any]:
    values = _object(data)
    if CHECKSUM not in values:
        return values
    rest = {name: value for name, value in values.items() if name != CHECKSUM}
    try:
        intact = values[CHECKSUM] == _digest(rest, dump) and dump(values) == data  # the digest alone would pass 1e5 for 1E5
    except RecursionError:
        intact = False
    if not intact:
        raise ValueError("its checksum does not match: it has changed since it was written")
    return rest
