"""Initial weights of a student: another run's newest checkpoint, a file, or published ones."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from udkd.config.recipe import Recipe
from udkd.config.sections import StudentSection
from udkd.data.header import ClassName
from udkd.models.architectures import is_users
from udkd.teacher.folder import require_classes
from udkd.training.make_teacher import from_weights
from udkd.training.run_folder import RunFolder
from udkd.utils.errors import ConfigError, RunError

_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


def initial_weights(
    section: StudentSection, name: str, classes: Sequence[ClassName], image_px: int
) -> tuple[dict[str, Tensor], str]:
    """The weights that section.init_from or section.pretrained names, and a note for the user or "".

    Without those of the head where the weights are of other classes. classes: of the outputs, in order.
    RunError: no such run or student, or another architecture. MismatchError: a run on other classes. DataError: a file of
    other weights, or none are published.
    """
    wnids = [entry.wnid for entry in classes]
    file = Path(section.init_from) if section.init_from else None
    if file is not None and not file.is_file() and file.suffix not in _WEIGHT_SUFFIXES:
        return _weights_of_run(section, name, wnids), ""
    if section.init_from_student:
        raise ConfigError(
            f"init_from_student is {section.init_from_student} and {file or 'pretrained'} has no students; expected a run as "
            "init_from; drop init_from_student"
        )
    if file is None and is_users(section.architecture):
        raise ConfigError(
            f"pretrained is true for {section.architecture}, which has no published weights; expected torchvision's or timm's "
            "network; let the function return its weights, or name a file with init_from"
        )
    names = [entry.name for entry in classes]
    candidate = from_weights(section.architecture, file, wnids, names, image_px=image_px, new_head=True)
    return dict(candidate.weights), "; ".join(f"{name}: {note}" for note in candidate.notes)


def _weights_of_run(section: StudentSection, name: str, classes: Sequence[str]) -> dict[str, Tensor]:
    """The weights of student section.init_from_student (else `name`) in a run; averaged ones where it has any."""
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
