"""Initial weights from another run's newest checkpoint: students.*.init_from."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from udkd.config.recipe import Recipe
from udkd.config.sections import StudentSection
from udkd.teacher.folder import require_classes
from udkd.training.run_folder import RunFolder
from udkd.utils.errors import RunError


def initial_weights(section: StudentSection, name: str, classes: Sequence[str]) -> dict[str, Tensor]:
    """The weights of student section.init_from_student (else `name`) in run section.init_from; averaged ones where it has any.

    classes: wnids of the outputs, in order. RunError: no such run or student, or another architecture. MismatchError: other
    classes.
    """
    run = RunFolder.open(Path(section.init_from))
    recipe = Recipe.from_stored(run.config, str(run.path))
    names, wanted = recipe.student_names(), section.init_from_student or name
    if wanted not in names:
        raise RunError(
            f"{run.path} holds the students {', '.join(names)}; expected {wanted}; name one with students.*.init_from_student"
        )
    index = names.index(wanted)
    architecture = recipe.students[index].architecture
    if architecture != section.architecture:
        raise RunError(
            f"{wanted} in {run.path} is a {architecture}; expected a {section.architecture}; start from another student"
        )
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
    """The sha256 of weights, for run.json."""
    state = hashlib.sha256()
    for name, value in sorted(weights.items()):
        state.update(name.encode())
        state.update(value.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()
