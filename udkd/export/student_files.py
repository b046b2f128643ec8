"""Students' weights for other libraries, written again from a run's newest checkpoint; new runs write them in training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from udkd.config.recipe import Recipe
from udkd.data.header import ClassName
from udkd.export.predict import readable_class_names
from udkd.training.run_folder import RunFolder
from udkd.training.student_files import description, write_student
from udkd.training.trained import FlipAveraged, TrainedClassifier
from udkd.utils.errors import RunError
from udkd.utils.files import FolderLock


@dataclass(frozen=True, kw_only=True)
class TrainedStudent:
    """A student of a run as it is evaluated, without mirror images. index: its position in the recipe.

    row: of metrics.jsonl for the end of its epoch; None for a checkpoint within an epoch.
    """

    name: str
    index: int
    network: nn.Module
    recipe: Recipe
    classes: tuple[ClassName, ...]
    step: int
    row: Mapping[str, Any] | None

    @classmethod
    def load(cls, run: RunFolder, name: str | None, checkpoint: str = "last") -> "TrainedStudent":
        """Restore a checkpoint. RunError: see `TrainedClassifier.load`; a student that has not started."""
        trained = TrainedClassifier.load(run, name, ensemble=False, checkpoint=checkpoint)
        index = trained.recipe.student_names().index(trained.name)
        row = next((row for row in run.metrics() if row["step"] == trained.step), None)
        if row is not None and row["val"]["students"][index] is None:
            start = trained.recipe.students[index].start_epoch
            raise RunError(
                f"{trained.name} starts after epoch {start} and {run.path} is at epoch {row['epoch']}; "
                "expected a trained student; train on, or name another with --student"
            )
        names = readable_class_names(run, trained.classes)
        return cls(
            name=trained.name,
            index=index,
            network=trained.model.model if isinstance(trained.model, FlipAveraged) else trained.model,
            recipe=trained.recipe,
            classes=tuple(ClassName(wnid=wnid, name=name) for wnid, name in zip(trained.classes, names, strict=True)),
            step=trained.step,
            row=row,
        )

    @property
    def description(self) -> dict[str, Any]:
        """See udkd.training.student_files.description."""
        return description(self.recipe, self.index, classes=self.classes, step=self.step, row=self.row)


def export_student_files(run: RunFolder, student: str | None, out: Path | None, *, checkpoint: str = "last") -> list[Path]:
    """Write NAME.safetensors of one student, or of each that has started, to `out` or RUN/students.

    RunError: no checkpoint, no such student. BusyError: the run is being trained, which writes the same files.
    """
    if student is not None:
        names = [student]
    else:
        recipe, progress = Recipe.from_stored(run.config, str(run.path)), run.load(checkpoint).progress
        names = [recipe.student_names()[index] for index in recipe.started_students(progress.step, progress.steps_per_epoch)]
    files = []
    with FolderLock(run.path):
        for name in names:
            trained = TrainedStudent.load(run, name, checkpoint)
            path = run.student_path(name) if out is None else out / run.student_path(name).name
            write_student(
                path,
                trained.network.state_dict(),
                recipe=trained.recipe,
                index=trained.index,
                classes=trained.classes,
                step=trained.step,
                row=trained.row,
            )
            files.append(path)
    return files
