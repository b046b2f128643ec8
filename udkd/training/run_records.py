"""Strict models of the JSON files of a run, and the functions that read them.

Content is validated against its model and returned as plain values, so that names and types can be relied on.
"""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from udkd.utils.errors import RunError
from udkd.utils.files import read_regular
from udkd.utils.json_checksum import CHECKSUM, has_checksum, load_checked, load_checked_line

_R = TypeVar("_R", bound=BaseModel)
_MAX_BYTES = 1 << 28  # of a JSON file: 100,000 epochs have less


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("it is not a path")
    return text


_Count0 = Annotated[int, Field(ge=0, le=2**53)]
_Count = Annotated[int, Field(ge=1, le=2**53)]
_Positive = Annotated[float, Field(gt=0)]
_AtLeast0 = Annotated[float, Field(ge=0)]
_Percent = Annotated[float, Field(ge=0, le=100)]
_MeanPercent = Annotated[float, Field(ge=0, le=100.001)]  # a mean of batches' accuracies may round to more than 100
_Text = Annotated[str, Field(min_length=1)]
_Path = Annotated[str, AfterValidator(_path)]
_Plain = str | int | float | bool | None


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Config(_Record):
    """config.json, as far as a run folder reads it; udkd.config.recipe.Recipe reads all of it."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    students: list[dict[str, Any]] = []


class AnyFormat(_Record):
    """run.json of any format."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    format: int


class Hardware(_Record):
    """Where a run happened. tf32: by kind of operation, whether the GPU used TF32."""

    device: str
    cores: _Count
    threads: _Count
    tf32: dict[str, bool] = {}


class Extension(_Record):
    """A change of train.epochs by --extend, at a step of the run."""

    epochs_before: _Count
    epochs: _Count
    step: _Count0


class Processes(_Record):
    """The processes that trained a run from a step on: the host of each rank."""

    step: _Count0
    hosts: Annotated[list[_Text], Field(min_length=1)]


class Provenance(_Record):
    """run.json: data, teacher, cache, versions, hardware, command. classes: wnid or folder name of each output, in order.

    num_views: how many views are reused in turn. teacher_sha256: of a live teacher. starts: sha256 of init_from weights, by
    student. extended, processes: the oldest first; processes of a run that several trained together.
    """

    format: int
    dataset: _Path
    dataset_digest: _Text
    classes: Annotated[list[_Text], Field(min_length=1)] | None = None
    num_views: _Count | None = None
    teacher: _Path | None = None
    teachers: list[_Path] = []
    teacher_sha256: _Text | None = None
    cache: _Path | None = None
    cache_key: dict[str, _Plain | list[_Plain] | dict[str, _Plain | list[_Plain] | list[dict[str, _Plain]]]] = {}
    allowed: list[str] = []
    starts: dict[str, str] = {}
    versions: dict[str, str] = {}
    hardware: Hardware | None = None
    command: str = ""
    extended: list[Extension] = []
    processes: list[Processes] = []

    @model_validator(mode="after")
    def _of_one_cache(self) -> Self:
        if (self.cache is None) != (not self.cache_key):
            raise ValueError("one of cache and cache_key is present without the other")
        for name in ("teacher", "teacher_sha256"):
            if not isinstance(self.cache_key.get(name, ""), str):
                raise ValueError(f"cache_key.{name} is not text")
        return self


class StoredScore(_Record):
    """Accuracies in percent, mean cross-entropy in nats."""

    top1: _Percent
    top5: _Percent
    loss: _AtLeast0


class NetworkScore(StoredScore):
    """The score of a named network."""

    name: _Text
    parameters: _Count


class Evaluation(_Record):
    """eval.json. predictions_sha256: of predictions.safetensors, written just before it."""

    split: Literal["val"]
    num_samples: _Count
    num_classes: _Count
    step: _Count0
    students: Annotated[list[NetworkScore], Field(min_length=1)]
    ensemble: StoredScore
    teacher: NetworkScore | None
    predictions_sha256: _Text | None = None


class OtherEvaluation(_Record):
    """eval-NAME.json: accuracy on other data than the run's validation images.

    num_classes: outputs of the networks, which all compete. classes_present: how many of them have images.
    """

    name: _Text
    dataset: _Path
    dataset_digest: _Text
    split: Literal["val", "train"]
    num_samples: _Count
    num_classes: _Count
    classes_present: _Count
    step: _Count0
    students: Annotated[list[NetworkScore], Field(min_length=1)]
    ensemble: StoredScore
    teacher: NetworkScore | None


class EpochScores(_Record):
    """A row's validation scores: each student's (None before its start_epoch), and that of the started students' average."""

    students: Annotated[list[StoredScore | None], Field(min_length=1)]
    ensemble: StoredScore


