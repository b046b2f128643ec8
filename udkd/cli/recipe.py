"""udkd recipe list, show, keys."""

from typing import Annotated

import typer

from udkd.cli.arguments import RecipeArgument, SetOption
from udkd.utils.commands import Commands
from udkd.utils.errors import ConfigError
from udkd.utils.output import out, print_as_is, print_json
from udkd.utils.printable import shorten
from udkd.utils.terminal import JsonOption

recipe_app = Commands(help="List recipes, their values and all keys.")


@recipe_app.command("list", example="udkd recipe list")
def list_(as_json: JsonOption = False) -> None:
    """List the shipped recipes."""
    from udkd.utils.toml_files import shipped_summaries

    summaries = shipped_summaries("recipe")
    if as_json:
        print_json([{"name": name, "description": line} for name, line in summaries.items()])
        return
    width = max(map(len, summaries))
    for name, line in summaries.items():
        out.print(f"{name:{width}}  {line}", soft_wrap=True)


@recipe_app.command("show", example="udkd recipe show imagenet100-paper --set train.epochs=10")
def show(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a recipe with the value of every key, as a TOML file."""
    from udkd.config.loading import load_recipe, recipe_toml

    loaded = load_recipe(recipe, overrides or [])
    if as_json:
        print_json(loaded.to_dict())
    else:
        print_as_is(recipe_toml(loaded))


@recipe_app.command("keys", example="udkd recipe keys students")
def keys(
    prefix: Annotated[
        str, typer.Argument(metavar="PREFIX", help="Only keys that begin like this, such as train or students.0.lr.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Explain the keys of recipes: default, values and meaning."""
    from udkd.config.keys import recipe_sections
    from udkd.config.recipe import Recipe
    from udkd.utils.suggestions import near, remedy
    from udkd.utils.validation import key_paths

    wanted = ".".join("N" if part.isdecimal() else part for part in prefix.split("."))
    found = {f"{section.path}.{key.name}": key for section in recipe_sections() for key in section.keys}
    if wanted.startswith("loss.schedules."):
        names = {path[2] for path in key_paths(Recipe) if path[:2] == ("loss", "schedules") and path[2:]}
        wanted = ".".join("NAME" if part in names else part for part in wanted.split("."))
    chosen = {path: key for path, key in found.items() if path.startswith(wanted)}
    if not chosen:
        last = wanted.rpartition(".")[2]
        same = [path for path in found if path.rpartition(".")[2] == last]
        sections = {section.path for section in recipe_sections()}
        suggestions = remedy(near(wanted, same) or same[:3] or near(wanted, found) or near(wanted, sections))
        raise ConfigError(f"no key begins with {shorten(prefix)!r}; expected one such as train.epochs; {suggestions}")
    if as_json:
        values = [
            {"key": path, "default": key.default, "values": key.values, "description": key.description}
            for path, key in chosen.items()
        ]
        print_json(values)
        return
    for path, key in chosen.items():
        out.print(f"{path} = {key.default}  ({key.values})", soft_wrap=True)
        out.print(f"    {key.description}", soft_wrap=True)
