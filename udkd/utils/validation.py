"""Checks plain values against a pydantic model. An error is one line that names the key by its path."""

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from udkd.utils.errors import ConfigError
from udkd.utils.printable import shorten
from udkd.utils.suggestions import near, remedy

Model = TypeVar("Model", bound=BaseModel)
Path = tuple[int | str, ...]
_SHOWN = 12
"""Keys of a section that an error lists."""
_SHOWN_OF_ITEM = 4
"""Keys of a list's item that an error shows."""
_SUGGESTED = 2
"""Keys that an error suggests."""


def validate(model: type[Model], values: Any, *, origin: str, noun: str) -> Model:
    """Make a `model` from plain values. Raises ConfigError for the first unknown or ill-typed key.

    origin: where the values come from, such as a file name. noun: what they describe, such as "recipe".
    """
    try:
        # default=str: TOML has dates, which no key accepts; as strings they are rejected with their path.
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(error.errors(include_url=False), model, noun)}") from None
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{origin}: {_not_json(error)}; expected the keys and values of a {noun}; correct it") from None


def _explain(problems: Sequence[Any], model: type[BaseModel], noun: str) -> str:
    """A text about the first problem, with the number of other keys that have one."""
    first, (keys, section) = problems[0], _locate(problems[0]["loc"], model)
    path = ".".join(map(str, keys))
    others = {_locate(problem["loc"], model)[0] for problem in problems}
    others = {other for other in others if other != keys[: len(other)]}  # pydantic also calls the list of a bad item too short
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        expected = _some(list(section.model_fields), str(keys[-1]))
        return f"{path} is not a key of a {noun}{more}; expected {expected}; {remedy(_suggestions(keys, section, model))}"
    if first["type"] == "value_error":  # a validator's own text, which is complete; the input is a complete section
        return f"{path + ': ' if path else ''}{first['msg'].removeprefix('Value error, ')}{more}"
    if first["type"] == "json_invalid":
        return f"its values are not JSON ({first['msg'].removeprefix('Invalid JSON: ')}); expected a {noun}; correct it"
    if first["type"] == "missing":
        return f"{path} is missing{more}; expected a value; add it"
    if first["type"] == "too_short":
        least = first["ctx"]["min_length"]
        return f"{path} has {first['ctx']['actual_length']} entries{more}; expected at least {least}; add to it"
    # A union reports each of its members: teacher.views is "eval" or a number.
    messages = [problem["msg"] for problem in problems if _locate(problem["loc"], model)[0] == keys]
    expected = " or ".join(message.removeprefix("Input should be ") for message in messages)
    item: Any = _inside(_inside(section, keys[-1]), 0) if keys else None
    example = '[1, 2] or ["a", "b"]'
    if _is_model(item):
        example = "[{" + ", ".join(f"{name} = …" for name in list(item.model_fields)[:_SHOWN_OF_ITEM]) + "}]"
    expected = expected.replace("a valid array", f"a list, such as {example}")
    return f"{path} is {shorten(_as_json(first['input']))}{more}; expected {expected}; change it"


def _some(names: list[str], wanted: str) -> str:
    """The first names and those that look like the wanted one: a section has too many for one line."""
    shown = [name for name in names if name in names[:_SHOWN] or name in get_close_matches(wanted, names)]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if shown != names else "")


def _suggestions(keys: Path, section: type[BaseModel], model: type[BaseModel]) -> list[str]:
    """Paths of keys that an unknown one may stand for: a misspelling in its section, its name in another, or both."""
    *parents, name = map(str, keys)
    paths = list(key_paths(model))
    slips, similar = (near(name, section.model_fields, 1, alike=alike) for alike in (0.8, 0.6))
    if not slips and name not in {path[-1] for path in paths} and similar:
        slips = similar
    if slips:
        return [".".join((*parents, slips[0]))]
    named = near(name, {path[-1] for path in paths}, 1)
    found = [path for path in paths if path[-1] in named]
    depths = [len(path) - path.count("N") for path in found]
    # The sections of training are the last ones. Deeper keys of that name are details of the others.
    return [".".join(path) for path, depth in zip(found, depths, strict=True) if depth == min(depths)][::-1][:_SUGGESTED]


def key_paths(model: type[BaseModel], parents: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key, in order, also of those that hold sections; N stands for any index of a list."""
    for name, field in model.model_fields.items():
        path = (*parents, name)
        yield path
        inner = next((each for each in (field.annotation, *get_args(field.annotation)) if _is_model(each)), None)
        if inner is not None:
            yield from key_paths(inner, path if inner is field.annotation else (*path, "N"))


def _as_json(value: object) -> str:
    try:
        return json.dumps(value, default=str)
    except (RecursionError, ValueError) as error:
        return _not_json(error)


def _not_json(error: BaseException) -> str:
    """Why a value cannot be JSON: nested too deeply, an integer of 5,000 digits."""
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _locate(location: Path, model: type[BaseModel]) -> tuple[Path, type[BaseModel]]:
    """The keys of a pydantic location, without the names of union members, and the innermost model on the path."""
    keys: list[int | str] = []
    annotation, section = model, model
    for part in location:
        if isinstance(part, str) and not _is_model(annotation) and get_origin(annotation) is not dict:
            continue  # the member of a union
        keys.append(part)
        annotation = _inside(annotation, part)
        if _is_model(annotation):
            section = annotation
    return tuple(keys), section


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _inside(annotation: Any, part: int | str) -> Any:
    """The type of a model's field, or of the items of a tuple or dict."""
    if _is_model(annotation):
        field = annotation.model_fields.get(part)
        return field.annotation if field else None
    arguments = get_args(annotation)
    return arguments[1 if get_origin(annotation) is dict else 0] if arguments else None
