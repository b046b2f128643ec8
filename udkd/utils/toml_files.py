"""TOML files of settings, shipped inside the package or written by anyone, as plain values."""

from collections.abc import Callable
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from udkd.utils.errors import ConfigError
from udkd.utils.parsing import parse_toml

Kind = Literal["recipe", "study"]
MOST_BYTES = 1 << 20
_FOLDERS = {"recipe": "recipes", "study": "studies"}
_SHOWN = 100  # characters of a name that a user gave


def shipped(kind: Kind) -> list[str]:
    """Names of what is inside the package."""
    return sorted(entry.name.removesuffix(".toml") for entry in _folder(kind).iterdir() if entry.name.endswith(".toml"))


def read_settings(kind: Kind, name: str, read: Callable[[Path, int], bytes]) -> dict[str, Any]:
    """What a shipped file holds, by its name, or any TOML file, by its path. Raises ConfigError.

    read: a file's bytes, ValueError where they are more than so many (udkd.utils.files.read_regular).
    """
    path = Path(name)
    try:
        if name in shipped(kind):
            data = (_folder(kind) / f"{name}.toml").read_bytes()
        elif path.suffix == ".toml" and path.is_file():
            data = read(path, MOST_BYTES)
        else:
            raise ConfigError(
                f"{kind} {name[:_SHOWN]!r} not found; expected a .toml file or one of {', '.join(shipped(kind))}; correct it"
            )
        return parse_toml(data.decode("utf-8-sig"))  # Windows' editors begin files with a mark
    except ConfigError:
        raise
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, an integer of 5,000 digits, nested too deeply
        raise ConfigError(f"{name} is not TOML ({error}); correct it") from None
    except OSError as error:
        raise ConfigError(
            f"{kind} {name[:_SHOWN]!r} cannot be read ({error.strerror}); expected a .toml file; correct it"
        ) from None


def _folder(kind: Kind) -> Traversable:
    return files("udkd") / _FOLDERS[kind]


def shown(value: str) -> str:
    """A value in an error, cut where it is long."""
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}… ({len(value):,} characters)"
