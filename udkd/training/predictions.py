"""RUN/predictions.safetensors: a run's predictions for each validation image, its teacher's for each training image.

A safetensors file, format 1, whose metadata hold one text, "udkd": JSON with the facts (format, dataset digest, step, classes,
names, counts) and the sha256 of those facts and of every array. Every array's dtype and shape follow from the facts and are
checked against them before one is read, and every value against its range: a class is one of C, a probability at most 1.
For each sample and classifier it stores the five most probable classes with their log-probabilities, the label's
log-probability and the entropy: 48 bytes, whatever the number of classes. 5,000 images and four classifiers take 1 MB,
130,000 training images of a teacher 8 MB.

Letters: n samples, C classes, K = min(5, C).
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from udkd.losses.sample_weight import entropy_weight
from udkd.utils.errors import RunError
from udkd.utils.files import open_regular, write_bytes
from udkd.utils.parsing import parse_json

FORMAT = 1
TOP = 5
_DTYPES = {"I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "F32": np.dtype("<f4")}
_REMEDY = "run udkd eval again"
_ROUNDING = 1e-3  # of a log-probability above 0 or an entropy above its bound, in nats
_Count = Annotated[int, Field(ge=1, lt=2**63)]

Spec = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class TopPredictions:
    """One classifier's predictions for n samples.

    top: int32 [n, K], most probable classes first. top_log_p: float32 [n, K], their log-probabilities.
    label_log_p: float32 [n], the label's. entropy: float32 [n], nats.
    """

    top: NDArray[np.int32]
    top_log_p: NDArray[np.float32]
    label_log_p: NDArray[np.float32]
    entropy: NDArray[np.float32]

    @property
    def predicted(self) -> NDArray[np.int32]:
        """The most probable class, int32 [n]."""
        return self.top[:, 0]

    @property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of the most probable class, float64 [n], at most 1."""
        return np.minimum(np.exp(self.top_log_p[:, 0].astype(np.float64)), 1.0)

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats."""
        return -float(self.label_log_p.astype(np.float64).mean())

    def correct(self, labels: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether the top-1 prediction is the label, bool [n]."""
        return np.asarray(self.predicted == labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class TeacherPredictions:
    """A teacher's predictions for n samples in one view.

    ids, labels: int64 [n]. num_views: how many views are cached; this is the first. canonical: it is the evaluation view.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    predictions: TopPredictions
    num_classes: int
    num_views: int = 1
    canonical: bool = True

    @property
    def entropy(self) -> NDArray[np.float32]:
        """The entropy of each prediction in nats, float32 [n]."""
        return self.predictions.entropy

    @property
    def weight(self) -> NDArray[np.float32]:
        """The paper's confidence weight, float32 [n] in [0, 1]."""
        weight: NDArray[np.float32] = entropy_weight(torch.from_numpy(self.entropy), self.num_classes).numpy()
        return weight

    @property
    def max_entropy(self) -> float:
        """The entropy of a uniform prediction over C classes, nats."""
        return float(np.log(self.num_classes))

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the teacher's top-1 prediction is the label, bool [n]."""
        return self.predictions.correct(self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What udkd eval stores for every validation image: ids, labels int64 [n] and one TopPredictions per classifier.

    names: of the students. average: of their averaged probabilities. teacher: for the same images; None without a teacher.
    targets: the teacher's predictions for the training images; None without a cache.
    step: of the checkpoint that was evaluated.
    """

    dataset_digest: str
    step: int
    num_classes: int
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    students: tuple[TopPredictions, ...]
    average: TopPredictions
    teacher_name: str | None = None
    teacher: TopPredictions | None = None
    targets: TeacherPredictions | None = None

    @property
    def val_targets(self) -> TeacherPredictions | None:
        """The teacher's predictions for the validation images; None where they are not stored."""
        if self.teacher is None:
            return None
        return TeacherPredictions(ids=self.ids, labels=self.labels, predictions=self.teacher, num_classes=self.num_classes)


def write_predictions(path: Path, predictions: Predictions) -> str:
    """Write the file completely or not at all; returns the sha256 that it records. RunError: a value that is not finite."""
    facts, arrays = _facts(predictions), _arrays(predictions)
    for name, (kind, shape) in _spec(facts).items():
        array = arrays[name]
        assert array.dtype == _DTYPES[kind], f"{name} is {array.dtype}; expected {_DTYPES[kind]}"
        assert array.shape == shape, f"{name} is {array.shape}; expected {shape}"
        if not np.isfinite(array).all():
            raise RunError(f"{name} of {path} is not finite; expected numbers; train again with a lower students.*.lr")
    sha256 = _digest(facts, arrays)
    text = json.dumps(facts | {"sha256": sha256}, sort_keys=True)
    write_bytes(path, save(arrays, metadata={"udkd": text}))
    return sha256


def read_predictions(path: Path) -> tuple[Predictions, str]:
    """The file's content and sha256. Raises RunError: absent, damaged, another format, arrays that do not fit the facts."""
    if not path.is_file():
        raise RunError(f"{path} is missing; expected what udkd eval writes; run udkd eval")
    try:
        _require_header(path)
        with safe_open(path, framework="numpy") as file:
            facts, sha256 = _read_facts((file.metadata() or {})["udkd"])
            spec = _spec(facts)
            stored = {name: (view.get_dtype(), tuple(view.get_shape())) for name, view in _slices(file)}
            if stored != spec:
                raise RunError(f"{path} holds other arrays than its header says; expected {', '.join(spec)}; {_REMEDY}")
            arrays = {name: file.get_tensor(name) for name in spec}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path} cannot be read ({str(error) or 'no header'}); expected predictions; {_REMEDY}") from None
    if _digest(facts, arrays) != sha256:
        raise RunError(f"{path} is damaged; expected the sha256 that it records; {_REMEDY}")
    invalid = _first_invalid(facts, arrays)
    if invalid:
        raise RunError(f"{invalid} of {path} is impossible; expected what udkd eval writes; {_REMEDY}")
    return _predictions(facts, arrays), sha256


class _TargetFacts(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    samples: _Count
    num_views: _Count
    canonical: bool


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    format: int
    dataset_digest: str
    step: Annotated[int, Field(ge=0)]
    num_classes: Annotated[int, Field(ge=1, lt=2**31)]
    samples: _Count
    students: Annotated[list[str], Field(min_length=1)]
    teacher: str | None
    targets: _TargetFacts | None


def _require_header(path: Path) -> None:
    """ValueError unless the header is padded with spaces, as safetensors does but does not demand."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not file.read(length if length < size else 0).rstrip(b" ").endswith(b"}"):
            raise ValueError("its header is not JSON")


def _read_facts(text: str) -> tuple[dict[str, Any], str]:
    """The facts and the sha256 that are written with them. Raises ValueError where they are not as they were written."""
    facts = parse_json(text)
    if not isinstance(facts, dict) or json.dumps(facts, sort_keys=True) != text:
        raise ValueError("its facts are not as they were written")
    sha256 = facts.pop("sha256")
    if facts.get("format") != FORMAT:
        raise ValueError(f"it has format {facts.get('format')}; expected {FORMAT}")
    try:
        _Facts.model_validate(facts)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return facts, str(sha256)


def _first_invalid(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """The first array with impossible values, or "": NaN, no class, a probability above 1, ids out of order."""
    classes = facts["num_classes"]
    upper = {"top": classes - 1, "labels": classes - 1, "ids": 2**62, "entropy": math.log(classes) + _ROUNDING}
    lower = {"top": 0, "labels": 0, "ids": 0, "entropy": -_ROUNDING}
    for name, array in arrays.items():
        part = name.rpartition(".")[2]
        outside = (array < lower.get(part, -np.inf)) | (array > upper.get(part, _ROUNDING)) | ~np.isfinite(array)
        if outside.any():
            return name
        if part == "ids" and (np.diff(array) <= 0).any():
            return name
        if part == "top_log_p" and (np.diff(array, axis=1) > 0).any():
            return name
    return ""


def _slices(file: Any) -> Iterator[tuple[str, Any]]:
    for name in file.keys():  # noqa: SIM118 (a safetensors file is not a mapping)
        yield name, file.get_slice(name)


def _facts(predictions: Predictions) -> dict[str, Any]:
    targets = predictions.targets
    return {
        "format": FORMAT,
        "dataset_digest": predictions.dataset_digest,
        "step": predictions.step,
        "num_classes": predictions.num_classes,
        "samples": len(predictions.ids),
        "students": list(predictions.names),
        "teacher": predictions.teacher_name if predictions.teacher else None,
        "targets": None
        if targets is None
        else {"samples": len(targets.ids), "num_views": targets.num_views, "canonical": targets.canonical},
    }


def _arrays(predictions: Predictions) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {"val.ids": predictions.ids, "val.labels": predictions.labels}
    predicted = {_student(index): top for index, top in enumerate(predictions.students)} | {"val.average": predictions.average}
    if predictions.teacher is not None:
        predicted["val.teacher"] = predictions.teacher
    if predictions.targets is not None:
        arrays |= {"train.ids": predictions.targets.ids, "train.labels": predictions.targets.labels}
        predicted["train.teacher"] = predictions.targets.predictions
    for name, top in predicted.items():
        arrays |= {f"{name}.{part}": value for part, value in vars(top).items()}
    return {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}


def _spec(facts: Mapping[str, Any]) -> Spec:
    """Every array's dtype and shape, as they follow from the facts."""
    top, val = min(TOP, int(facts["num_classes"])), int(facts["samples"])
    spec: Spec = {"val.ids": ("I64", (val,)), "val.labels": ("I64", (val,))}
    names = [*(_student(index) for index in range(len(facts["students"]))), "val.average"]
    sizes = dict.fromkeys([*names, "val.teacher"] if facts["teacher"] is not None else names, val)
    if facts["targets"] is not None:
        train = int(facts["targets"]["samples"])
        sizes["train.teacher"] = train
        spec |= {"train.ids": ("I64", (train,)), "train.labels": ("I64", (train,))}
    for name, samples in sizes.items():
        spec |= {f"{name}.top": ("I32", (samples, top)), f"{name}.top_log_p": ("F32", (samples, top))}
        spec |= {f"{name}.label_log_p": ("F32", (samples,)), f"{name}.entropy": ("F32", (samples,))}
    return dict(sorted(spec.items()))


def _student(index: int) -> str:
    return f"val.student.{index}"


def _digest(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _predictions(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Predictions:
    def top(name: str) -> TopPredictions:
        return TopPredictions(**{part: arrays[f"{name}.{part}"] for part in TopPredictions.__dataclass_fields__})

    num_classes, targets = int(facts["num_classes"]), facts["targets"]
    return Predictions(
        dataset_digest=facts["dataset_digest"],
        step=int(facts["step"]),
        num_classes=num_classes,
        ids=arrays["val.ids"],
        labels=arrays["val.labels"],
        names=tuple(facts["students"]),
        students=tuple(top(_student(index)) for index in range(len(facts["students"]))),
        average=top("val.average"),
        teacher_name=facts["teacher"],
        teacher=None if facts["teacher"] is None else top("val.teacher"),
        targets=None
        if targets is None
        else TeacherPredictions(
            ids=arrays["train.ids"],
            labels=arrays["train.labels"],
            predictions=top("train.teacher"),
            num_classes=num_classes,
            num_views=int(targets["num_views"]),
            canonical=bool(targets["canonical"]),
        ),
    )
