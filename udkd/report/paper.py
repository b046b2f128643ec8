"""The numbers printed in arXiv 2511.18826, and their settings.

Numbers are as printed, even where they contradict each other; the NOTE_* constants say where.
"""

from dataclasses import dataclass

SOURCE = "arXiv 2511.18826"

RESNET18 = "resnet18"
MOBILENET_V2 = "mobilenet_v2"
RESNET50 = "resnet50"
STUDENTS = (RESNET18, MOBILENET_V2)
TITLES = {RESNET50: "ResNet-50", RESNET18: "ResNet-18", MOBILENET_V2: "MobileNetV2"}


@dataclass(frozen=True, kw_only=True)
class PaperLoss:
    """The loss of a row of the paper's tables. weight: loss.sample_weight, None without a teacher term.

    assumed: the paper does not print alpha and beta for this row; they are taken from the row above.
    """

    alpha: float
    beta: float
    gamma: float
    weight: str | None
    assumed: bool = False


HARD_LABELS = PaperLoss(alpha=1.0, beta=0.0, gamma=0.0, weight=None)
BASELINE = PaperLoss(alpha=0.3, beta=0.7, gamma=0.0, weight="constant")
UNCERTAINTY = PaperLoss(alpha=0.3, beta=0.7, gamma=0.0, weight="entropy", assumed=True)
DUAL = PaperLoss(alpha=0.4, beta=0.4, gamma=0.2, weight="entropy")


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A row of Table I, percent."""

    label: str
    method: PaperLoss
    student: str
    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True)
class PrintedGain:
    """The gain of dual over baseline as Table I prints it, percentage points."""

    student: str
    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True)
class Hours:
    """A row of Table II: hours for 50 epochs, and their ratio to the single ResNet-18 where printed."""

    label: str
    students: tuple[str, ...]
    hours: float
    ratio: float | None


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A row of Table III: top-1 of each of STUDENTS, percent."""

    label: str
    method: PaperLoss
    top1: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Size:
    """A row of Table IV: millions of parameters with 1,000 classes, and how many times smaller than the teacher."""

    architecture: str
    millions: float
    ratio: float


TABLE_1 = (
    Accuracy(label="baseline KD", method=BASELINE, student=RESNET18, top1=81.86, top5=94.54),
    Accuracy(label="baseline KD", method=BASELINE, student=MOBILENET_V2, top1=80.54, top5=94.54),
    Accuracy(label="dual student", method=DUAL, student=RESNET18, top1=83.84, top5=96.36),
    Accuracy(label="dual student", method=DUAL, student=MOBILENET_V2, top1=81.46, top5=95.54),
)
TABLE_1_GAINS = (
    PrintedGain(student=RESNET18, top1=2.04, top5=1.82),
    PrintedGain(student=MOBILENET_V2, top1=0.92, top5=1.00),
)
TABLE_2_EPOCHS = 50
TABLE_2 = (
    Hours(label="single ResNet-18", students=(RESNET18,), hours=7.58, ratio=1.0),
    Hours(label="single MobileNetV2", students=(MOBILENET_V2,), hours=7.50, ratio=None),
    Hours(label="dual (both)", students=STUDENTS, hours=12.36, ratio=1.63),
)
TABLE_2_RATIO_OF_BOTH = 0.82
TABLE_3 = (
    Ablation(label="hard labels", method=HARD_LABELS, top1=(78.2, 76.1)),
    Ablation(label="+ teacher", method=BASELINE, top1=(81.9, 80.5)),
    Ablation(label="+ uncertainty weight", method=UNCERTAINTY, top1=(82.8, 81.0)),
    Ablation(label="+ peers", method=DUAL, top1=(83.8, 81.5)),
)
TABLE_4 = (
    Size(architecture=RESNET50, millions=25.6, ratio=1.00),
    Size(architecture=RESNET18, millions=11.7, ratio=2.19),
    Size(architecture=MOBILENET_V2, millions=3.5, ratio=7.31),
)

MEAN_WEIGHT = 0.816
MEAN_NORMALISED_ENTROPY = 0.184
MEAN_ENTROPY_PRINTED = 4.533
NUM_CLASSES = 100

TRAIN_IMAGES = 130_000
SETTINGS: tuple[tuple[str, str, object], ...] = (
    ("train.batch_size", "batch size", 64),
    ("train.slices", "slices of a batch, each with its own batch norm statistics", 1),
    ("views.scheme", "training crops", "random_resized"),
    ("views.scale", "crop area", [0.08, 1.0]),
    ("views.flip", "flip probability", 0.5),
    ("views.brightness", "brightness jitter", 0.4),
    ("views.contrast", "contrast jitter", 0.4),
    ("views.saturation", "saturation jitter", 0.4),
    ("evaluation.scheme", "validation crop", "centre_squash"),
    ("loss.temperature", "temperature", 4.0),
    ("loss.kl", "direction of the divergence", "reverse"),
    ("loss.label_smoothing", "label smoothing", 0.0),
)
"""Key of the recipe, its description, the paper's value."""
STUDENT_SETTINGS: tuple[tuple[str, str, object], ...] = (
    ("optimizer", "optimizer", "SGD"),
    ("lr", "learning rate", 0.1),
    ("schedule", "schedule of the learning rate", "cosine"),
    ("momentum", "momentum", 0.9),
    ("weight_decay", "weight decay", 1e-4),
    ("nesterov", "Nesterov momentum", False),
    ("warmup_epochs", "warm-up epochs", 0.0),
)
SIZE_PX, EPOCHS = 224, 50

NOTE_GAINS = (
    "The paper prints a gain of +2.04 for ResNet-18, but 83.84 − 81.86 is 1.98; "
    "and both baselines' top-5 are the same figure, 94.54."
)
NOTE_MIXED = (
    "The paper does not print α and β of every row. From “+ uncertainty weight” to “+ peers” α and β change too, "
    "so its last gain has two causes."
)
NOTE_ENTROPY = (
    "The paper prints a mean entropy of 4.533 of at most 4.605 nats beside a mean weight of 0.816. Its own formula contradicts "
    "that: 0.184 × 4.605 is 0.847 nats. It also reads 0.184, a mean, as “18.4 % of the samples”."
)
NOTE_HARDWARE = "The paper names no hardware, no seeds and no spread over runs."
