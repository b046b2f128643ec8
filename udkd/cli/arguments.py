"""Arguments and options that several commands share. udkd.utils.terminal has the ones that data_prep also uses."""

from pathlib import Path
from typing import Annotated

import typer

DatasetArgument = Annotated[Path, typer.Argument(metavar="DATA", help="Dataset folder, written by udkd-prep convert.")]
DatasetOption = Annotated[Path, typer.Option("--data", help="Dataset folder, written by udkd-prep convert.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, written by udkd train.")]
MovedDatasetOption = Annotated[Path | None, typer.Option("--data", help="Dataset folder, if it has moved since the run.")]
MovedCacheOption = Annotated[Path | None, typer.Option("--cache", help="Teacher cache, if it has moved since the run.")]
StudentOption = Annotated[
    str | None, typer.Option("--student", help="Name of the student; not needed for a run of one student.")
]
EnsembleOption = Annotated[bool, typer.Option("--ensemble", help="All students together: the mean of their probabilities.")]
CheckpointOption = Annotated[
    str, typer.Option("--checkpoint", metavar="last|best|STEP", help="Which of the run's checkpoints.")
]
