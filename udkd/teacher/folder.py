"""A teacher is a folder: teacher.json (its description) and weights.safetensors."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from udkd.augment.preprocessing import IMAGENET, Preprocessing
from udkd.losses.settings import LabelLoss
from udkd.utils.errors import BusyError, DataError, MismatchError, RunError
from udkd.utils.files import FolderLock, read_regular, write_bytes
from udkd.utils.folder_kinds import require_no_other
from udkd.utils.json_checksum import dump_checked, load_checked

FORMAT = 1
_MAX_BYTES = 1 << 24  # of teacher.json: 100,000 long names and a recipe


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("a name occurs twice")
    return names


_Percent = Annotated[float, Field(ge=0, le=100)]
_Pixels = Annotated[int, Field(ge=1, le=65_535)]


@dataclass(frozen=True, kw_only=True)
class TeacherInfo:
    """The content of teacher.json.

    architecture: see udkd.models.build. classes: wnid (or folder name) of each output, in order.
    image_px, resize_px, scheme: the evaluation view that its accuracy was measured on.
    accuracy: top1 and top5 in percent on the validation split, or empty where it was not measured.
    made: its origin (recipe, source file), for information only.
    loss: the one it was fitted with; "evidential" makes its logits evidence (udkd.losses.distill.dirichlet).
    preprocessing: of its input; teacher.json omits ImageNet's with bilinear interpolation, the only one of earlier teachers.
    """

    architecture: Annotated[str, Field(min_length=1, max_length=200)]
    classes: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_distinct)]
    image_px: _Pixels
    resize_px: _Pixels
    scheme: Literal["centre", "centre_squash"]
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    accuracy: Mapping[Literal["top1", "top5"], _Percent]
    made: Mapping[str, Any]
    loss: LabelLoss = "cross_entropy"
    preprocessing: Preprocessing = IMAGENET

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


_ADAPTER = TypeAdapter(TeacherInfo)


@dataclass(frozen=True, kw_only=True)
class TeacherFolder:
    """A teacher folder whose teacher.json has been validated."""

    path: Path
    info: TeacherInfo

    @classmethod
    def open(cls, path: Path) -> "TeacherFolder":
        """Read teacher.json. Raises DataError where it is absent, damaged, of another format or of other fields."""
        file = path / "teacher.json"
        try:
            values = load_checked(read_regular(file, _MAX_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{path} is not a teacher (no teacher.json); expected a folder made by udkd teacher fit or import"
            ) from None
        except ValueError as error:
            raise DataError(f"{file} is damaged ({error}); expected what udkd wrote; make the teacher again") from None
        stored_format = values.pop("format", None)
        if stored_format != FORMAT:
            raise DataError(f"{file} has format {str(stored_format)[:40]}; expected {FORMAT}; make the teacher again")
        made = values.get("made")  # may hold anything, such as a path that is not UTF-8: it is not validated
        try:
            validated = values if made is None else values | {"made": {}}
            info = _ADAPTER.validate_json(json.dumps(validated))
            if not isinstance(made, dict):
                raise ValueError("made: Input should be an object")
        except (ValueError, RecursionError) as error:  # ValidationError is one
            raise DataError(f"{file}: {_first_problem(error)}; expected what udkd wrote; make the teacher again") from None
        return cls(path=path, info=replace(info, made=made))

    def weights(self) -> dict[str, Tensor]:
        """The state dict. Raises DataError where the file's sha256 is not the one recorded."""
        file = self.path / "weights.safetensors"
        try:
            data = read_regular(file)
        except (FileNotFoundError, ValueError):
            raise DataError(f"{file} is missing; expected the teacher's weights; make the teacher again") from None
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 != self.info.weights_sha256:
            with contextlib.suppress(DataError):
                if TeacherFolder.open(self.path).info != self.info:
                    raise BusyError(f"{self.path} became another teacher while it was read; expected one teacher; run it again")
            raise DataError(
                f"{file} has sha256 {sha256[:12]}…; expected {self.info.weights_sha256[:12]}…; make the teacher again"
            )
        try:
            return load(data)
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise DataError(f"{file} is not a safetensors file ({error}); make the teacher again") from None


def _first_problem(error: Exception) -> str:
    """The first problem and its field."""
    if not isinstance(error, ValidationError):
        return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))[:100]}: {first['msg']}"


def require_classes(what: str, stored: Sequence[str], wanted: Sequence[str], remedy: str) -> None:
    """MismatchError, naming `what` and the first difference, unless the classes are the same in the same order."""
    fields: list[tuple[str, object, object]] = []
    if len(stored) != len(wanted):
        fields = [("num_classes", len(stored), len(wanted))]
    elif list(stored) != list(wanted):
        index = next(i for i in range(len(stored)) if stored[i] != wanted[i])
        fields = [(f"class {index}", stored[index], wanted[index])]
    if fields:
        raise MismatchError(what, fields, remedy)


@contextlib.contextmanager
def new_teacher(path: Path, *, resume: bool = False) -> Iterator[None]:
    """Lock a folder that is to become a teacher: two writers would mix the weights of one with the description of the other.

    A finished teacher is never overwritten, as caches depend on its weights. A folder that is still empty at the end is
    removed. resume: a teacher that the run in path/run trained is no error.
    RunError: the path is a file, or already a teacher, dataset, run or cache. BusyError: another process makes one there.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; expected a new folder; choose another")
    path.mkdir(parents=True, exist_ok=True)
    try:
        require_no_other(path, "teacher")
        with FolderLock(path):
            if (path / "teacher.json").exists() and not (resume and (path / "run").is_dir()):
                raise RunError(f"{path} already holds a teacher; expected a new folder; choose another or remove it")
            yield
    finally:
        with contextlib.suppress(OSError):
            path.rmdir()


def write_teacher(path: Path, weights: Mapping[str, Tensor], **info: Any) -> TeacherFolder:
    """Write a teacher folder, weights first, teacher.json last. `info`: TeacherInfo's fields except weights_sha256.

    The caller holds the folder's lock (`new_teacher`) where other processes may write there.
    """
    path.mkdir(parents=True, exist_ok=True)
    data = save({name: tensor.contiguous() for name, tensor in weights.items()})
    teacher_info = TeacherInfo(weights_sha256=hashlib.sha256(data).hexdigest(), **info)
    write_bytes(path / "weights.safetensors", data)
    values = asdict(teacher_info)
    if teacher_info.preprocessing == IMAGENET:
        del values["preprocessing"]
    write_bytes(path / "teacher.json", dump_checked(values | {"format": FORMAT}))
    return TeacherFolder(path=path, info=teacher_info)
