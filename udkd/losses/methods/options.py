"""The options of this package's methods, which are sections of a recipe: [methods.NAME]."""

from pydantic import Field

from udkd.utils.options import MAX_PX, MAX_SAMPLES, NonNegative, Positive, Section, Temperature


class AttentionSection(Section):
    """Attention transfer between the deepest feature maps of the `stages` smallest sizes."""

    weight: Positive = Field(default=1000.0, description="factor of the term")
    stages: int = Field(default=4, ge=1, le=64, description="number of the deepest sizes of maps that are compared")


class CrdSection(Section):
    """Contrastive representation distillation. Each student has two memories of `embed_dim` float32 per image."""

    weight: Positive = Field(default=0.8, description="factor of the term")
    embed_dim: int = Field(default=128, ge=2, le=MAX_PX, description="dimensions of an embedding")
    negatives: int = Field(default=16384, ge=1, le=MAX_SAMPLES, description="negative samples for each image and step")
    temperature: Temperature = Field(default=0.07, description="divides the similarities")
    momentum: float = Field(default=0.5, ge=0, lt=1, description="share of the old value when a memory is updated")


class DkdSection(Section):
    """Decoupled knowledge distillation. The paper uses (1, 0.5, 1) for ImageNet and (1, 8, 4) for most of CIFAR-100."""

    target: NonNegative = Field(default=1.0, description="weight of the target class's part, the paper's alpha")
    others: NonNegative = Field(default=0.5, description="weight of the other classes' part, the paper's beta")
    temperature: Temperature = Field(default=1.0, description="softens both parts, which are multiplied by its square")


class FitnetsSection(Section):
    """FitNets with one feature map. stage: 1 for the deepest size, 2 for the one before, and so on."""

    weight: Positive = Field(default=100.0, description="factor of the term")
    stage: int = Field(default=3, ge=1, le=64, description="which size of maps is compared, counted from the deepest, 1")


class ReviewkdSection(Section):
    """Knowledge review over the deepest feature maps of the `stages` smallest sizes."""

    weight: Positive = Field(default=1.0, description="factor of the term")
    stages: int = Field(default=4, ge=1, le=64, description="number of the deepest sizes of maps that are compared")


class RkdSection(Section):
    """Relational knowledge distillation: the weights of its two terms."""

    distance: NonNegative = Field(default=25.0, description="weight of the distance term")
    angle: NonNegative = Field(default=50.0, description="weight of the angle term, whose memory grows with batch^3; 0: none")