class EpochMeans(_Record):
    """A row's means over the training images, one per student, None before its start_epoch; top1 in percent.

    method, confidence: of a run whose loss has a method's term or scheduled weights.
    """

    loss: list[float | None]
    hard: list[float | None]
    teacher: list[float | None]
    peer: list[float | None]
    top1: list[_MeanPercent | None]
    method: list[float | None] = []
    confidence: list[float | None] = []

    @property
    def columns(self) -> dict[str, list[float | None]]:
        """The columns that are present, by name."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


class Epoch(_Record):
    """A row of metrics.jsonl. seconds: of its training steps, since the epoch began or was resumed. lr: of each student."""

    epoch: _Count
    step: _Count
    lr: list[_AtLeast0]
    seconds: _Positive
    images_per_s: _Positive
    view: _Count0
    size_px: _Count
    train: EpochMeans
    val: EpochScores

    @model_validator(mode="after")
    def _of_the_same_students(self) -> Self:
        started = [score is not None for score in self.val.students]
        for column in self.train.columns.values():
            if [value is not None for value in column] != started:
                raise ValueError("train and val are not of the same students")
        if len(self.lr) != len(started) or not any(started):
            raise ValueError("lr and val are not of the same students")
        return self


class StoredEpochStats(_Record):
    """See udkd.losses.schedules.EpochStats."""

    progress: list[Annotated[float, Field(ge=0, le=1.00001)]]
    confidence: float


class CheckpointProgress(_Record):
    """A checkpoint's progress: steps done, steps per epoch, and the last epoch's statistics where schedules need them."""

    step: _Count0
    steps_per_epoch: _Count
    figures: StoredEpochStats | None = None


class StoredCheckpoint(_Record):
    """A checkpoint's file and the sha256 of its bytes."""

    file: Annotated[str, Field(pattern=r"^step-[0-9]{9,16}\.safetensors$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @property
    def step(self) -> int:
        """The step in the file's name."""
        return int(self.file.removeprefix("step-").removesuffix(".safetensors"))


class LastCheckpoint(StoredCheckpoint):
    """checkpoints/last.json: the newest checkpoint.

    progress: in format 1, whose checkpoint files do not hold it. older: those before it that are kept, the newest first.
    """

    progress: CheckpointProgress | None = None
    older: list[StoredCheckpoint] = []

    @model_validator(mode="after")
    def _of_one_step(self) -> Self:
        if self.progress is not None and self.progress.step != self.step:
            raise ValueError(f"progress.step is {self.progress.step} and the file is {self.file}")
        return self


class BestCheckpoint(StoredCheckpoint):
    """checkpoints/best.json: the checkpoint of the best epoch. top1: the students' mean on the validation images, percent."""

    top1: _MeanPercent


def read_record(path: Path, model: type[_R], *, checked: bool, remedy: str) -> tuple[_R, dict[str, Any]]:
    """A JSON file of a run, as its model and as plain values. checked: whether it must carry a checksum.

    Raises RunError naming the file and its problem: unreadable, changed since it was written, ill-typed.
    """
    try:
        data = read_regular(path, _MAX_BYTES)
        return _validated(data, model, load_checked, checked)
    except (OSError, ValueError) as error:
        raise_unreadable(path, error, remedy)


def read_epochs(path: Path, *, checked: bool) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl. Raises RunError as `read_record` does, and for epochs that are not consecutive."""
    rows: list[dict[str, Any]] = []
    first = None
    try:
        for line in read_regular(path, _MAX_BYTES).splitlines(keepends=True):
            row, values = _validated(line, Epoch, load_checked_line, checked)
            first = first or row
            rows.append(values)
            if row.epoch != len(rows) or row.step != row.epoch * first.step:
                raise ValueError(f"epoch {row.epoch} ends at step {row.step}, which does not follow the rows before it")
            if len(row.lr) != len(first.lr) or row.train.columns.keys() != first.train.columns.keys():
                raise ValueError("it has other columns or students than the rows before it")
    except OSError as error:
        raise_unreadable(path, error, "train again")
    except ValueError as error:
        raise_unreadable(path, ValueError(f"after {len(rows)} rows: {error}"), "train again")
    return rows


def _validated(
    data: bytes, model: type[_R], read: Callable[[bytes], dict[str, Any]], checked: bool
) -> tuple[_R, dict[str, Any]]:
    if checked and not has_checksum(data):
        raise ValueError(f"it lacks its {CHECKSUM}")
    values = read(data)
    try:
        return model.model_validate(values), values
    except ValidationError as error:
        raise ValueError(first_problem(error.errors(include_url=False))) from None


def first_problem(problems: Sequence[Any]) -> str:
    """The first problem that a model found, in one line."""
    first = problems[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] in ("value_error", "assertion_error"):
        message: str = first["msg"].split(", ", 1)[-1]
        return f"{where}: {message}" if where else message
    if first["type"] == "missing":
        return f"it lacks {where}"
    if first["type"] == "extra_forbidden":
        return f"it has an unknown field {where}"
    return f"{where} is {reprlib.repr(first['input'])}: {first['msg']}"


def raise_unreadable(path: Path, error: Exception, remedy: str) -> NoReturn:
    """Raise RunError: a file of a run cannot be read."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    raise RunError(f"{path} cannot be read ({reason}); expected what udkd wrote; {remedy}") from None


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values without the fields that are None."""
    return {name: value for name, value in values.items() if value is not None}
