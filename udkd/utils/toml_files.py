"""Loads TOML settings files, shipped inside the package or written by a user, as plain values."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from udkd.utils.errors import ConfigError
from udkd.utils.files import read_regular
from udkd.utils.parsing import parse_toml
from udkd.utils.printable import shorten

TomlKind = Literal["recipe", "study"]
MAX_BYTES = 1 << 20
_FOLDERS = {"recipe": "recipes", "study": "studies"}


def shipped_names(kind: TomlKind) -> list[str]:
    """The names of the shipped files, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in _folder(kind).iterdir() if entry.name.endswith(".toml"))


def load_toml(kind: TomlKind, name: str) -> dict[str, Any]:
    """The values in a shipped file, given its name, or in any TOML file, given its path. Raises ConfigError."""
    path = Path(name)
    try:
        if name in shipped_names(kind):
            data = (_folder(kind) / f"{name}.toml").read_bytes()
        elif path.suffix == ".toml" and path.is_file():
            data = read_regular(path, MAX_BYTES)
        else:
            names = ", ".join(shipped_names(kind))
            raise ConfigError(f"{kind} {shorten(name)!r} not found; expected a .toml file or one of {names}; correct it")
        return parse_toml(data.decode("utf-8-sig"))  # editors on Windows write a byte order mark
    except ConfigError:
        raise
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, an integer of 5,000 digits, nested too deeply
        raise ConfigError(f"{name} is not TOML ({error}); correct it") from None
    except OSError as error:
        raise ConfigError(
            f"{kind} {shorten(name)!r} cannot be read ({error.strerror}); expected a .toml file; correct it"
        ) from None


def _folder(kind: TomlKind) -> Traversable:
    return files("udkd") / _FOLDERS[kind]
