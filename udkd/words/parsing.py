"""JSON and TOML from files that anyone may have written: whatever is wrong with them is a ValueError, never another error."""

import json
import tomllib
from typing import Any, NoReturn


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text. NaN and infinities, a key given twice and nesting past Python's limit are ValueErrors too."""
    try:
        return json.loads(data, parse_constant=_refuse, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text; nesting past Python's limit is a ValueError too."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON's")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in values if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return values
