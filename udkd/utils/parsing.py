"""Parses JSON and TOML from untrusted files. Every problem is a ValueError."""

import json
import re
import tomllib
from collections import Counter
from typing import Any, NoReturn

_MAX_KEY_PARTS = 40
# Python's parser needs time and memory quadratic in the parts of a key.
_LONG_KEY = re.compile(rf"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){{{_MAX_KEY_PARTS}}}""")


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text. NaN, infinities, duplicate keys and nesting beyond Python's limit are ValueErrors too."""
    try:
        return json.loads(data, parse_constant=_refuse, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text. Nesting beyond Python's limit and keys of more than 40 parts are ValueErrors too."""
    if _LONG_KEY.search(text):
        raise ValueError(f"it has a key of more than {_MAX_KEY_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:80]!r} appears twice")
    return values
