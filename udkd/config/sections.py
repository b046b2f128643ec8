"""The sections of a recipe: frozen, strictly typed classes. The table of keys in the documentation uses the descriptions."""

from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from udkd.augment.erasing import EraseFill
from udkd.augment.policies import MAX_OPS, MAX_POLICY_OPS, OpName, Policy, ViewOp
from udkd.augment.preprocessing import Interpolation, Preprocessing
from udkd.augment.views import Jitter, Scheme, ViewSpec, Warp
from udkd.config.optimizers import OptionValue, optimizer_arguments
from udkd.data.backends.registry import backend_names
from udkd.losses.estimator import Estimator, EstimatorKind
from udkd.losses.methods.registry import method_names
from udkd.losses.sample_weight import SampleWeighting, WeightControl, weight_kinds
from udkd.losses.schedules import ScheduleKind
from udkd.losses.settings import KlKind, LabelLoss, LossSettings
from udkd.losses.storage import Dtype, Storage
from udkd.utils.options import (
    MAX_EPOCHS,
    MAX_PX,
    MAX_SAMPLES,
    BatchSize,
    JitterStrength,
    NonNegative,
    Positive,
    Section,
    Seed,
    ShortText,
    SizePx,
    Temperature,
    one_of,
)

LrSchedule = Literal["cosine", "constant", "linear", "step", "wsd"]
Precision = Literal["float32", "bfloat16", "float16"]
Parallel = Literal["slices", "students"]
_STEP_GAMMA = 0.1


class DataSection(Section):
    """How images are loaded."""

    backend: Annotated[str, one_of(backend_names)] = Field(
        default="auto", description="loader of the canvases; auto picks the fastest that is available"
    )
    workers: int = Field(default=0, ge=0, le=1024, description="threads of the backends that decode; 0: one per core")


class OpSection(Section):
    """An operation on the views: the fields of udkd.augment.policies.ViewOp."""

    op: OpName = Field(description="the operation, by torchvision's name of its function")
    prob: float = Field(default=1.0, ge=0, le=1, description="how probable it is for each view")
    low: float = Field(
        default=0.0,
        description="smallest magnitude: a factor (brightness, contrast, saturation, sharpness), turns (hue), a threshold "
        "(solarize), bits (posterize), sigma in pixels (blur), degrees counterclockwise (rotate), a tangent (shear_x, "
        "shear_y), a fraction of the side (translate_x, translate_y)",
    )
    high: float = Field(default=0.0, description="largest magnitude; it is uniform between low and high")


