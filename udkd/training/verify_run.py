"""Is a run what was written? Every file of it against its checksum, its types, and the counts of the others."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from udkd.config.recipe import Recipe
from udkd.training.predictions import read_predictions
from udkd.training.run_folder import RunFolder
from udkd.utils.errors import RunError, UserError


def verify_run(path: Path) -> list[str]:
    """A line for each damaged file of a run; nothing where all is whole. Raises RunError where there is no run."""
    run = RunFolder.open_damaged(path)
    found = run.problems()
    if run.predictions_path.exists():
        found += _said(lambda: read_predictions(run.predictions_path))
    if not found:
        for question in (_config, _counts, _evaluation):
            found += _said(partial(question, run))
    return found


def _said(question: Callable[[], object]) -> list[str]:
    try:
        question()
    except UserError as error:
        return [str(error)]
    return []


def _recipe(run: RunFolder) -> Recipe:
    return Recipe.from_stored(run.config, str(run.path / "config.json"))


def _config(run: RunFolder) -> None:
    """The recipe, and the rows beside it."""
    _recipe(run)
    run.metrics()


def _counts(run: RunFolder) -> None:
    """The checkpoint against recipe and rows; a row may be there before its checkpoint is."""
    rows, train = run.metrics(), _recipe(run).train
    if not run.has_checkpoint:
        if len(rows) > 1:
            raise RunError(
                f"{run.path} has {len(rows)} epochs and no checkpoint; expected the newest; restore it or train again"
            )
        return
    checkpoint = run.load()
    steps_per_epoch = int(rows[0]["step"]) if rows else None
    checkpoint.require_counts(batch=train.batch_size, epochs=train.epochs, steps_per_epoch=steps_per_epoch)
    done = checkpoint.progress.step // checkpoint.progress.steps_per_epoch
    if len(rows) not in (done, done + 1):
        raise RunError(
            f"{run.path} has {len(rows)} epochs in metrics.jsonl; expected {done} as in the newest checkpoint; "
            "restore what is missing or train again"
        )


def _evaluation(run: RunFolder) -> None:
    """eval.json and predictions.safetensors are of one evaluation."""
    evaluation = run.evaluation
    if run.predictions_path.exists():
        _, sha256 = read_predictions(run.predictions_path)
        if evaluation is None or evaluation.get("predictions_sha256") != sha256:
            run.evaluating().require_free()
            raise RunError(
                f"{run.predictions_path} is not of {run.path / 'eval.json'}; expected one evaluation's; run udkd eval again"
            )
