"""Loads recipes from TOML files, with `--set a.b=value` overrides that are applied before validation; and their text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from udkd.config import old_keys
from udkd.config.recipe import Recipe
from udkd.utils.errors import ConfigError
from udkd.utils.options import Section
from udkd.utils.parsing import parse_toml
from udkd.utils.printable import shorten
from udkd.utils.toml_files import load_toml, shipped_names, toml_value

_MAX_DEPTH = 8  # parts of an overridden key; the deepest key has four


def shipped_recipes() -> list[str]:
    """The names of the recipes inside the package."""
    return shipped_names("recipe")


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a shipped recipe by name, or a TOML file by path.

    overrides: texts `a.b=value`; a value that is not TOML is taken as a string. Raises ConfigError.

        recipe = udkd.load_recipe("quickstart", ["train.epochs=1"])
    """
    name = str(name)
    values = load_toml("recipe", name)
    for override in overrides:
        _apply(override, values)
    if renamed := old_keys.changes(values):
        raise ConfigError(f"{name}: {renamed[0]}{f' (and {len(renamed) - 1} more)' if renamed[1:] else ''}; change it")
    return Recipe.from_dict(values, name)


def recipe_toml(recipe: Recipe) -> str:
    """A recipe as the text of a TOML file with every key; `load_recipe` reads it back to an equal recipe."""
    return "\n".join(_tables(recipe, "", "[]")).lstrip("\n") + "\n"


def _tables(section: Section, path: str, brackets: str) -> list[str]:
    """The lines of a section: its own keys below its heading, then the sections inside it."""
    own, inner = [], []
    for name, plain in section.model_dump(mode="json").items():
        value, below = getattr(section, name), f"{path}.{name}".removeprefix(".")
        if isinstance(value, Section):
            inner += _tables(value, below, "[]")
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            inner += [line for item in value for line in _tables(item, below, "[[]]")]
        else:
            own.append(f"{name} = {toml_value(plain)}")
    half = len(brackets) // 2
    heading = ["", f"{brackets[:half]}{path}{brackets[half:]}"] if own and path else []
    return [*heading, *own, *inner]


def _apply(override: str, values: dict[str, Any]) -> None:
    path, equals, text = override.partition("=")
    *parents, last = path.strip().split(".", _MAX_DEPTH)
    if not equals or not all((*parents, last)):
        raise ConfigError(f"--set {shorten(override)!r}; expected KEY=VALUE, such as train.epochs=3; correct it")
    if parents[:1] == ["students"] and "students" not in values:
        values["students"] = Recipe().to_dict()["students"]  # students.0.lr of a recipe that leaves the list at its default
    section: Any = values
    try:
        if len(parents) == _MAX_DEPTH:
            raise ValueError("no key is that deep")
        for part in parents:
            section = section[_index(part)] if isinstance(section, list) else section.setdefault(part, {})
        if isinstance(section, list):
            section[_index(last)] = _parse(text)
        else:
            section[last] = _parse(text)
    except (IndexError, ValueError, AttributeError, TypeError):
        raise ConfigError(
            f"--set {shorten(path)}: the recipe has no such key; expected a key's path, such as students.0.lr; correct it"
        ) from None


def _index(part: str) -> int:
    """The place in a list. Raises ValueError for anything but digits: a negative number would count from the end."""
    if not (part.isascii() and part.isdecimal()):
        raise ValueError(f"{part!r} is no place in a list")
    return int(part)


def _parse(text: str) -> Any:
    """The TOML value in a text; the text itself if it is not TOML."""
    try:
        values = parse_toml(f"value = {text}")
    except ValueError:
        return text.strip()
    return values["value"] if len(values) == 1 else text.strip()
