"""Weights of a student that begins part-trained: another run's newest checkpoint."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from udkd.config.recipe import Recipe, StudentSection
from udkd.teacher.folder import require_classes
from udkd.training.run_folder import RunFolder
from udkd.utils.errors import RunError


def initial_weights(section: StudentSection, name: str, classes: Sequence[str]) -> dict[str, Tensor]:
    """The weights in section.init_from of the student section.init_from_student (else `name`); averaged ones where kept.

    classes: wnids of the outputs, in order. Raises RunError for a folder or student that is not there or has another
    architecture, MismatchError for other classes.
    """
    run = RunFolder.open(Path(section.init_from))
    recipe = Recipe.stored(run.config, str(run.path))
    names, wanted = recipe.student_names(), section.init_from_student or name
    if wanted not in names:
        raise RunError(
            f"{run.path} holds the students {', '.join(names)}; expected {wanted}; name one with students.*.init_from_student"
        )
    index = names.index(wanted)
    found = recipe.students[index].architecture
    if found != section.architecture:
        raise RunError(f"{wanted} in {run.path} is a {found}; expected a {section.architecture}; start from another student")
    if run.classes is not None:
        require_classes(f"the run in {run.path}", run.classes, classes, "start from a run on this data set")
    tensors = run.load().tensors
    for kind in ("average", "student"):
        prefix = f"{kind}.{index}."
        weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if weights:
            break
    return weights


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """A sha256 of weights, for the record."""
    state = hashlib.sha256()
    for name, value in sorted(weights.items()):
        state.update(name.encode())
        state.update(value.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()
