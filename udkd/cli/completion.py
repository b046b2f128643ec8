"""Completions: what a shell offers for an argument that has begun. Nothing here may import torch: a key press must be quick."""

from collections.abc import Iterator, Mapping
from typing import Any

from udkd.utils.toml_files import shipped_names

STUDENTS = 2
"""Students whose keys are offered."""


def recipe_names(incomplete: str) -> list[str]:
    """Shipped recipes. None that fits: the shell offers files."""
    return _starting(shipped_names("recipe"), incomplete)


def study_names(incomplete: str) -> list[str]:
    """Shipped studies."""
    return _starting(shipped_names("study"), incomplete)


def backend_names(incomplete: str) -> list[str]:
    """The backends of this package, and auto."""
    return _starting(["auto", "resident", "folder", "ffcv", "dali"], incomplete)


def setting_keys(incomplete: str) -> list[str]:
    """Keys of a recipe, up to the equals sign. One that fits is offered with its default, too, so that no space follows."""
    from udkd.config.recipe import Recipe

    schema = Recipe.model_json_schema()
    defaults = {key: default for key, default in _keys(schema, schema["$defs"], "") if key.startswith(incomplete)}
    offers = [f"{key}=" for key in defaults]
    return [*offers, *defaults.values()] if len(offers) == 1 else offers


def _keys(section: Mapping[str, Any], defs: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Each key with its section, and KEY=DEFAULT."""
    for name, field in section.get("properties", {}).items():
        reference = field.get("$ref") or field.get("items", {}).get("$ref") or ""
        inner = defs.get(reference.rpartition("/")[2], {})
        if "properties" not in inner:
            yield f"{prefix}{name}", f"{prefix}{name}={_toml(field.get('default', ''))}"
        for number in range(STUDENTS) if "items" in field else [None]:
            yield from _keys(inner, defs, f"{prefix}{name}." if number is None else f"{prefix}{name}.{number}.")


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _starting(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
