"""Loads recipes from TOML files, with `--set a.b=value` overrides that are applied before validation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from udkd.config import old_keys
from udkd.config.recipe import Recipe
from udkd.utils.errors import ConfigError
from udkd.utils.parsing import parse_toml
from udkd.utils.printable import shorten
from udkd.utils.toml_files import load_toml, shipped_names

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
            section = section[int(part)] if isinstance(section, list) else section.setdefault(part, {})
        if isinstance(section, list):
            section[int(last)] = _parse(text)
        else:
            section[last] = _parse(text)
    except (IndexError, ValueError, AttributeError, TypeError):
        raise ConfigError(
            f"--set {shorten(path)}: the recipe has no such key; expected a key's path, such as students.0.lr; correct it"
        ) from None


def _parse(text: str) -> Any:
    """The TOML value in a text; the text itself if it is not TOML."""
    try:
        values = parse_toml(f"value = {text}")
    except ValueError:
        return text.strip()
    return values["value"] if len(values) == 1 else text.strip()
