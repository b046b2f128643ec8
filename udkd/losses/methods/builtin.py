"""METHODS after the methods of this package are registered. Each is a file, which is imported when its module is built."""

from typing import TYPE_CHECKING

from udkd.losses.methods.options import (
    AttentionSection,
    CrdSection,
    DkdSection,
    FitnetsSection,
    ReviewkdSection,
    RkdSection,
)
from udkd.losses.methods.registry import METHODS as METHODS
from udkd.losses.methods.registry import MethodSetup, register_method

if TYPE_CHECKING:
    from torch import nn


@register_method("attention", AttentionSection, title="attention transfer", needs="maps", depth="stages")
def _attention(options: AttentionSection, setup: MethodSetup) -> "nn.Module":
    from udkd.losses.methods.attention import Attention

    return Attention(options, setup)


@register_method("crd", CrdSection, title="CRD", needs="pooled", compares_samples=True, needs_labels=True)
def _crd(options: CrdSection, setup: MethodSetup) -> "nn.Module":
    from udkd.losses.methods.crd import Crd

    return Crd(options, setup)


@register_method("dkd", DkdSection, title="DKD", needs_labels=True)
def _dkd(options: DkdSection, setup: MethodSetup) -> "nn.Module":
    from udkd.losses.methods.dkd import Dkd

    return Dkd(options, setup)


@register_method("fitnets", FitnetsSection, title="FitNets", needs="maps", depth="stage", single=True)
def _fitnets(options: FitnetsSection, setup: MethodSetup) -> "nn.Module":
    from udkd.losses.methods.fitnets import Fitnets

    return Fitnets(options, setup)


@register_method("reviewkd", ReviewkdSection, title="ReviewKD", needs="maps", depth="stages")
def _reviewkd(options: ReviewkdSection, setup: MethodSetup) -> "nn.Module":
    from udkd.losses.methods.reviewkd import ReviewTerm

    return ReviewTerm(options, setup)


@register_method("rkd", RkdSection, title="RKD", needs="pooled", compares_samples=True)
def _rkd(options: RkdSection, setup: MethodSetup) -> "nn.Module":
    from udkd.losses.methods.rkd import Rkd

    return Rkd(options, setup)
