"""Further ways to teach, by name, and the options of each."""

from typing import Literal

from pydantic import Field

from udkd.utils.options import MAX_PX, MAX_SAMPLES, NonNegative, Positive, Section, Temperature

MethodName = Literal["none", "dkd", "attention", "fitnets", "rkd", "crd", "reviewkd"]
FEATURE_METHODS = ("attention", "fitnets", "rkd", "crd", "reviewkd")
"""Methods that look inside the teacher."""
MAP_METHODS = ("attention", "fitnets", "reviewkd")
"""Those that compare its maps position by position."""
POOLED_METHODS = ("rkd", "crd")
"""Those that take the mean of its deepest map over positions, which a cache may hold."""


class DkdSection(Section):
    """Decoupled knowledge distillation; its paper takes (1, 0.5, 1) for ImageNet and (1, 8, 4) for most of CIFAR-100."""

    target: NonNegative = Field(default=1.0, description="weight of the target class term; 0: off")
    others: NonNegative = Field(default=0.5, description="weight of the term among the other classes; 0: off")
    temperature: Temperature = Field(default=1.0, description="softens both terms")


class AttentionSection(Section):
    """Attention transfer between the deepest maps of so many sizes."""

    weight: Positive = Field(default=1000.0, description="weight of the term, times loss.method_weight")
    stages: int = Field(default=4, ge=1, le=64, description="number of map sizes, from the deepest up")


class FitnetsSection(Section):
    """A hint from one map. stage: 1 is the deepest size, 2 the one above."""

    weight: Positive = Field(default=100.0, description="weight of the term, times loss.method_weight")
    stage: int = Field(default=3, ge=1, le=64, description="size of the compared map: 1 is the deepest, 2 the one above")


class RkdSection(Section):
    """Relational knowledge distillation: factors of its two terms."""

    distance: NonNegative = Field(default=25.0, description="weight of the distance term")
    angle: NonNegative = Field(default=50.0, description="weight of the angle term, whose memory grows with batch^3; 0: off")


class CrdSection(Section):
    """Contrastive representation distillation. The two memories of each student hold `numbers` float32 per image."""

    weight: Positive = Field(default=0.8, description="weight of the term, times loss.method_weight")
    embed_dim: int = Field(default=128, ge=2, le=MAX_PX, description="size of the embeddings")
    negatives: int = Field(default=16384, ge=1, le=MAX_SAMPLES, description="negative samples per sample and step")
    temperature: Temperature = Field(default=0.07, description="temperature of the contrastive scores")
    momentum: float = Field(default=0.5, ge=0, lt=1, description="share of the old value when a memory is updated")


class ReviewkdSection(Section):
    """Knowledge review over the deepest maps of so many sizes."""

    weight: Positive = Field(default=1.0, description="weight of the term, times loss.method_weight")
    stages: int = Field(default=4, ge=1, le=64, description="number of map sizes, from the deepest up")


class MethodsSection(Section):
    """Options of each loss.method."""

    dkd: DkdSection = Field(default=DkdSection(), description="options of dkd")
    attention: AttentionSection = Field(default=AttentionSection(), description="options of attention")
    fitnets: FitnetsSection = Field(default=FitnetsSection(), description="options of fitnets")
    rkd: RkdSection = Field(default=RkdSection(), description="options of rkd")
    crd: CrdSection = Field(default=CrdSection(), description="options of crd")
    reviewkd: ReviewkdSection = Field(default=ReviewkdSection(), description="options of reviewkd")
