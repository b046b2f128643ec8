"""Verifies a run: every file against its checksum, its types, and the counts of the others."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from udkd.config.recipe import Recipe
from udkd.models.plain_weights import require_intact
from udkd.training.predictions import read_predictions
from udkd.training.run_folder import RunFolder
from udkd.utils.errors import RunError, UserError


def verify_run(path: Path) -> list[str]:
    """A line for each damaged file of a run; none where all are intact. Raises RunError where there is no run."""
    run = RunFolder.open_damaged(path)
    problems = run.problems()
    if run.predictions_path.exists():
        problems += _problem(lambda: read_predictions(run.predictions_path))
    for file in sorted((path / "students").glob("*.safetensors")):
        problems += _problem(partial(require_intact, file))
    if not problems:
        for check in (_config, _counts, _evaluation):
            problems += _problem(partial(check, run))
    return problems


def _problem(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except UserError as error:
        return [str(error)]
    return []


def _recipe(run: RunFolder) -> Recipe:
    return Recipe.from_stored(run.config, str(run.path / "config.json"))


def _config(run: RunFolder) -> None:
    """Require a readable recipe and metrics."""
    _recipe(run)
    run.metrics()


def _counts(run: RunFolder) -> None:
    """Check the checkpoint against recipe and metrics; a row is written before its checkpoint."""
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
    """Require eval.json and predictions.safetensors of one evaluation."""
    evaluation = run.evaluation
    if run.predictions_path.exists():
        _, sha256 = read_predictions(run.predictions_path)
        if evaluation is None or evaluation.get("predictions_sha256") != sha256:
            run.evaluating().require_free()
            raise RunError(
                f"{run.predictions_path} is not of {run.path / 'eval.json'}; expected one evaluation's; run udkd eval again"
            )
