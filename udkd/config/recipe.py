"""Recipes: typed, documented at the field, strict. TOML in, one frozen object out.

An unknown or ill-typed key is a ConfigError with its path; `--set a.b=c` overrides any key before anything is checked.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from udkd.augment.views import Scheme, ViewSpec
from udkd.config import old_keys
from udkd.losses.distill import KlKind, LabelLoss, LossSettings
from udkd.losses.estimator import Estimator, EstimatorKind
from udkd.losses.methods.builtin import METHODS
from udkd.losses.methods.registry import MethodsSection, after_register, known_method
from udkd.losses.sample_weight import SampleWeighting, WeightControl, WeightKind
from udkd.losses.schedules import ScheduleKind
from udkd.losses.storage import Dtype, Storage
from udkd.utils.errors import ConfigError
from udkd.utils.files import read_regular
from udkd.utils.options import (
    MOST_EPOCHS,
    MOST_PX,
    MOST_SAMPLES,
    Batch,
    Factor,
    Positive,
    Section,
    Seed,
    Side,
    Strength,
    Temperature,
    Text,
)
from udkd.utils.parsing import parse_toml
from udkd.utils.printable import printable
from udkd.utils.toml_files import read_settings, shipped, shown

Precision = Literal["float32", "bfloat16"]
BackendName = Literal["auto", "resident", "ffcv", "dali", "folder"]

_NAME_BYTES = 120  # of a student: files are called after it


class DataSection(Section):
    """Where canvases come from."""

    backend: BackendName = "auto"
    workers: int = Field(default=0, ge=0, le=1024, description="threads of the backends that decode; 0 means one per core")


class ViewsSection(Section):
    """What the students see while training: fields of udkd.augment.views.ViewSpec, and the seed of all views."""

    scheme: Scheme = "random_resized"
    size_px: Side = 224
    resize_px: Side = 256
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = Field(default=0.5, ge=0, le=1)
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.4
    seed: Seed = Field(default=0, description="names the views; caches of augmented views depend on it")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} [{low}, {high}]; expected a smaller and a larger number above 0; change it")
        if self.scale[1] > 1:
            raise ValueError(f"scale up to {self.scale[1]}; expected a share of the image, at most 1; change it")
        if self.ratio[0] < 1e-3 or self.ratio[1] > 1e3:
            raise ValueError(f"ratio {list(self.ratio)}; expected width over height from 0.001 to 1000; change it")
        _ = self.spec
        return self

    @property
    def spec(self) -> ViewSpec:
        """The views' specification."""
        return ViewSpec(**self.model_dump(exclude={"seed"}))


class EvaluationSection(Section):
    """What is seen at validation, and by the teacher where teacher.views is eval. The size is that of the training views."""

    scheme: Literal["centre", "centre_squash"] = "centre"
    resize_px: Side = 256
    flip_tta: bool = Field(default=False, description="score the mean of the logits of a view and of its mirror image")


class TeacherSection(Section):
    """How the teacher's word reaches the students."""

    source: Literal["cache", "live", "none"] = "cache"
    views: Literal["eval"] | int = Field(
        default="eval", description='"eval": one evaluation view per sample; K: epoch e uses augmented view e mod K'
    )
    batch_size: Batch = Field(default=64, description="the one batch shape that the teacher ever runs on")
    precision: Precision = "float32"
    logits_dtype: Dtype = Field(
        default="float16", description="of cached logits, and of a live teacher's on their way to the loss"
    )
    top_k: int = Field(
        default=0, ge=0, le=MOST_SAMPLES, description="keep a row's K best classes and the mass of the others; 0 keeps all"
    )
    estimator: EstimatorKind = Field(default="plain", description="how one target comes of it: udkd.losses.estimator")
    mc_samples: int = Field(default=8, ge=2, le=1024, description="of mc_dropout")
    dropout: float = Field(default=0.2, gt=0, lt=1, description="probability of mc_dropout, before the head")
    dropout_seed: Seed = Field(default=0, description="names the masks of mc_dropout")
    fold_bn: bool = Field(default=False, description="batch norm folded into the convolutions: faster, other last bits")
    compile: bool = Field(default=False, description="through torch.compile: faster, other last bits")

    @model_validator(mode="after")
    def _at_least_one_view(self) -> Self:
        if isinstance(self.views, int) and not 1 <= self.views <= MOST_EPOCHS:
            raise ValueError(f"views is {self.views}; expected 'eval' or a number of views from 1 to {MOST_EPOCHS}; change it")
        return self

    @model_validator(mode="after")
    def _compiled_or_dropped(self) -> Self:
        if self.compile and self.estimator == "mc_dropout":
            raise ValueError(
                "compile is true and estimator mc_dropout, which drops features inside the network, where a compiled one is "
                "closed; expected one of the two; set teacher.compile to false"
            )
        return self

    @property
    def estimation(self) -> Estimator:
        """The estimator with its numbers."""
        if self.estimator != "mc_dropout":
            return Estimator(kind=self.estimator)
        return Estimator(kind="mc_dropout", passes=self.mc_samples, p=self.dropout, seed=self.dropout_seed)

    @property
    def stored(self) -> Storage:
        """How logits are stored."""
        return Storage(dtype=self.logits_dtype, top_k=self.top_k)


