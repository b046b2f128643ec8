"""Loads TOML settings files, shipped inside the package or written by a user, as plain values."""

import json
from pathlib import Path
from typing import Any, Literal

from udkd.utils.errors import ConfigError
from udkd.utils.files import read_regular
from udkd.utils.parsing import parse_toml
from udkd.utils.printable import shorten
from udkd.utils.suggestions import near, remedy

TomlKind = Literal["recipe", "study"]
MAX_BYTES = 1 << 20
_FOLDERS = {"recipe": "recipes", "study": "studies"}


def shipped_names(kind: TomlKind) -> list[str]:
    """The names of the shipped files, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in _folder(kind).iterdir() if entry.name.endswith(".toml"))


def shipped_summaries(kind: TomlKind) -> dict[str, str]:
    """What each shipped file is for, by name: the first sentence of its first line, a comment."""
    return {name: _summary((_folder(kind) / f"{name}.toml").read_text(encoding="utf-8")) for name in shipped_names(kind)}


def _summary(text: str) -> str:
    line = text.partition("\n")[0].removeprefix("#").strip()
    sentence, stop, _ = line.partition(". ")
    return sentence + stop.strip()


def toml_value(value: Any) -> str:
    """A plain value in TOML on one line: text, number, boolean, or a list or table of them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    text = json.dumps(value, ensure_ascii=False)  # TOML's notation, too, but TOML has no surrogate pairs
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)


def load_toml(kind: TomlKind, name: str) -> dict[str, Any]:
    """The values in a shipped file, given its name, or in any TOML file, given its path. Raises ConfigError."""
    path = Path(name)
    try:
        if name in shipped_names(kind):
            data = (_folder(kind) / f"{name}.toml").read_bytes()
        elif path.suffix == ".toml" and path.is_file():
            data = read_regular(path, MAX_BYTES)
        else:
            names = shipped_names(kind)
            files_there = near(path.name, [file.name for file in path.parent.glob("*.toml") if file.is_file()])
            similar = near(name, names) or [str(path.with_name(file)) for file in files_there]
            expected = f"a .toml file or one of {', '.join(names)}"
            raise ConfigError(f"{kind} {shorten(name)!r} not found; expected {expected}; {remedy(similar)}")
        return parse_toml(data.decode("utf-8-sig"))  # editors on Windows write a byte order mark
    except ConfigError:
        raise
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, an integer of 5,000 digits, nested too deeply
        raise ConfigError(f"{name} is not TOML ({error}); correct it") from None
    except OSError as error:
        raise ConfigError(
            f"{kind} {shorten(name)!r} cannot be read ({error.strerror}); expected a .toml file; correct it"
        ) from None


def _folder(kind: TomlKind) -> Path:
    return Path(__file__).parents[1] / _FOLDERS[kind]  # importlib.resources takes 30 ms to import
