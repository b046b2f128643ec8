"""The values of loss.method, and the options of each."""

from typing import Literal

from pydantic import Field

from udkd.utils.options import MOST_PX, MOST_SAMPLES, Factor, Positive, Section, Temperature

MethodName = Literal["none", "dkd", "attention", "fitnets", "rkd", "crd", "reviewkd"]
FEATURE_METHODS = ("attention", "fitnets", "rkd", "crd", "reviewkd")
"""Methods that need the teacher's features, not only its logits."""
MAP_METHODS = ("attention", "fitnets", "reviewkd")
"""Those that compare its feature maps position by position."""
POOLED_METHODS = ("rkd", "crd")
"""Those that need only the mean of its deepest map over positions, which a cache may hold."""


class DkdSection(Section):
    """Decoupled knowledge distillation; its paper uses (1, 0.5, 1) for ImageNet and (1, 8, 4) for most of CIFAR-100."""

    target: Factor = 1.0
    others: Factor = 0.5
    temperature: Temperature = 1.0


class AttentionSection(Section):
    """Attention transfer between the deepest maps of each of the `stages` smallest sizes."""

    weight: Positive = 1000.0
    stages: int = Field(default=4, ge=1, le=64)


class FitnetsSection(Section):
    """A hint from one map. stage: 1 is the deepest size, 2 the one above."""

    weight: Positive = 100.0
    stage: int = Field(default=3, ge=1, le=64)


class RkdSection(Section):
    """Relational knowledge distillation: factors of its two terms."""

    distance: Factor = 25.0
    angle: Factor = Field(default=50.0, description="0 leaves the term out, whose memory grows with batch^3")


class CrdSection(Section):
    """Contrastive representation distillation. The two memories of each student hold `embed_dim` float32 per image."""

    weight: Positive = 0.8
    embed_dim: int = Field(default=128, ge=2, le=MOST_PX, description="of an embedding")
    negatives: int = Field(default=16384, ge=1, le=MOST_SAMPLES, description="per sample and step")
    temperature: Temperature = 0.07
    momentum: float = Field(default=0.5, ge=0, lt=1, description="of the memories")


class ReviewkdSection(Section):
    """Knowledge review over the deepest maps of each of the `stages` smallest sizes."""

    weight: Positive = 1.0
    stages: int = Field(default=4, ge=1, le=64)


class MethodsSection(Section):
    """Options of each loss.method."""

    dkd: DkdSection = DkdSection()
    attention: AttentionSection = AttentionSection()
    fitnets: FitnetsSection = FitnetsSection()
    rkd: RkdSection = RkdSection()
    crd: CrdSection = CrdSection()
    reviewkd: ReviewkdSection = ReviewkdSection()