class StudentSection(Section):
    """One student: a torchvision classifier and its own SGD with a cosine schedule."""

    architecture: Text = Field(min_length=1)
    name: Text = Field(default="", description="how reports call it; the architecture where empty")
    lr: float = Field(default=0.1, ge=0, le=1e30)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: Factor = 1e-4
    nesterov: bool = False
    warmup_epochs: Factor = 0.0
    loss_weight: Positive = Field(default=1.0, description="of this student's loss in the sum over students")
    start_epoch: int = Field(
        default=0,
        ge=0,
        le=MOST_EPOCHS,
        description="it begins after so many epochs; until then it is not trained, and nobody's peer",
    )
    init_from: Text = Field(default="", description="a run folder whose newest checkpoint holds the weights to begin with")
    init_from_student: Text = Field(default="", description="the student of that run; this one's name where empty")


class FitSection(StudentSection):
    """How `udkd teacher fit` trains a teacher: a student of hard labels alone."""

    architecture: Text = Field(default="resnet50", min_length=1)
    epochs: int = Field(default=50, ge=1, le=MOST_EPOCHS)
    loss: LabelLoss = Field(default="cross_entropy", description="evidential: for teacher.estimator = evidential")


class ScheduleSection(Section):
    """How a weight of the loss moves over the run: from its own value to `to`. See udkd.losses.schedules."""

    kind: ScheduleKind = "constant"
    to: Factor = 0.0
    until: float = Field(default=1.0, gt=0, le=1, description="share of the run after which `to` is reached (linear, cosine)")


class SchedulesSection(Section):
    """One schedule for each weight of the loss."""

    alpha: ScheduleSection = ScheduleSection()
    beta: ScheduleSection = ScheduleSection()
    gamma: ScheduleSection = ScheduleSection()
    method: ScheduleSection = ScheduleSection()

    def each(self) -> tuple[ScheduleSection, ...]:
        """In the order of LossSection.weights."""
        return self.alpha, self.beta, self.gamma, self.method


