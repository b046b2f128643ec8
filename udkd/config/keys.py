"""The keys of a recipe as a table: values, default and description of each, from the classes of udkd.config."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from udkd.config.recipe import Recipe

_KINDS = {"boolean": "true or false", "string": "text", "array": "list", "object": "table"}
_TECHNICAL_LIMIT = 1e5  # bounds above it keep numbers in 64 bits or memory in sight; no recipe comes near them


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key. values: what it takes, such as "integer, ≥ 1". default: as in a TOML file, or "required"."""

    name: str
    values: str
    default: str
    description: str


@dataclass(frozen=True, kw_only=True)
class KeySection:
    """A section of a recipe, such as "train" or "students.N". NAME in a path stands for sections with the same keys."""

    path: str
    description: str
    keys: tuple[Key, ...]


def recipe_sections() -> list[KeySection]:
    """Every section that has keys, with those of the registered methods."""
    schema = Recipe.model_json_schema()
    return [
        KeySection(
            path=path,
            description=section.get("description", "").replace("\n", " "),
            keys=tuple(
                Key(name=name, values=_values(field), default=_default(field), description=field.get("description", ""))
                for name, field in section["properties"].items()
                if nested_section(field, schema["$defs"]) is None
            ),
        )
        for path, section in _sections(schema, schema["$defs"], "")
    ]


def _sections(section: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Path and JSON schema of each section that has keys. Equal sections side by side are one: loss.schedules.NAME."""
    nested = {key: nested_section(field, defs) for key, field in section["properties"].items()}
    if path and None in nested.values():
        yield path, section
    for number, (key, name) in enumerate(nested.items()):
        names = list(nested.values())
        if name is None or name in names[:number]:
            continue
        label = f"{key}.N" if "items" in section["properties"][key] else "NAME" if names.count(name) > 1 else key
        yield from _sections(defs[name], defs, f"{path}.{label}".removeprefix("."))


def nested_section(field: Mapping[str, Any], defs: Mapping[str, Any]) -> str | None:
    """The name of the section that a key holds, or that each entry of its list is. field, defs: of a JSON schema."""
    reference = field.get("$ref") or field.get("items", {}).get("$ref") or ""
    name = reference.rpartition("/")[2]
    return name if "properties" in defs.get(name, {}) else None


def _default(field: Mapping[str, Any]) -> str:
    if "default" not in field:
        return "required"
    values = field["default"] if isinstance(field["default"], list) else [field["default"]]
    shown = [_number(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False) for value in values]
    return f"[{', '.join(shown)}]" if isinstance(field["default"], list) else shown[0]


def _number(value: float) -> str:
    """Short where that is the same number: 1, 0.08, but 1.3333333333333333."""
    short = f"{value:.4g}"
    return short if float(short) == value else repr(value)


def _values(field: Mapping[str, Any]) -> str:
    """The values that a key takes, as text: the names of a choice, the bounds of a number but for technical limits."""
    if "anyOf" in field:
        return " or ".join(_values(member) for member in field["anyOf"])
    if "enum" in field or "const" in field:
        return ", ".join(json.dumps(value) for value in field.get("enum", [field.get("const")]))
    if "prefixItems" in field:
        return f"[{', '.join(_values(item) for item in field['prefixItems'])}]"
    kind = _KINDS.get(field.get("type", ""), field.get("type", ""))
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[name]:g}" for name, sign in signs.items() if name in field and field[name] < _TECHNICAL_LIMIT]
    return ", ".join([kind, *bounds])
