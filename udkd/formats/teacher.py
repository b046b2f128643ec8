"""A teacher is a folder: teacher.json (what it is) and weights.safetensors (its numbers)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from udkd.words.errors import DataError, MismatchError
from udkd.words.files import write_bytes, write_json
from udkd.words.losses import HardLoss

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class TeacherInfo:
    """What teacher.json holds.

    architecture: torchvision's name. classes: wnid (or folder name) of each output, in order.
    image_px, resize_px, scheme: the evaluation view its accuracy was measured on.
    accuracy: top1 and top5 in percent on the validation split, or empty where it was not measured.
    made: how it came to be (recipe, source file), for people.
    loss: that its logits were fitted with; "evidential" ones are evidence (udkd.words.uncertainty.dirichlet).
    """

    architecture: str
    classes: tuple[str, ...]
    image_px: int
    resize_px: int
    scheme: str
    weights_sha256: str
    accuracy: Mapping[str, float]
    made: Mapping[str, Any]
    loss: HardLoss = "cross_entropy"

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


_ADAPTER = TypeAdapter(TeacherInfo)


@dataclass(frozen=True, kw_only=True)
class TeacherFolder:
    """An opened teacher."""

    path: Path
    info: TeacherInfo

    @classmethod
    def open(cls, path: Path) -> "TeacherFolder":
        """Read teacher.json. Raises DataError where it is absent, unreadable or of another format."""
        file = path / "teacher.json"
        try:
            values = json.loads(file.read_text())
            if not isinstance(values, dict):
                raise ValueError("no object")
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{path} is no teacher (no teacher.json); expected a folder made by udkd teacher fit or import"
            ) from None
        except ValueError as error:
            raise DataError(f"{file} is damaged ({error}); expected JSON; make the teacher again") from None
        found = values.pop("format", None)
        if found != FORMAT:
            raise DataError(f"{file} has format {found}; expected {FORMAT}; make the teacher again")
        try:
            return cls(path=path, info=_ADAPTER.validate_json(json.dumps(values)))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise DataError(f"{file}: {name}: {first['msg']}; expected what udkd wrote; make the teacher again") from None

    def weights(self) -> dict[str, Tensor]:
        """The state dict. Raises DataError where the file's sha256 is not the one recorded."""
        file = self.path / "weights.safetensors"
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            raise DataError(f"{file} is missing; expected the teacher's weights; make the teacher again") from None
        found = hashlib.sha256(data).hexdigest()
        if found != self.info.weights_sha256:
            raise DataError(
                f"{file} has sha256 {found[:12]}…; expected {self.info.weights_sha256[:12]}…; make the teacher again"
            )
        try:
            return load(data)
        except SafetensorError as error:
            raise DataError(f"{file} is no safetensors file ({error}); make the teacher again") from None


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


def write_teacher(path: Path, weights: Mapping[str, Tensor], **info: Any) -> TeacherFolder:
    """Write a teacher folder, weights first, teacher.json last. `info` are TeacherInfo's fields but for weights_sha256."""
    path.mkdir(parents=True, exist_ok=True)
    data = save({name: tensor.contiguous() for name, tensor in weights.items()})
    described = TeacherInfo(weights_sha256=hashlib.sha256(data).hexdigest(), **info)
    write_bytes(path / "weights.safetensors", data)
    write_json(path / "teacher.json", asdict(described) | {"format": FORMAT})
    return TeacherFolder(path=path, info=described)
