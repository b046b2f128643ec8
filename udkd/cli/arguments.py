"""Arguments and options that several commands share. udkd.utils.terminal has those that data_prep or benchmarks use, too."""

from pathlib import Path
from typing import Annotated

import typer

from udkd.cli.completion import backends, recipe_names, setting_keys

DatasetOption = Annotated[Path, typer.Option("--data", metavar="DATA", help="Dataset folder, written by udkd data convert.")]
RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a .toml file.", autocompletion=recipe_names),
]
RecipeOption = Annotated[
    str,
    typer.Option("--recipe", metavar="RECIPE", help="Name of a shipped recipe, or a .toml file.", autocompletion=recipe_names),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of the recipe. May be repeated.", autocompletion=setting_keys
    ),
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="auto, resident, ffcv, dali or folder: short for data.backend.",
        autocompletion=backends,
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, written by udkd train.")]
MovedDatasetOption = Annotated[
    Path | None, typer.Option("--data", metavar="DATA", help="Dataset folder, if it has moved since the run.")
]
MovedCacheOption = Annotated[
    Path | None, typer.Option("--cache", metavar="CACHE", help="Teacher cache, if it has moved since the run.")
]
StudentOption = Annotated[
    str | None,
    typer.Option("--student", metavar="NAME", help="Name of the student; not needed for a run of one student."),
]
EnsembleOption = Annotated[bool, typer.Option("--ensemble", help="All students together: the mean of their probabilities.")]
CheckpointOption = Annotated[
    str, typer.Option("--checkpoint", metavar="last|best|STEP", help="Which of the run's checkpoints.")
]
