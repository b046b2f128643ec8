"""Recipes: typed, documented at the field, strict. TOML in, one frozen object out.

An unknown or ill-typed key is a ConfigError with its path; `--set a.b=c` overrides any key before anything is checked.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from udkd.words.errors import ConfigError
from udkd.words.losses import Direction, LossSettings
from udkd.words.views import Scheme, ViewSpec

Precision = Literal["float32", "bfloat16"]
BackendName = Literal["auto", "resident", "folder"]


class Section(BaseModel):
    """A group of keys; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataSection(Section):
    """Where canvases come from."""

    backend: BackendName = "auto"
    workers: int = Field(default=0, ge=0, description="decoding threads of the folder backend; 0 means one per core")


class ViewsSection(Section):
    """What the students see while training: fields of udkd.words.views.ViewSpec, and the seed of all views."""

    scheme: Scheme = "random_resized"
    size_px: int = Field(default=224, ge=1)
    resize_px: int = Field(default=256, ge=1)
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = Field(default=0.5, ge=0, le=1)
    brightness: float = Field(default=0.4, ge=0)
    contrast: float = Field(default=0.4, ge=0)
    saturation: float = Field(default=0.4, ge=0)
    seed: int = Field(default=0, ge=0, description="names the views; caches of augmented views depend on it")

    @property
    def spec(self) -> ViewSpec:
        """The views' specification."""
        return ViewSpec(**self.model_dump(exclude={"seed"}))


class EvaluationSection(Section):
    """What is seen at validation, and by the teacher in the canonical policy. The size is that of the training views."""

    scheme: Literal["centre", "centre_squash"] = "centre"
    resize_px: int = Field(default=256, ge=1)


class TeacherSection(Section):
    """How the teacher's word reaches the students."""

    source: Literal["cache", "live", "none"] = "cache"
    views: Literal["canonical"] | int = Field(
        default="canonical", description='"canonical": one evaluation view per sample; K: epoch e uses augmented view e mod K'
    )
    batch: int = Field(default=64, ge=1, description="the one batch shape that the teacher ever runs on")
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _at_least_one_view(self) -> Self:
        if isinstance(self.views, int) and self.views < 1:
            raise ValueError("views must be 'canonical' or at least 1")
        return self


