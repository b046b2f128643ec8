"""The recipe: everything that a run depends on apart from its data and its teacher, as one frozen, validated object."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from pydantic import Field, model_validator

from udkd.augment.preprocessing import Preprocessing
from udkd.augment.views import ViewSpec
from udkd.config import old_keys
from udkd.config.sections import (
    DataSection,
    EvaluationSection,
    FitSection,
    LossSection,
    PerfSection,
    StudentSection,
    TeacherSection,
    TrainSection,
    ViewsSection,
)
from udkd.losses.methods.builtin import METHODS
from udkd.losses.methods.registry import MethodsSection, after_register
from udkd.utils.options import Section
from udkd.utils.printable import printable, shorten
from udkd.utils.validation import validate

_MAX_NAME_BYTES = 120  # of a student: files are named after it


class Recipe(Section):
    """Everything that a run depends on apart from its data and its teacher. See `udkd.load_recipe`."""

    data: DataSection = Field(default=DataSection(), description="how images are loaded")
    views: ViewsSection = Field(default=ViewsSection(), description="the training views")
    evaluation: EvaluationSection = Field(default=EvaluationSection(), description="the evaluation view")
    teacher: TeacherSection = Field(default=TeacherSection(), description="the teacher's targets")
    fit: FitSection = Field(default=FitSection(), description="how udkd teacher fit trains a teacher")
    students: tuple[StudentSection, ...] = Field(
        default=(StudentSection(architecture="resnet18"), StudentSection(architecture="mobilenet_v2")),
        min_length=1,
        max_length=1000,
        description="the students, which are trained together",
    )
    loss: LossSection = Field(default=LossSection(), description="the loss")
    methods: MethodsSection = Field(default_factory=MethodsSection, description="options of loss.method, by method")
    train: TrainSection = Field(default=TrainSection(), description="the training loop")
    perf: PerfSection = Field(default=PerfSection(), description="optional optimisations")

    @property
    def lr_scale(self) -> float:
        """The factor on all learning rates: the linear scaling rule of Goyal et al., arXiv 1706.02677."""
        return self.train.batch_size / self.train.lr_base_batch_size if self.train.lr_base_batch_size else 1.0

    @property
    def needs_teacher(self) -> bool:
        """Whether any term of the loss needs a teacher."""
        return self.loss.max_weights[1] > 0 or self.loss.method != "none"

    @property
    def pools_features(self) -> bool:
        """Whether loss.method compares pooled features, which a cache can store."""
        return self.loss.method != "none" and METHODS[self.loss.method].needs == "pooled"

    @property
    def needs_epoch_stats(self) -> bool:
        """Whether a schedule depends on the last epoch's EpochStats."""
        return any(schedule.kind in ("progress", "confidence") for schedule in self.loss.schedules.as_tuple())

    def started_students(self, step: int, steps_per_epoch: int) -> list[int]:
        """Indices of the students whose training has started after `step` steps; the others have their initial weights."""
        return [index for index, student in enumerate(self.students) if step > student.start_epoch * steps_per_epoch]

    @property
    def evaluation_spec(self) -> ViewSpec:
        """The evaluation view: the size of the training views, without flip and jitter."""
        return ViewSpec(
            scheme=self.evaluation.scheme, size_px=self.views.size_px, resize_px=self.evaluation.resize_px, flip=0.0
        )

    def student_preprocessing(self, index: int) -> Preprocessing:
        """The preprocessing of a student's input: its mean and std, or else its model's own, and views.interpolation."""
        from udkd.models.architectures import default_preprocessing  # the networks need torch; a recipe does not

        student = self.students[index]
        own = default_preprocessing(student.architecture)
        return Preprocessing(
            mean=_channels(student.mean) or own.mean,
            std=_channels(student.std) or own.std,
            interpolation=self.views.interpolation,
        )

    @property
    def teacher_px(self) -> int:
        """The side of the teacher's input."""
        return self.teacher.size_px or self.views.size_px

    @property
    def teacher_evaluation_spec(self) -> ViewSpec:
        """The teacher's evaluation view: `evaluation_spec`, in the teacher's size."""
        spec = self.evaluation_spec
        resize_px = self.teacher.resize_px or round(self.teacher_px * spec.resize_px / spec.size_px)
        return replace(spec, size_px=self.teacher_px, resize_px=resize_px)

    @property
    def teacher_spec(self) -> ViewSpec:
        """What the teacher's views are drawn from: its evaluation view, or the training views, whose size may differ."""
        return self.teacher_evaluation_spec if self.teacher.views == "eval" else self.views.spec

    @property
    def rendered_px(self) -> int:
        """The side of the teacher's input where it is not its views' size_px, else 0."""
        return self.teacher_px if self.teacher_px != self.teacher_spec.size_px else 0

    @model_validator(mode="after")
    def _check_evaluation(self) -> Self:
        if self.evaluation.resize_px < self.views.size_px:
            raise ValueError(
                f"evaluation.resize_px {self.evaluation.resize_px} is below views.size_px {self.views.size_px}; "
                "expected at least as much; raise it"
            )
        return self

    @model_validator(mode="after")
    def _check_teacher_size(self) -> Self:
        if self.teacher.resize_px and self.teacher.resize_px < self.teacher_px:
            raise ValueError(
                f"teacher.resize_px {self.teacher.resize_px} is below the teacher's input of {self.teacher_px} px; "
                "expected at least as much; raise it, or set teacher.size_px"
            )
        return self

    @model_validator(mode="after")
    def _check_progressive_px(self) -> Self:
        if self.train.progressive_px > self.views.size_px:
            raise ValueError(
                f"train.progressive_px {self.train.progressive_px} is above views.size_px {self.views.size_px}; "
                "expected a smaller initial side; lower it"
            )
        if self.train.progressive_px and self.needs_teacher and self.teacher.views != "eval":
            raise ValueError(
                "train.progressive_px changes the training views and teacher.views computes targets of those; "
                "expected targets of evaluation views; set teacher.views to eval or train.progressive_px to 0"
            )
        return self

    @model_validator(mode="after")
    def _check_loss_weights(self) -> Self:
        alpha, beta, gamma, method = self.loss.max_weights
        if alpha == beta == method == 0 and (gamma == 0 or len(self.students) == 1):
            raise ValueError("loss.alpha, loss.beta and loss.gamma leave nothing to learn from; expected one above 0; raise it")
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = self.student_names()
        sections = ("fit", *(f"students.{index}" for index in range(len(names))))
        for section, name in zip(sections, (self.fit.name or self.fit.architecture, *names), strict=True):
            if not _is_file_name(name):
                raise ValueError(
                    f"{section} is named {shorten(name)!r}, and files are named after it; expected up to "
                    f"{_MAX_NAME_BYTES} bytes without a leading dot or control characters; change {section}.name"
                )
        if len({name.replace("/", "-") for name in names}) < len(names):
            raise ValueError(f"students are named {', '.join(names)}; expected different names; change students.*.name")
        return self

    @model_validator(mode="after")
    def _check_teacher(self) -> Self:
        if self.loss.max_weights[1] > 0 and self.teacher.source == "none":
            raise ValueError(
                "teacher.source is none and loss.beta is above 0; expected a teacher for that term; "
                "set teacher.source to cache or live, or loss.beta to 0"
            )
        return self

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        method, source = self.loss.method, self.teacher.source
        if method == "none":
            return self
        needs = METHODS[method].needs
        if needs != "logits" and source != "live" and not (needs == "pooled" and source == "cache"):
            reason = "a cache stores no feature maps" if source == "cache" else "teacher.source is none"
            raise ValueError(f"loss.method = {method} needs a live teacher's features; {reason}; set teacher.source = live")
        if source == "none":
            raise ValueError(f"loss.method = {method} needs a teacher; set teacher.source to cache or live")
        if needs != "logits" and (self.teacher.fold_bn or self.teacher.compile or self.teacher.estimator != "plain"):
            raise ValueError(
                f"loss.method = {method} reads features inside the teacher; expected one unmodified network; "
                "set teacher.fold_bn and teacher.compile to false and teacher.estimator to plain"
            )
        if needs == "maps" and self.teacher.views == "eval":
            raise ValueError(
                f"loss.method = {method} compares feature maps of the same pixels and teacher.views = eval shows the teacher "
                "other pixels; expected a number of views; set teacher.views = train.epochs"
            )
        return self

    @model_validator(mode="after")
    def _check_mixing(self) -> Self:
        if not self.views.spec.mixes:
            return self
        name = "views.mixup" if self.views.mixup else "views.cutmix"
        off = "views.mixup and views.cutmix to 0"
        if self.train.batch_size // self.train.slices % 2:
            of = "and train.batch_size is" if self.train.slices == 1 else "and a slice of train.batch_size has"
            raise ValueError(
                f"{name} mixes pairs of a batch {of} {self.train.batch_size // self.train.slices}; expected an even number; "
                "change it"
            )
        if self.needs_teacher and self.teacher.views == "eval":
            raise ValueError(
                f"{name} mixes two samples and teacher.views = eval shows the teacher one of them; expected a number of views; "
                f"set teacher.views to one, such as {self.train.epochs}, or {off}"
            )
        if self.loss.label_loss == "evidential":
            raise ValueError(
                f"{name} mixes labels and the evidential loss takes one label a sample; expected cross_entropy; set "
                f"loss.label_loss or fit.loss to it, or {off}"
            )
        if self.loss.method != "none" and METHODS[self.loss.method].needs_labels:
            raise ValueError(
                f"{name} mixes labels and loss.method = {self.loss.method} takes one label a sample; expected another method; "
                f"change it, or set {off}"
            )
        if self.train.loss_impl == "fused":
            raise ValueError(
                f"{name} mixes labels and train.loss_impl = fused takes one label a sample; expected compiled or eager; "
                "change it"
            )
        return self

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        method = self.loss.method
        for key in ("accumulate", "slices"):
            if (parts := getattr(self.train, key)) > 1 and method != "none" and METHODS[method].compares_samples:
                raise ValueError(
                    f"train.{key} is {parts} and loss.method {method} compares the samples of a batch; "
                    f"expected the whole batch at once; set train.{key} to 1"
                )
        return self

    @model_validator(mode="after")
    def _check_parallel(self) -> Self:
        if self.train.parallel == "students":
            for name, value, wanted in (
                ("train.slices", self.train.slices, 1),
                ("train.compile", self.train.compile, "off"),
                ("loss.method", self.loss.method, "none"),
            ):
                if value != wanted:
                    raise ValueError(
                        f"train.parallel is students and {name} is {value}; expected {wanted}, as only logits travel between "
                        "the processes; change it, or set train.parallel to slices"
                    )
            if any(student.start_epoch for student in self.students):
                raise ValueError(
                    "train.parallel is students and a student has a start_epoch; expected all to train from the start; set it "
                    "to 0, or train.parallel to slices"
                )
        return self

    @model_validator(mode="after")
    def _check_deterministic(self) -> Self:
        if self.train.deterministic and self.perf.cudnn_benchmark:
            raise ValueError(
                "train.deterministic and perf.cudnn_benchmark are true, and the latter chooses kernels by their time; expected "
                "at most one of them; set one to false"
            )
        return self

    @model_validator(mode="after")
    def _check_schedules(self) -> Self:
        for index, student in enumerate(self.students):
            epochs, used = self.train.epochs - student.start_epoch, student.warmup_epochs + student.decay_epochs
            if student.schedule == "wsd" and used > epochs:
                raise ValueError(
                    f"students.{index}.warmup_epochs and decay_epochs are {used:g} epochs of {epochs}; expected at most as "
                    "many; lower them"
                )
        return self

    @model_validator(mode="after")
    def _check_start_epochs(self) -> Self:
        for index, student in enumerate(self.students):
            if student.start_epoch >= self.train.epochs:
                raise ValueError(
                    f"students.{index}.start_epoch is {student.start_epoch} of {self.train.epochs} epochs; "
                    "expected a smaller number; change it"
                )
        if all(student.start_epoch for student in self.students):
            raise ValueError("every start_epoch is above 0; expected a student that starts at once; set one to 0")
        if self.train.ema_decay and any(student.start_epoch for student in self.students):
            raise ValueError("train.ema_decay and a student's start_epoch are set; expected at most one of them; set one to 0")
        return self

    def for_teacher(self) -> "Recipe":
        """The recipe that `udkd teacher fit` trains by: the [fit] section as the only student, hard labels only."""
        values = self.to_dict()
        fit = values["fit"]
        values["students"] = [{name: value for name, value in fit.items() if name not in ("epochs", "loss")}]
        values["train"] |= {"epochs": fit["epochs"], "parallel": "slices"}
        values["loss"] |= {
            "alpha": 1.0,
            "beta": 0.0,
            "gamma": 0.0,
            "label_loss": fit["loss"],
            "method": "none",
            "schedules": {},
        }
        if fit["loss"] == "evidential":
            values["loss"]["label_smoothing"] = 0.0
        values["teacher"]["source"] = "none"
        if self.teacher.size_px:  # it is trained in its own size
            values["evaluation"]["resize_px"] = self.teacher_evaluation_spec.resize_px
            values["views"]["resize_px"] = round(self.views.resize_px * self.teacher_px / self.views.size_px)
            values["views"]["size_px"] = self.teacher_px
            values["teacher"] |= {"size_px": 0, "resize_px": 0}
        return Recipe.from_dict(values, "teacher recipe")

    def with_seed(self, seed: int) -> "Recipe":
        """This recipe with another train.seed."""
        return self.model_copy(update={"train": self.train.model_copy(update={"seed": seed})})

    def with_epochs(self, epochs: int) -> "Recipe":
        """This recipe with another train.epochs. Raises ConfigError where it does not fit."""
        values = self.to_dict()
        values["train"]["epochs"] = epochs
        return Recipe.from_dict(values, "--extend")

    def with_students(self, architectures: Sequence[str]) -> "Recipe":
        """This recipe with other students: each with the settings of its student of that architecture, or of its first."""
        of_each = {student.architecture: student for student in reversed(self.students)}
        values = self.to_dict()
        values["students"] = [
            of_each.get(name, self.students[0]).model_dump(mode="json") | {"architecture": name, "name": ""}
            for name in architectures
        ]
        return Recipe.from_dict(values, "students")

    def student_names(self) -> list[str]:
        """A distinct name per student: its name, or else its architecture, numbered if several are equal."""
        names = [student.name or student.architecture for student in self.students]
        return [
            name if names.count(name) == 1 else f"{name}-{names[: index + 1].count(name)}" for index, name in enumerate(names)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is the inverse."""
        values: dict[str, Any] = self.model_dump(mode="json")
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], origin: str) -> "Recipe":
        """Make a recipe from plain values that come from `origin`. Raises ConfigError, naming the first bad key by its path."""
        return validate(cls, values, origin=origin, noun="recipe")

    @classmethod
    def from_stored(cls, values: Mapping[str, Any], origin: str) -> "Recipe":
        """`from_dict` for the values in a run folder, which may have been written under older keys."""
        return cls.from_dict(old_keys.current(values), origin)


def _channels(values: tuple[float, ...]) -> tuple[float, float, float] | None:
    return (values[0], values[1], values[2]) if values else None


after_register.append(lambda: Recipe.model_rebuild(force=True))


def _is_file_name(name: str) -> bool:
    """Whether a file may have this name. Slashes are allowed, as they are written as dashes."""
    return printable(name, None) == name and not name.startswith(".") and 0 < len(name.encode()) <= _MAX_NAME_BYTES