class ViewsSection(Section):
    """The training views, which the students see: the fields of udkd.augment.views.ViewSpec and a seed."""

    scheme: Scheme = Field(
        default="random_resized",
        description="how a view is cropped: random_resized (torchvision's RandomResizedCrop), random (short side to resize_px, "
        "random crop), centre (short side to resize_px, centre crop) or centre_squash (both sides to resize_px, centre crop)",
    )
    size_px: SizePx = Field(default=224, description="side of a view, pixels, also of evaluation views")
    resize_px: SizePx = Field(default=256, description="size before the crop, pixels; random_resized does not use it")
    scale: tuple[float, float] = Field(default=(0.08, 1.0), description="smallest and largest area fraction (random_resized)")
    ratio: tuple[float, float] = Field(
        default=(3 / 4, 4 / 3), description="smallest and largest width over height (random_resized)"
    )
    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a horizontal flip")
    brightness: JitterStrength = Field(
        default=0.4, description="brightness jitter s: the factor is uniform in [max(0, 1 - s), 1 + s]; 0: none"
    )
    contrast: JitterStrength = Field(default=0.4, description="strength of the contrast jitter; see brightness")
    saturation: JitterStrength = Field(default=0.4, description="strength of the saturation jitter; see brightness")
    interpolation: Interpolation = Field(
        default="bilinear",
        description="antialiased resize of the students' views: bilinear or bicubic; a teacher's is stored in its folder",
    )
    policy: Policy = Field(
        default="none",
        description="random operations on the views: rand_augment, trivial_augment_wide, auto_augment (torchvision's, the last "
        "with its ImageNet policy), timm_rand_augment (timm's rand-mM-mstdS-inc1), three_augment (DeiT III) or none",
    )
    policy_ops: int = Field(default=2, ge=1, le=MAX_POLICY_OPS, description="operations per view of the two RandAugments")
    policy_magnitude: float = Field(
        default=9.0, ge=0, le=30, description="magnitude of rand_augment, of 30, and of timm_rand_augment, of 10"
    )
    policy_spread: float = Field(default=0.0, ge=0, le=100, description="standard deviation of that magnitude; 0: none")
    warp: Warp = Field(default="nearest", description="interpolation of rotations, shears and translations")
    fill: tuple[int, int, int] = Field(
        default=(0, 0, 0), description="red, green and blue of what they uncover, 0 to 255; torchvision's is black"
    )
    jitter: Jitter = Field(
        default="float",
        description="how brightness, contrast and saturation are computed: float, in float32 after everything else; uint8: in "
        "integers, after policy; needed beside policy, ops, erasing and mixing",
    )
    hue: float = Field(default=0.0, ge=0, le=0.5, description="strength of the hue's jitter, in turns, where jitter is uint8")
    ops: tuple[OpSection, ...] = Field(
        default=(), max_length=MAX_OPS, description="further operations on the views, one after the other"
    )
    erase_prob: float = Field(default=0.0, ge=0, le=1, description="probability that a box of the view is erased; 0: none")
    erase_area: tuple[float, float] = Field(default=(0.02, 0.33), description="smallest and largest area fraction of the box")
    erase_ratio: tuple[float, float] = Field(
        default=(0.3, 3.3), description="smallest and largest height over width of the box"
    )
    erase_fill: EraseFill = Field(default="mean", description="what the box is filled with: ImageNet's mean colour, or noise")
    mixup: float = Field(
        default=0.0,
        ge=0,
        le=2,
        description="alpha of MixUp: views are mixed in pairs, with a share from Beta(alpha, alpha); 0: none",
    )
    cutmix: float = Field(default=0.0, ge=0, le=2, description="alpha of CutMix, which exchanges a box of the pair; 0: none")
    mix_prob: float = Field(default=1.0, ge=0, le=1, description="probability that a pair is mixed")
    mix_switch_prob: float = Field(default=0.5, ge=0, le=1, description="probability of CutMix, where mixup and cutmix are set")
    seed: Seed = Field(default=0, description="seed of all views; part of the key of a cache of augmented views")

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        _ = self.spec  # raises for what does not fit together
        return self

    @property
    def spec(self) -> ViewSpec:
        """The specification that views are drawn from."""
        ops = tuple(ViewOp(**each.model_dump()) for each in self.ops)
        return ViewSpec(**self.model_dump(exclude={"seed", "interpolation", "ops"}), ops=ops)


class EvaluationSection(Section):
    """The evaluation view: used for validation, and by the teacher if teacher.views is eval. Its size is views.size_px."""

    scheme: Literal["centre", "centre_squash"] = Field(
        default="centre",
        description="centre: short side to resize_px, centre crop; centre_squash: both sides first",
    )
    resize_px: SizePx = Field(default=256, description="size before the crop, pixels")
    flip_tta: bool = Field(default=False, description="test-time augmentation: mean logits of a view and its mirror image")


class TeacherSection(Section):
    """The teacher's targets: where they come from and how they are computed and stored."""

    source: Literal["cache", "live", "none"] = Field(
        default="cache", description="cache: logits stored by udkd cache build; live: the teacher runs in every step; none"
    )
    views: Literal["eval"] | int = Field(
        default="eval", description='"eval": one evaluation view per sample; K: epoch e uses augmented view e mod K'
    )
    size_px: SizePx | Literal[0] = Field(
        default=0,
        description="side of the teacher's input, pixels: the students' crop and flip, rendered at this size; 0: views.size_px",
    )
    resize_px: SizePx | Literal[0] = Field(
        default=0,
        description="size before the crop of the teacher's evaluation view, pixels; 0: in proportion to evaluation.resize_px",
    )
    batch_size: BatchSize = Field(default=64, description="images per forward pass of the teacher; the last bits depend on it")
    precision: Precision = Field(default="float32", description="number format of the teacher's forward pass")
    logits_dtype: Dtype = Field(default="float16", description="number format of cached logits and live targets")
    top_k: int = Field(
        default=0, ge=0, le=MAX_SAMPLES, description="keep the K largest logits of a row and the mass of the rest; 0 keeps all"
    )
    estimator: EstimatorKind = Field(
        default="plain",
        description="how predictions become one target: plain, mc_dropout, ensemble or evidential (udkd.losses.estimator)",
    )
    mc_samples: int = Field(default=8, ge=2, le=1024, description="forward passes of mc_dropout")
    dropout: float = Field(default=0.2, gt=0, lt=1, description="dropout probability of mc_dropout, before the head")
    dropout_seed: Seed = Field(default=0, description="seed of mc_dropout's masks")
    fold_bn: bool = Field(default=False, description="fold batch norm into the convolutions: faster, but the last bits differ")
    compile: bool = Field(default=False, description="run the teacher through torch.compile: faster, but the last bits differ")

    @model_validator(mode="after")
    def _check_views(self) -> Self:
        if isinstance(self.views, int) and not 1 <= self.views <= MAX_EPOCHS:
            raise ValueError(f"views is {self.views}; expected 'eval' or a number of views from 1 to {MAX_EPOCHS}; change it")
        return self

    @model_validator(mode="after")
    def _check_compile(self) -> Self:
        if self.compile and self.estimator == "mc_dropout":
            raise ValueError(
                "compile is true and estimator is mc_dropout, which adds dropout inside the network; expected at most one "
                "of them; set teacher.compile to false"
            )
        return self

    @property
    def estimator_settings(self) -> Estimator:
        """The estimator with its parameters."""
        if self.estimator != "mc_dropout":
            return Estimator(kind=self.estimator)
        return Estimator(kind="mc_dropout", mc_samples=self.mc_samples, p=self.dropout, seed=self.dropout_seed)

    @property
    def storage(self) -> Storage:
        """How logits are stored."""
        return Storage(dtype=self.logits_dtype, top_k=self.top_k)