class StudentSection(Section):
    """One student: a torchvision classifier and its own SGD with a cosine schedule."""

    architecture: str
    name: str = Field(default="", description="how reports call it; the architecture where empty")
    lr: float = Field(default=0.1, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    nesterov: bool = False
    warmup_epochs: float = Field(default=0.0, ge=0)


class FitSection(StudentSection):
    """How `udkd teacher fit` trains a teacher: a student of hard labels alone."""

    architecture: str = "resnet50"
    epochs: int = Field(default=50, ge=1)


class LossSection(Section):
    """Weights of the terms: fields of udkd.words.losses.LossSettings, and what weighs each sample's teacher term."""

    alpha: float = Field(default=0.4, ge=0)
    beta: float = Field(default=0.4, ge=0)
    gamma: float = Field(default=0.2, ge=0)
    temperature: float = Field(default=4.0, gt=0)
    direction: Direction = "student_teacher"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    weight: Literal["entropy", "constant"] = "entropy"

    @property
    def settings(self) -> LossSettings:
        """The loss's own settings."""
        return LossSettings(**self.model_dump(exclude={"weight"}))


class TrainSection(Section):
    """The loop."""

    epochs: int = Field(default=50, ge=1)
    batch: int = Field(default=64, ge=2)
    seed: int = Field(default=0, ge=0, description="initial weights, order of samples, dropout")
    precision: Precision = "float32"
    channels_last: bool = True
    compile: Literal["off", "loss", "all"] = "off"
    threads: int = Field(default=0, ge=0, description="PyTorch's threads on the CPU; 0 leaves them as they are")
    log_every_steps: int = Field(default=10, ge=1)
    tensorboard: bool = False


class Recipe(Section):
    """Everything a run depends on besides its data and its teacher."""

    data: DataSection = DataSection()
    views: ViewsSection = ViewsSection()
    evaluation: EvaluationSection = EvaluationSection()
    teacher: TeacherSection = TeacherSection()
    fit: FitSection = FitSection()
    students: tuple[StudentSection, ...] = Field(
        default=(StudentSection(architecture="resnet18"), StudentSection(architecture="mobilenet_v2")), min_length=1
    )
    loss: LossSection = LossSection()
    train: TrainSection = TrainSection()

    @property
    def evaluation_spec(self) -> ViewSpec:
        """The evaluation view: no flip, no jitter, the training views' size."""
        return ViewSpec(
            scheme=self.evaluation.scheme, size_px=self.views.size_px, resize_px=self.evaluation.resize_px, flip=0.0
        )

    @property
    def teacher_spec(self) -> ViewSpec:
        """What the teacher sees: the evaluation view, or the students' views."""
        return self.evaluation_spec if self.teacher.views == "canonical" else self.views.spec

    @model_validator(mode="after")
    def _views_are_possible(self) -> Self:
        _ = (self.evaluation_spec, self.views.spec)
        return self

    @model_validator(mode="after")
    def _teacher_is_used_or_absent(self) -> Self:
        if self.loss.beta > 0 and self.teacher.source == "none":
            raise ValueError("loss.beta > 0 needs a teacher: set teacher.source to cache or live, or loss.beta to 0")
        return self

    def for_teacher(self) -> "Recipe":
        """The recipe by which `fit` trains a teacher: one student, hard labels."""
        values = self.to_dict()
        fit = values["fit"]
        values["students"] = [{name: value for name, value in fit.items() if name != "epochs"}]
        values["train"]["epochs"] = fit["epochs"]
        values["loss"] |= {"alpha": 1.0, "beta": 0.0, "gamma": 0.0}
        values["teacher"]["source"] = "none"
        return Recipe.of(values, "teacher recipe")

    def student_names(self) -> list[str]:
        """A distinct name for each student: its own or its architecture, numbered where one appears twice."""
        wanted = [student.name or student.architecture for student in self.students]
        return [
            name if wanted.count(name) == 1 else f"{name}-{wanted[: index + 1].count(name)}"
            for index, name in enumerate(wanted)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        values: dict[str, Any] = self.model_dump(mode="json")
        return values

    @classmethod
    def of(cls, values: Mapping[str, Any], origin: str) -> "Recipe":
        """Check plain values. Raises ConfigError with the path of the first bad key; `origin` names where they came from."""
        try:
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            problems = error.errors(include_url=False)
            first = problems[0]
            path = ".".join(str(part) for part in first["loc"]) or "recipe"
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            if first["type"] == "extra_forbidden":
                raise ConfigError(f"{origin}: {path} is no key of a recipe{more}; expected {_siblings(first['loc'])}") from None
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{origin}: {path} = {first['input']!r}: {message}{more}; change it") from None


def _siblings(location: Sequence[int | str]) -> str:
    """The keys that are allowed where an unknown one was found."""
    model: Any = Recipe
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        model = StudentSection if part == "students" else annotation
    return ", ".join(model.model_fields)


def shipped_recipes() -> list[str]:
    """Names of the recipes inside the package."""
    return sorted(entry.name.removesuffix(".toml") for entry in _recipes().iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name, or a TOML file by path, with `a.b=value` overrides (TOML values; bare words are strings)."""
    path = Path(name)
    if name in shipped_recipes():
        text = (_recipes() / f"{name}.toml").read_text()
    elif path.suffix == ".toml" and path.is_file():
        text = path.read_text()
    else:
        raise ConfigError(f"recipe {name!r} not found; expected a .toml file or one of {', '.join(shipped_recipes())}")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not TOML ({error}); correct it") from None
    for override in overrides:
        _override(values, override)
    return Recipe.of(values, name)


def _recipes() -> Any:
    return files("udkd") / "recipes"


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override!r}; expected KEY=VALUE, such as train.epochs=3")
    *parents, last = path.strip().split(".")
    place: Any = values
    try:
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if isinstance(place, list):
            place[int(last)] = _value(text)
        else:
            place[last] = _value(text)
    except (IndexError, ValueError, AttributeError, TypeError):
        raise ConfigError(f"--set {path}: no such place in the recipe; expected a key's path, such as students.0.lr") from None


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