class LossSection(Section):
    """Weights of the terms: fields of udkd.losses.distill.LossSettings, and what weighs each sample's teacher term."""

    alpha: Factor = 0.4
    beta: Factor = 0.4
    gamma: Factor = 0.2
    temperature: Temperature = 4.0
    kl: KlKind = Field(
        default="reverse", description="reverse: KL(student || teacher), the paper's; forward: KL(teacher || student), Hinton's"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    label_loss: LabelLoss = Field(default="cross_entropy", description="the loss of the label; evidential for teachers alone")
    sample_weight: WeightKind = Field(
        default="entropy", description="what weighs a sample's teacher term: udkd.losses.sample_weight"
    )
    sample_weight_control: WeightControl = Field(
        default="none", description="equal_mean: every sample gets the weights' mean; shuffled: another sample's weight"
    )
    sample_weight_mean_one: bool = Field(default=False, description="divide the weights by their mean")
    sample_weight_seed: Seed = Field(default=0, description="of sample_weight_control = shuffled")
    method: Annotated[str, AfterValidator(known_method)] = Field(
        default="none", description="a further term for every student; its options are in methods.*"
    )
    method_weight: Factor = Field(default=1.0, description="of that term, on top of the factors in methods.*")
    schedules: SchedulesSection = SchedulesSection()

    @model_validator(mode="after")
    def _evidence_stands_alone(self) -> Self:
        if self.label_loss == "evidential" and (any(self.largest_weights[1:]) or self.label_smoothing):
            raise ValueError(
                "label_loss is evidential; expected beta, gamma and label_smoothing of 0; set them, or fit.loss alone"
            )
        return self

    @model_validator(mode="after")
    def _weights_vary(self) -> Self:
        if self.sample_weight == "constant" and self.weighing.needs_all:
            raise ValueError(
                "sample_weight is constant and sample_weight_control or sample_weight_mean_one is set; "
                "expected a kind that varies; drop one"
            )
        return self

    @property
    def moving(self) -> dict[str, ScheduleSection]:
        """The weights of the loss that a schedule moves, by name."""
        names = ("alpha", "beta", "gamma", "method")
        return {name: own for name, own in zip(names, self.schedules.each(), strict=True) if own.kind != "constant"}

    @property
    def weighing(self) -> SampleWeighting:
        """How uncertainties become weights."""
        return SampleWeighting(
            kind=self.sample_weight,
            control=self.sample_weight_control,
            mean_one=self.sample_weight_mean_one,
            seed=self.sample_weight_seed,
        )

    @property
    def settings(self) -> LossSettings:
        """The loss's own settings; of a weight that moves, the largest it may have (a term of weight 0 is not built)."""
        largest = dict(zip(("alpha", "beta", "gamma"), self.largest_weights, strict=False))
        return LossSettings(**{field.name: getattr(self, field.name) for field in fields(LossSettings)} | largest)

    @property
    def weights(self) -> tuple[float, float, float, float]:
        """Alpha, beta, gamma, and the method's weight, as the run begins."""
        return self.alpha, self.beta, self.gamma, self.method_weight if self.method != "none" else 0.0

    @property
    def largest_weights(self) -> tuple[float, ...]:
        """The largest that each of `weights` becomes."""
        pairs = zip(self.weights, self.schedules.each(), strict=True)
        return tuple(value if moves.kind == "constant" else max(value, moves.to) for value, moves in pairs)


class TrainSection(Section):
    """The loop."""

    epochs: int = Field(default=50, ge=1, le=MOST_EPOCHS)
    batch_size: int = Field(default=64, ge=2, le=MOST_SAMPLES)
    seed: Seed = Field(default=0, description="initial weights, order of samples, dropout")
    precision: Precision = "float32"
    channels_last: bool = True
    compile: Literal["off", "loss", "all"] = Field(
        default="off", description="all: augmentation, students and loss, forward and backward, are three graphs"
    )
    loss_impl: Literal["auto", "eager", "compiled", "fused"] = Field(
        default="auto", description="auto: compiled unless compile is off; fused: one Triton kernel"
    )
    input: Literal["stream", "resident"] = Field(
        default="stream",
        description="where a step finds its images: streamed by the backend, or all on the device, the ids its only input",
    )
    cuda_graph: bool = Field(default=False, description="replay each step as one CUDA graph; needs input = resident")
    threads: int = Field(default=0, ge=0, le=1024, description="PyTorch's threads on the CPU; 0 leaves them as they are")
    lr_base_batch_size: int = Field(
        default=0,
        ge=0,
        le=MOST_SAMPLES,
        description="the batch that every lr is meant for: it is scaled by batch_size / lr_base_batch_size; 0 leaves it",
    )
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the moving average of the weights that is evaluated; 0: none"
    )
    progressive_px: int = Field(
        default=0, ge=0, le=MOST_PX, description="the views' side in the first epoch, growing; 0: always size_px"
    )
    progressive_until: float = Field(default=0.75, gt=0, le=1, description="share of the epochs after which size_px is reached")
    log_every_steps: int = Field(default=10, ge=1, le=10**9)
    tensorboard: bool = False

    @model_validator(mode="after")
    def _a_graph_finds_its_images(self) -> Self:
        if self.cuda_graph and self.input != "resident":
            raise ValueError("cuda_graph is true and input is stream; expected resident; set train.input to resident")
        return self


