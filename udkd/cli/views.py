"""udkd views."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from udkd.cli.arguments import DatasetOption, RecipeArgument, SetOption
from udkd.utils.errors import ConfigError
from udkd.utils.options import MAX_EPOCHS
from udkd.utils.output import print_json
from udkd.utils.printable import shorten
from udkd.utils.terminal import JsonOption, out

if TYPE_CHECKING:
    from udkd.augment.describe import Described
    from udkd.data.dataset import DatasetFolder


def views_command(
    recipe: RecipeArgument,
    data: DatasetOption,
    picture: Annotated[Path, typer.Option("--out", metavar="FILE", help="The PNG file to write.")],
    ids: Annotated[
        str | None,
        typer.Option("--ids", metavar="3,17", help="Ids of samples, a row for each. Default: six, spread over the classes."),
    ] = None,
    views: Annotated[
        str,
        typer.Option(
            "--views",
            metavar="0,1,2",
            help="Numbers of views, a column for each: epoch e trains on view e, or on e % K of a cache of K views.",
        ),
    ] = "0,1,2,3,4,5",
    split: Annotated[Literal["train", "val"], typer.Option(help="Split that the samples are of.")] = "train",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a picture of the views that the students will see.

    Each has its crop, flip, operations and erased box below it; a mixed one also the two that it is made of, and the shares
    of their labels. The pixels are those of training, bit for bit. No teacher is needed.
    """
    from udkd.config.loading import load_recipe

    columns = _numbers("--views", views, MAX_EPOCHS)
    rows = None if ids is None else _numbers("--ids", ids, 2**40)
    loaded = load_recipe(recipe, overrides or [])
    from udkd.augment.view_sheet import SheetSettings, write_view_sheet  # torch takes seconds
    from udkd.data.dataset import DatasetFolder

    dataset = DatasetFolder.open(data)
    settings = SheetSettings(
        spec=loaded.views.spec, seed=loaded.views.seed, interpolation=loaded.views.interpolation, title=Path(recipe).stem
    )
    shown = write_view_sheet(dataset, picture, settings, split=split, ids=rows, views=columns)
    if as_json:
        print_json(
            {"picture": str(picture), "size_px": settings.spec.size_px, "samples": _values(dataset, split, columns, shown)}
        )
    else:
        out.print(f"{picture}: {len(shown)} samples in {len(columns)} views", soft_wrap=True)


def _numbers(option: str, text: str, limit: int) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if any(not (part.isascii() and part.isdecimal()) for part in parts):
        raise ConfigError(f"{option} {shorten(text)!r}; expected whole numbers from 0, such as 0,1,2; correct it")
    numbers = [int(part) for part in parts if len(part) < 20]
    if len(numbers) < len(parts) or max(numbers) >= limit:
        raise ConfigError(f"{option} {shorten(text)!r}; expected numbers below {limit:,}; correct it")
    return list(dict.fromkeys(numbers))


def _values(
    dataset: "DatasetFolder", split: str, views: list[int], shown: "dict[int, list[Described]]"
) -> list[dict[str, Any]]:
    rows = dataset.split(split)
    return [
        {
            "id": sample_id,
            "class": dataset.classes[rows.labels[sample_id]].name,
            "source": rows.source[sample_id],
            "views": [{"view": view} | asdict(each) for view, each in zip(views, described, strict=True)],
        }
        for sample_id, described in shown.items()
    ]
