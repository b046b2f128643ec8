"""Creates a run folder, or reopens one and checks it before its run resumes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from udkd.config.recipe import Recipe
from udkd.losses.schedules import EpochStats
from udkd.training.checkpoints import Checkpoint
from udkd.training.run_folder import RunFolder
from udkd.training.run_records import StoredEpochStats
from udkd.training.setup import TrainJob, TrainSetup
from udkd.training.student import require_like
from udkd.utils.environment import environment
from udkd.utils.errors import ConfigError, MismatchError, RunError
from udkd.utils.files import FolderLock


def lock_run_folder(job: TrainJob) -> FolderLock:
    """One job trains a run. A folder to extend must exist; it is not created."""
    if job.extend:
        RunFolder.open(job.out)  # raises, naming what is missing
    job.out.mkdir(parents=True, exist_ok=True)
    return FolderLock(job.out)


def create_or_reopen(job: TrainJob, setup: TrainSetup) -> RunFolder:
    """The run folder. MismatchError unless a resumed run finds its recipe, data and teacher as they were."""
    config, out = job.recipe.to_dict(), job.out
    facts = {
        "dataset": str(job.data.resolve()),
        "dataset_digest": setup.dataset.digest,
        "classes": [entry.wnid for entry in setup.dataset.classes],
    } | setup.provenance
    if not (job.resume and RunFolder.is_at(out)):
        if job.resume:
            job.observer.note(f"there is no run in {out} yet: it begins")
        if RunFolder.is_at(out) and not RunFolder(out).is_begun:
            job.observer.note(f"the run in {out} ended before it kept anything: it starts over")
        return RunFolder.create(out, config, facts | environment(job.device))
    run = RunFolder.open(out)
    stored_config = Recipe.from_stored(run.config, str(out)).to_dict()
    if job.extend:
        if job.extend < (epochs := stored_config["train"]["epochs"]):
            raise ConfigError(f"--extend is {job.extend} and the run in {out} has {epochs} epochs; expected more; raise it")
        stored_config["train"]["epochs"] = job.extend
    run.require_config(config, stored_config)
    stored = run.provenance
    decisive = ("dataset_digest", "cache_key", "teacher_sha256", "num_views")
    fields = [(name, stored.get(name), facts.get(name)) for name in decisive if stored.get(name) != facts.get(name)]
    if fields:
        raise MismatchError(f"the run in {out}", fields, "resume with the data and the teacher or cache it began with")
    if "starts" in facts and facts["starts"] != stored.get("starts"):  # without a checkpoint they have been loaded again
        fields = [("starts", stored.get("starts"), facts["starts"])]
        raise MismatchError(f"the run in {out}", fields, "restore the weights that students.*.init_from named")
    return run


def load_checkpoint(
    run: RunFolder, recipe: Recipe, steps_per_epoch: int, expected: Mapping[str, Tensor]
) -> tuple[Checkpoint, EpochStats] | None:
    """The newest checkpoint, and the statistics of the epoch before it; None where the run has none yet.

    expected: tensors of the names, dtypes and shapes that it must have. Raises RunError for a checkpoint that does not fit the
    recipe, the data or the rows of metrics.jsonl. Removes checkpoints that a killed process left unfinished or behind.
    """
    if not run.has_checkpoint:
        _require_no_epochs(run)
        return None
    checkpoint, train = run.load(), recipe.train
    checkpoint.require_counts(batch=train.batch_size, epochs=train.epochs, steps_per_epoch=steps_per_epoch)
    require_like(checkpoint.tensors, expected, f"the checkpoint in {run.path}")
    stats = _require_epochs(run, recipe, checkpoint.progress.step, steps_per_epoch, checkpoint.progress.figures)
    run.drop_other_checkpoints()
    return checkpoint, stats


def stats_after(row: Mapping[str, Any]) -> EpochStats:
    """The statistics that schedules use, from an epoch's row of metrics.jsonl. Progress is 0 before a student's start_epoch."""
    top1, confidence = row["train"]["top1"], row["train"]["confidence"]
    return EpochStats(progress=[(value or 0.0) / 100 for value in top1], confidence=max(value or 0.0 for value in confidence))


def _require_no_epochs(run: RunFolder) -> None:
    """RunError where a checkpoint is lost; the first epoch's row is written before its checkpoint."""
    done = len(run.metrics())
    if done > 1:
        raise RunError(
            f"checkpoints/last.json in {run.path} is missing and {done} epochs are done; expected their checkpoint; "
            "restore it or train again in another folder"
        )


def _require_epochs(
    run: RunFolder, recipe: Recipe, step: int, steps_per_epoch: int, stored: StoredEpochStats | None
) -> EpochStats:
    """RunError unless metrics.jsonl has each epoch before the checkpoint, and the statistics that its schedules use."""
    rows = [row for row in run.metrics() if row["step"] <= step]
    done = step // steps_per_epoch
    if len(rows) != done or (rows and rows[-1]["step"] != done * steps_per_epoch):
        raise RunError(
            f"metrics.jsonl in {run.path} has {len(rows)} epochs up to step {step}; expected {done} of "
            f"{steps_per_epoch} steps; restore it or train again"
        )
    stats = stats_after(rows[-1]) if rows and recipe.needs_epoch_stats else EpochStats.none(len(recipe.students))
    expected = [*stats.progress, stats.confidence] if recipe.needs_epoch_stats else None
    in_checkpoint = None if stored is None else [*stored.progress, stored.confidence]
    if in_checkpoint != expected:
        raise RunError(
            f"the checkpoint in {run.path} has statistics {in_checkpoint}; expected {expected} as in metrics.jsonl; "
            "restore it or train again"
        )
    return stats