class PerfSection(Section):
    """Ways of computing the same numbers that have to be measured before they are believed: all off."""

    saved_relu6: bool = Field(default=False, description="ReLU6 keeps its output for the backward pass, not its input")
    gathered_pool: bool = Field(default=False, description="max-pool's backward gathers, without atomics: deterministic")
    force_layout: bool = Field(
        default=False, description="inductor keeps channels_last in backward passes too, where PyTorch 2.14 makes copies"
    )
    combo_kernels: bool = Field(
        default=False, description="inductor joins small kernels that do not need each other: 28 % fewer launches a step"
    )
    cudnn_benchmark: bool = Field(
        default=False, description="cuDNN times its algorithms for each convolution; a run is then not repeated to the bit"
    )


class Recipe(Section):
    """Everything a run depends on besides its data and its teacher."""

    data: DataSection = DataSection()
    views: ViewsSection = ViewsSection()
    evaluation: EvaluationSection = EvaluationSection()
    teacher: TeacherSection = TeacherSection()
    fit: FitSection = FitSection()
    students: tuple[StudentSection, ...] = Field(
        default=(StudentSection(architecture="resnet18"), StudentSection(architecture="mobilenet_v2")),
        min_length=1,
        max_length=1000,
    )
    loss: LossSection = LossSection()
    methods: MethodsSection = Field(default_factory=MethodsSection)
    train: TrainSection = TrainSection()
    perf: PerfSection = PerfSection()

    @property
    def lr_scale(self) -> float:
        """What every learning rate is multiplied with (the linear rule: Goyal et al., arXiv 1706.02677)."""
        return self.train.batch_size / self.train.lr_base_batch_size if self.train.lr_base_batch_size else 1.0

    @property
    def needs_teacher(self) -> bool:
        """Whether any term of the loss asks a teacher."""
        return self.loss.largest_weights[1] > 0 or self.loss.method != "none"

    @property
    def pools_features(self) -> bool:
        """Whether students learn from the teacher's pooled features."""
        return self.loss.method != "none" and METHODS[self.loss.method].needs == "pooled"

    @property
    def needs_figures(self) -> bool:
        """Whether weights of the loss depend on what the last epoch recorded."""
        return any(schedule.kind in ("progress", "confidence") for schedule in self.loss.schedules.each())

    def joined(self, step: int, steps_per_epoch: int) -> list[int]:
        """Places of the students that have been trained when `step` steps are done; the others have their first weights."""
        return [place for place, own in enumerate(self.students) if step > own.start_epoch * steps_per_epoch]

    @property
    def evaluation_spec(self) -> ViewSpec:
        """The evaluation view: no flip, no jitter, the training views' size."""
        return ViewSpec(
            scheme=self.evaluation.scheme, size_px=self.views.size_px, resize_px=self.evaluation.resize_px, flip=0.0
        )

    @property
    def teacher_spec(self) -> ViewSpec:
        """What the teacher sees: the evaluation view, or the students' views."""
        return self.evaluation_spec if self.teacher.views == "eval" else self.views.spec

    @model_validator(mode="after")
    def _evaluation_is_possible(self) -> Self:
        if self.evaluation.resize_px < self.views.size_px:
            raise ValueError(
                f"evaluation.resize_px {self.evaluation.resize_px} is below views.size_px {self.views.size_px}; "
                "expected at least as much; raise it"
            )
        return self

    @model_validator(mode="after")
    def _sizes_grow_where_no_target_depends_on_them(self) -> Self:
        if self.train.progressive_px > self.views.size_px:
            raise ValueError(
                f"train.progressive_px {self.train.progressive_px} is above views.size_px {self.views.size_px}; "
                "expected a smaller side to begin with; lower it"
            )
        if self.train.progressive_px and self.needs_teacher and self.teacher.views != "eval":
            raise ValueError(
                "train.progressive_px changes the students' views and teacher.views asks the teacher about those; "
                "expected targets of evaluation views; set teacher.views to eval or train.progressive_px to 0"
            )
        return self

    @model_validator(mode="after")
    def _something_is_learnt(self) -> Self:
        alpha, beta, gamma, method = self.loss.largest_weights
        if alpha == beta == method == 0 and (gamma == 0 or len(self.students) == 1):
            raise ValueError("loss.alpha, loss.beta and loss.gamma leave nothing to learn from; expected one above 0; raise it")
        return self

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = self.student_names()
        places = [f"students.{place}" for place in range(len(names))]
        for place, name in zip(("fit", *places), (self.fit.name or self.fit.architecture, *names), strict=True):
            if not _is_file_name(name):
                raise ValueError(
                    f"{place} is called {shown(name)!r}, and files are called after it; expected up to {_NAME_BYTES} bytes "
                    f"without a leading dot and control characters; change {place}.name"
                )
        if len({name.replace("/", "-") for name in names}) < len(names):
            raise ValueError(f"students are called {', '.join(names)}; expected a name each; change students.*.name")
        return self

    @model_validator(mode="after")
    def _teacher_is_used_or_absent(self) -> Self:
        if self.loss.largest_weights[1] > 0 and self.teacher.source == "none":
            raise ValueError(
                "teacher.source is none and loss.beta above 0; expected a teacher for that term; "
                "set teacher.source to cache or live, or loss.beta to 0"
            )
        return self

    @model_validator(mode="after")
    def _method_finds_its_teacher(self) -> Self:
        method, source = self.loss.method, self.teacher.source
        if method == "none":
            return self
        needs = METHODS[method].needs
        if needs != "logits" and source != "live" and not (needs == "pooled" and source == "cache"):
            holds = "a cache holds no maps" if source == "cache" else "teacher.source is none"
            raise ValueError(f"loss.method = {method} needs a live teacher's features; {holds}; set teacher.source = live")
        if source == "none":
            raise ValueError(f"loss.method = {method} needs a teacher; set teacher.source to cache or live")
        if needs != "logits" and (self.teacher.fold_bn or self.teacher.compile or self.teacher.estimator != "plain"):
            raise ValueError(
                f"loss.method = {method} looks inside one teacher; expected it as it is; "
                "set teacher.fold_bn and teacher.compile to false and teacher.estimator to plain"
            )
        if needs == "maps" and self.teacher.views == "eval":
            raise ValueError(
                f"loss.method = {method} compares maps of the same pixels and teacher.views = eval shows the teacher "
                "others; expected a number of views; set teacher.views = train.epochs"
            )
        return self

    @model_validator(mode="after")
    def _students_join_in_time(self) -> Self:
        for index, student in enumerate(self.students):
            if student.start_epoch >= self.train.epochs:
                raise ValueError(
                    f"students.{index}.start_epoch is {student.start_epoch} of {self.train.epochs} epochs; "
                    "expected a smaller number; change it"
                )
        if all(student.start_epoch for student in self.students):
            raise ValueError("every student joins later; expected one that begins at once; set one's start_epoch to 0")
        if self.train.ema_decay and any(student.start_epoch for student in self.students):
            raise ValueError("train.ema_decay is set and a student joins later; expected one of the two; set one to 0")
        return self

    def for_teacher(self) -> "Recipe":
        """The recipe by which `fit` trains a teacher: one student, hard labels."""
        values = self.to_dict()
        fit = values["fit"]
        values["students"] = [{name: value for name, value in fit.items() if name not in ("epochs", "loss")}]
        values["train"]["epochs"] = fit["epochs"]
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
        return Recipe.of(values, "teacher recipe")

    def with_seed(self, seed: int) -> "Recipe":
        """The same with another train.seed."""
        return self.model_copy(update={"train": self.train.model_copy(update={"seed": seed})})

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
            # default=str: TOML knows dates, which no key is; as text they are refused by their path.
            return cls.model_validate_json(json.dumps(values, default=str))
        except ValidationError as error:
            raise ConfigError(f"{origin}: {_explained(error.errors(include_url=False))}") from None
        except (RecursionError, ValueError) as error:
            raise ConfigError(f"{origin}: {_no_json(error)}; expected a recipe's keys and values; correct it") from None

    @classmethod
    def stored(cls, values: Mapping[str, Any], origin: str) -> "Recipe":
        """`of` for values that a run folder holds, which may have been written before keys had today's names."""
        return cls.of(old_keys.current(values), origin)