class StudentSection(Section):
    """One student: a classifier with its own optimizer and schedule of the learning rate."""

    architecture: ShortText = Field(
        min_length=1,
        description="name of the classifier: torchvision's, such as resnet18; timm/NAME; or package.module:function, which is "
        "called with num_classes and returns a torch.nn.Module",
    )
    name: ShortText = Field(default="", description="name in reports and files; empty: the architecture")
    lr: float = Field(default=0.1, ge=0, le=1e30, description="peak learning rate")
    optimizer: ShortText = Field(
        default="SGD",
        description="torch.optim's name of the optimizer: Adadelta, Adafactor, Adagrad, Adam, AdamW, Adamax, NAdam, RAdam, "
        "RMSprop or SGD",
    )
    optimizer_options: dict[str, OptionValue] = Field(
        default={}, description="further arguments of the optimizer, such as {betas = [0.9, 0.95], eps = 1e-8}"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of SGD and RMSprop")
    weight_decay: NonNegative = Field(default=1e-4, description="weight decay; 0: none")
    decay_1d: bool = Field(
        default=True, description="false: no weight decay on biases and on parameters of one dimension, such as those of norms"
    )
    nesterov: bool = Field(default=False, description="Nesterov momentum of SGD")
    clip_norm: NonNegative = Field(default=0.0, description="clips the norm of all the student's gradients to this; 0: off")
    schedule: LrSchedule = Field(
        default="cosine",
        description="learning rate after the warm-up: cosine or linear, to lr_end at the end of the run; constant; step; wsd: "
        "constant, then linear to lr_end during the last decay_epochs",
    )
    warmup_epochs: NonNegative = Field(default=0.0, description="epochs of linear warm-up of the learning rate; 0: none")
    lr_end: float = Field(
        default=0.0, ge=0, le=1, description="final learning rate as a fraction of the peak (cosine, linear, wsd)"
    )
    step_epochs: tuple[Positive, ...] = Field(
        default=(), description="epochs, from the student's start, after which the rate is multiplied by step_gamma (step)"
    )
    step_gamma: float = Field(default=_STEP_GAMMA, gt=0, le=1, description="factor of each step (step)")
    decay_epochs: NonNegative = Field(default=0.0, description="epochs of the final decay (wsd)")
    loss_weight: Positive = Field(default=1.0, description="factor of this student's loss in the sum over students")
    start_epoch: int = Field(
        default=0,
        ge=0,
        le=MAX_EPOCHS,
        description="epochs before this student starts; until then it is neither trained nor a peer",
    )
    init_from: ShortText = Field(
        default="",
        description="run folder whose newest checkpoint provides the initial weights, or a .safetensors or .pth file; empty: "
        "random",
    )
    init_from_student: ShortText = Field(default="", description="which student of that run; empty: the one of the same name")
    pretrained: bool = Field(
        default=False,
        description="start from torchvision's or timm's pretrained weights; the head is new where the classes are not theirs",
    )
    frozen: tuple[ShortText, ...] = Field(
        default=(),
        description='parameters that are not trained, as shell patterns of their names, such as ["conv1.*", "layer1.*"]; a '
        "batch norm that is frozen keeps its statistics too",
    )
    mean: tuple[float, ...] = Field(
        default=(), description="mean of red, green and blue in [0, 1] that normalises its input; empty: the model's own"
    )
    std: tuple[float, ...] = Field(default=(), description="standard deviation, likewise; given together with mean")

    @model_validator(mode="after")
    def _check_initial_weights(self) -> Self:
        if self.pretrained and self.init_from:
            raise ValueError("pretrained is true and init_from is set; expected one source of initial weights; drop one")
        return self

    @model_validator(mode="after")
    def _check_normalisation(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 3) or bool(self.mean) != bool(self.std):
                raise ValueError(f"{name} is {list(values)}; expected three numbers for mean and for std, or neither; set both")
        if self.mean:
            Preprocessing(mean=self.mean, std=self.std)  # type: ignore[arg-type]  # raises for what no image has
        return self

    @model_validator(mode="after")
    def _check_optimizer(self) -> Self:
        _ = self.optimizer_arguments  # raises for what does not fit together
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        unused = {
            "lr_end": self.lr_end != 0 and self.schedule not in ("cosine", "linear", "wsd"),
            "step_epochs": bool(self.step_epochs) and self.schedule != "step",
            "step_gamma": self.step_gamma != _STEP_GAMMA and self.schedule != "step",
            "decay_epochs": self.decay_epochs != 0 and self.schedule != "wsd",
        }
        for name in (name for name, is_unused in unused.items() if is_unused):
            raise ValueError(f"{name} is set and schedule = {self.schedule} does not use it; expected its default; drop {name}")
        if self.schedule == "step" and (not self.step_epochs or list(self.step_epochs) != sorted(set(self.step_epochs))):
            raise ValueError(
                f"step_epochs is {list(self.step_epochs)} and schedule is step; expected rising epochs, such as "
                "[30, 60]; set step_epochs"
            )
        if self.schedule == "wsd" and not self.decay_epochs:
            raise ValueError("decay_epochs is 0 and schedule is wsd; expected the epochs of the final decay; set decay_epochs")
        return self

    @property
    def optimizer_arguments(self) -> dict[str, Any]:
        """The arguments of the optimizer's constructor, without the learning rate."""
        return optimizer_arguments(
            self.optimizer,
            self.optimizer_options,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


class FitSection(StudentSection):
    """How `udkd teacher fit` trains a teacher: as one student with hard labels only."""

    architecture: ShortText = Field(default="resnet50", min_length=1, description="name of the teacher; see students")
    epochs: int = Field(default=50, ge=1, le=MAX_EPOCHS, description="epochs of the teacher's training")
    loss: LabelLoss = Field(
        default="cross_entropy", description="loss of the label; evidential: for teacher.estimator = evidential"
    )


class ScheduleSection(Section):
    """How a weight of the loss changes during the run: from its own value to `to` (udkd.losses.schedules)."""

    kind: ScheduleKind = Field(
        default="constant",
        description="constant; linear or cosine in time; progress: with the student's training accuracy; confidence: with the "
        "teacher's mean weight",
    )
    to: NonNegative = Field(default=0.0, description="final value of the weight")
    until: float = Field(default=1.0, gt=0, le=1, description="fraction of the run at which `to` is reached (linear, cosine)")


class SchedulesSection(Section):
    """One schedule per weight of the loss."""

    alpha: ScheduleSection = Field(default=ScheduleSection(), description="schedule of loss.alpha")
    beta: ScheduleSection = Field(default=ScheduleSection(), description="schedule of loss.beta")
    gamma: ScheduleSection = Field(default=ScheduleSection(), description="schedule of loss.gamma")
    method: ScheduleSection = Field(default=ScheduleSection(), description="schedule of loss.method_weight")

    def as_tuple(self) -> tuple[ScheduleSection, ...]:
        """The schedules, in the order of LossSection.initial_weights."""
        return self.alpha, self.beta, self.gamma, self.method


class LossSection(Section):
    """The loss: the weights of its terms (udkd.losses.settings.LossSettings), and the per-sample weight of the teacher term."""

    alpha: NonNegative = Field(default=0.4, description="weight of the label term; 0: off")
    beta: NonNegative = Field(default=0.4, description="weight of the teacher term; 0: off")
    gamma: NonNegative = Field(default=0.2, description="weight of the peer term, between students; 0: off")
    temperature: Temperature = Field(
        default=4.0, description="softens teacher and peer terms, which are multiplied by its square"
    )
    kl: KlKind = Field(
        default="reverse", description="reverse: KL(student || teacher), the paper's; forward: KL(teacher || student), Hinton's"
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="fraction of the label spread over the classes; 0: none"
    )
    label_loss: LabelLoss = Field(default="cross_entropy", description="the label term; evidential is for teachers only")
    sample_weight: Annotated[str, one_of(weight_kinds)] = Field(
        default="entropy",
        description="what weights a sample's teacher term: a registered kind (udkd.losses.sample_weight); constant: 1",
    )
    sample_weight_control: WeightControl = Field(
        default="none",
        description="control experiment: equal_mean gives every sample the mean weight, shuffled another sample's weight",
    )
    sample_weight_mean_one: bool = Field(default=False, description="divide the sample weights by their mean")
    sample_weight_seed: Seed = Field(default=0, description="seed of sample_weight_control = shuffled")
    method: Annotated[str, one_of(method_names)] = Field(
        default="none", description="an additional distillation term; its options are in methods.*"
    )
    method_weight: NonNegative = Field(default=1.0, description="weight of that term, times the weight in methods.*; 0: off")
    schedules: SchedulesSection = Field(default=SchedulesSection(), description="schedules of the weights")

    @model_validator(mode="after")
    def _check_evidential(self) -> Self:
        if self.label_loss == "evidential" and (any(self.max_weights[1:]) or self.label_smoothing):
            raise ValueError(
                "label_loss is evidential; expected beta, gamma and label_smoothing of 0; set them, or use fit.loss instead"
            )
        return self

    @model_validator(mode="after")
    def _check_sample_weight(self) -> Self:
        if self.sample_weight == "constant" and self.sample_weighting.needs_all:
            raise ValueError(
                "sample_weight is constant and sample_weight_control or sample_weight_mean_one is set; "
                "expected a kind that varies; drop one"
            )
        return self

    @property
    def scheduled(self) -> dict[str, ScheduleSection]:
        """The schedules that are not constant, by the name of the weight."""
        names = ("alpha", "beta", "gamma", "method")
        pairs = zip(names, self.schedules.as_tuple(), strict=True)
        return {name: schedule for name, schedule in pairs if schedule.kind != "constant"}

    @property
    def sample_weighting(self) -> SampleWeighting:
        """How uncertainties become sample weights."""
        return SampleWeighting(
            kind=self.sample_weight,
            control=self.sample_weight_control,
            mean_one=self.sample_weight_mean_one,
            seed=self.sample_weight_seed,
        )

    @property
    def settings(self) -> LossSettings:
        """The settings for `distill`, with the largest value of each weight: a term of weight 0 is not computed."""
        largest = dict(zip(("alpha", "beta", "gamma"), self.max_weights, strict=False))
        return LossSettings(**{field.name: getattr(self, field.name) for field in fields(LossSettings)} | largest)

    @property
    def initial_weights(self) -> tuple[float, float, float, float]:
        """Alpha, beta, gamma and the method's weight at the start of the run."""
        return self.alpha, self.beta, self.gamma, self.method_weight if self.method != "none" else 0.0

    @property
    def max_weights(self) -> tuple[float, ...]:
        """The largest value that each of `initial_weights` takes during the run."""
        pairs = zip(self.initial_weights, self.schedules.as_tuple(), strict=True)
        return tuple(value if schedule.kind == "constant" else max(value, schedule.to) for value, schedule in pairs)


class TrainSection(Section):
    """The training loop."""

    epochs: int = Field(default=50, ge=1, le=MAX_EPOCHS, description="epochs of the run")
    batch_size: int = Field(default=64, ge=2, le=MAX_SAMPLES, description="images per step; an incomplete batch is dropped")
    seed: Seed = Field(default=0, description="seed of initial weights, sample order and dropout")
    precision: Precision = Field(
        default="float32",
        description="bfloat16, float16: mixed precision by autocast, weights in float32; float16 with a dynamic loss scale",
    )
    accumulate: int = Field(
        default=1, ge=1, le=MAX_SAMPLES, description="equal parts that a step runs its batch in, adding their gradients"
    )
    slices: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="equal slices of a batch, a power of two, that up to as many processes share under torchrun, with the same "
        "bits for any number of them; each slice has its own batch norm statistics",
    )
    parallel: Parallel = Field(
        default="slices",
        description="what the processes of torchrun share: slices of every batch; students: each trains one, on whole batches",
    )
    deterministic: bool = Field(
        default=False, description="on a GPU: only kernels whose sums have a fixed order, which are slower"
    )
    channels_last: bool = Field(default=True, description="memory format of images and convolutions")
    compile: Literal["off", "loss", "all"] = Field(
        default="off",
        description="what torch.compile compiles: off; loss; all: augmentation, students and loss, forward and backward, as "
        "three graphs",
    )
    loss_impl: Literal["auto", "eager", "compiled", "fused"] = Field(
        default="auto", description="implementation of the loss; auto: compiled unless compile is off; fused: one Triton kernel"
    )
    input: Literal["stream", "resident"] = Field(
        default="stream", description="stream: the backend feeds batches; resident: all images stay in device memory"
    )
    cuda_graph: bool = Field(default=False, description="replay each step as one CUDA graph; needs input = resident")
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="PyTorch's CPU threads; 0: PyTorch's default, 1 with slices or parallel = students",
    )
    lr_base_batch_size: int = Field(
        default=0,
        ge=0,
        le=MAX_SAMPLES,
        description="batch size that learning rates are given for: they are scaled by batch_size / lr_base_batch_size; 0: not "
        "scaled",
    )
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the moving average of the weights, which is evaluated; 0: none"
    )
    progressive_px: int = Field(
        default=0, ge=0, le=MAX_PX, description="side of the views in the first epoch, growing to views.size_px; 0: constant"
    )
    progressive_until: float = Field(
        default=0.75, gt=0, le=1, description="fraction of the epochs after which progressive_px has grown to views.size_px"
    )
    log_every_steps: int = Field(default=10, ge=1, le=10**9, description="steps between two updates of the progress display")
    tensorboard: bool = Field(default=False, description="the same as tensorboard in loggers")
    loggers: tuple[ShortText, ...] = Field(
        default=(), description="where each epoch's figures also go: csv, tensorboard, wandb, mlflow or a registered logger"
    )
    checkpoint_minutes: float = Field(
        default=0.0, ge=0, le=1e6, description="minutes between checkpoints within an epoch; 0: at the end of each epoch only"
    )
    keep_checkpoints: int = Field(default=1, ge=1, le=MAX_EPOCHS, description="how many of the newest checkpoints are kept")
    keep_best: bool = Field(
        default=False, description="also keep the checkpoint of the epoch with the best mean validation top-1 of the students"
    )

    @model_validator(mode="after")
    def _check_cuda_graph(self) -> Self:
        if self.cuda_graph and self.input != "resident":
            raise ValueError("cuda_graph is true and input is stream; expected resident; set train.input to resident")
        return self

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if self.slices & (self.slices - 1):
            raise ValueError(f"slices is {self.slices}; expected a power of two, such as 1, 2, 4 or 8; change train.slices")
        if self.batch_size % self.slices or self.batch_size == self.slices:
            raise ValueError(
                f"slices is {self.slices} and batch_size {self.batch_size}; expected a divisor that leaves slices of at least "
                "2 images; change train.slices or train.batch_size"
            )
        size = self.batch_size // self.slices
        if size % self.accumulate or size == self.accumulate:
            of = f"slices of {size} images" if self.slices > 1 else f"batch_size {size}"
            raise ValueError(
                f"accumulate is {self.accumulate} and {of}; expected a divisor that leaves parts of at least 2 images; change "
                "train.accumulate"
            )
        return self

    @property
    def cpu_threads(self) -> int:
        """PyTorch's CPU threads, 0 for its default: several processes compute the bits of one only with the same number."""
        return self.threads or (1 if self.slices > 1 or self.parallel == "students" else 0)


class PerfSection(Section):
    """Optional optimisations: the same computation in another way. All are off by default; measure before you enable one."""

    saved_relu6: bool = Field(default=False, description="ReLU6 saves its output for the backward pass instead of its input")
    gathered_pool: bool = Field(
        default=False, description="the backward pass of max pooling gathers, without atomics: deterministic"
    )
    force_layout: bool = Field(
        default=False, description="inductor keeps channels_last in backward passes too, where PyTorch 2.14 copies"
    )
    combo_kernels: bool = Field(
        default=False, description="inductor merges small independent kernels: 28 % fewer kernel launches per step"
    )
    cudnn_benchmark: bool = Field(
        default=False, description="cuDNN times its convolution algorithms; repeated runs then differ in their last bits"
    )
