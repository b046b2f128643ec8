"""Completions: what a shell offers for an argument that has begun. Nothing here may import torch: a key press must be quick."""

from udkd.utils.toml_files import shipped_names

STUDENTS = 2
"""Students whose keys are offered."""


def recipe_names(incomplete: str) -> list[str]:
    """Shipped recipes. None that fits: the shell offers files."""
    return _starting(shipped_names("recipe"), incomplete)


def study_names(incomplete: str) -> list[str]:
    """Shipped studies."""
    return _starting(shipped_names("study"), incomplete)


def backends(incomplete: str) -> list[str]:
    """The backends of this package, and auto."""
    from udkd.data.backends.registry import backend_names

    return _starting(list(backend_names()), incomplete)


def setting_keys(incomplete: str) -> list[str]:
    """Keys of a recipe, up to the equals sign. One that fits is offered with its default, too, so that no space follows."""
    from udkd.config.keys import recipe_sections

    offers = {
        f"{path}.{key.name}=": "" if key.default == "required" else key.default
        for section in recipe_sections()
        if "NAME" not in section.path
        for path in [section.path.replace("students.N", f"students.{number}") for number in range(STUDENTS)]
        for key in section.keys
    }
    keys = _starting(list(offers), incomplete)
    return [keys[0], keys[0] + offers[keys[0]]] if len(keys) == 1 else keys


def _starting(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