after_register.append(lambda: Recipe.model_rebuild(force=True))


def _explained(problems: Sequence[Any]) -> str:
    """The first problem of a recipe, in the words of its keys."""
    first, (place, section) = problems[0], _place(problems[0]["loc"])
    path = ".".join(map(str, place))
    others = {_place(problem["loc"])[0] for problem in problems} - {place}
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        return f"{path} is no key of a recipe{more}; expected {', '.join(section.model_fields)}; correct it"
    if first["type"] == "value_error":  # our own words, complete; the input is a whole section
        return f"{path + ': ' if path else ''}{first['msg'].removeprefix('Value error, ')}{more}"
    if first["type"] == "json_invalid":
        return f"its values are no JSON ({first['msg'].removeprefix('Invalid JSON: ')}); expected a recipe's; correct it"
    if first["type"] == "missing":
        return f"{path} is missing{more}; expected a value; add it"
    # A union reports each of its members: teacher.views is "eval" or a number.
    reports = [problem["msg"] for problem in problems if _place(problem["loc"])[0] == place]
    wanted = " or ".join(message.removeprefix("Input should be ") for message in reports)
    return f"{path} is {shown(_input(first['input']))}{more}; expected {wanted}; change it"


def _input(value: object) -> str:
    """What stands where something else should, as JSON."""
    try:
        return json.dumps(value, default=str)
    except (RecursionError, ValueError) as error:
        return _no_json(error)


def _no_json(error: BaseException) -> str:
    """In words, why values are no JSON: nested too deeply, an integer of 5,000 digits."""
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _is_file_name(name: str) -> bool:
    """Whether a name can be a file's in the folder where it is put; a slash is written as a dash there."""
    return printable(name, None) == name and not name.startswith(".") and 0 < len(name.encode()) <= _NAME_BYTES


def _place(location: Sequence[int | str]) -> tuple[tuple[int | str, ...], type[Section]]:
    """A location without the members of unions that pydantic adds to it, and the innermost section on the way there."""
    place: list[int | str] = []
    section: type[Section] = Recipe
    ended = False
    for part in location:
        if isinstance(part, str):
            if ended:
                continue
            field = section.model_fields.get(part)
            inner = StudentSection if part == "students" else field.annotation if field else None
            if isinstance(inner, type) and issubclass(inner, Section):
                section = inner
            else:
                ended = True
        place.append(part)
    return tuple(place), section


def shipped_recipes() -> list[str]:
    """Names of the recipes inside the package."""
    return shipped("recipe")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name, or a TOML file by path, with `a.b=value` overrides (TOML values; bare words are strings)."""
    values = read_settings("recipe", name, read_regular)
    for override in overrides:
        _override(values, override)
    if renamed := old_keys.changes(values):
        raise ConfigError(f"{name}: {renamed[0]}{f' (and {len(renamed) - 1} more)' if renamed[1:] else ''}; change it")
    return Recipe.of(values, name)


_MOST_PARTS = 8
"""Twice as deep as any key lies."""


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *parents, last = path.strip().split(".", _MOST_PARTS)
    if not equals or not all((*parents, last)):
        raise ConfigError(f"--set {shown(override)!r}; expected KEY=VALUE, such as train.epochs=3; correct it")
    if parents[:1] == ["students"] and "students" not in values:
        values["students"] = Recipe().to_dict()["students"]  # a place in a list that the recipe leaves as it is by default
    place: Any = values
    try:
        if len(parents) == _MOST_PARTS:
            raise ValueError("no key lies so deep")
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if isinstance(place, list):
            place[int(last)] = _value(text)
        else:
            place[last] = _value(text)
    except (IndexError, ValueError, AttributeError, TypeError):
        raise ConfigError(
            f"--set {shown(path)}: no such place in the recipe; expected a key's path, such as students.0.lr; correct it"
        ) from None


def _value(text: str) -> Any:
    try:
        values = parse_toml(f"value = {text}")
    except ValueError:
        return text.strip()
    return values["value"] if len(values) == 1 else text.strip()
