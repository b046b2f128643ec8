"""A teacher's uncertainty about a sample, and the weight of the sample's teacher term.

Letters: B batch, C classes, M members (networks of an ensemble, or passes with dropout).
Every kind of weight is computed from the logits of the mean prediction and at most one uncertainty per sample, so training
costs the same. To add a kind, decorate a function with `@register_sample_weight`, here or in any other module.

Recipes name these kinds, and reading a recipe does not import torch: everything here is written with a tensor's own methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from udkd.augment.mixing import MixedLabels
from udkd.utils.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

WeightControl = Literal["none", "equal_mean", "shuffled"]
"""A control experiment: every sample gets the mean weight (equal_mean), or the weight of another sample (shuffled)."""

FloatArray = TypeVar("FloatArray", "Tensor", "NDArray[np.float32]")

_UNCERTAINTIES = ("entropy", "mutual_information", "vacuity")


@dataclass(frozen=True, kw_only=True)
class SampleWeighting:
    """How uncertainties become weights.

    kind: a registered kind. mean_one: divide the weights by their mean. seed: of the control "shuffled". `control` and
    `mean_one` need all samples of a view at once.
    """

    kind: str = "entropy"
    control: WeightControl = "none"
    mean_one: bool = False
    seed: int = 0

    @property
    def text(self) -> str:
        """The kind and its modifications as a readable text."""
        control = {"none": "", "equal_mean": ", mean of all samples", "shuffled": ", shuffled"}[self.control]
        return self.kind + control + (", mean 1" if self.mean_one else "")

    @property
    def needs_all(self) -> bool:
        """Whether a sample's weight depends on other samples."""
        return self.control != "none" or self.mean_one


def entropy(logits_BC: Tensor) -> Tensor:
    """Entropy of softmax(logits) at temperature 1, in nats: float32 [B], in [0, ln C].

    Source: arXiv 2511.18826, the uncertainty of the teacher's prediction. If the prediction is a mean over members, it is the
    total uncertainty (Depeweg et al., arXiv 1710.07283).
    """
    log_p_BC = logits_BC.float().log_softmax(-1)
    return -(log_p_BC.exp() * log_p_BC).sum(-1)


def mean_log_probability(log_p_MBC: Tensor) -> Tensor:
    """The log of the members' mean probability, [B, C]: ln (1/M) sum_m p_m, from log-probabilities [M, B, C].

    Source: Lakshminarayanan et al., arXiv 1612.01474, equation of the ensemble's prediction.
    """
    return log_p_MBC.logsumexp(0) - math.log(len(log_p_MBC))


def mutual_information(log_p_MBC: Tensor) -> Tensor:
    """Disagreement of the members: I = H[mean_m p_m] - mean_m H[p_m] in nats, float32 [B], in [0, ln min(M, C)].

    Computed as mean_m KL(p_m || mean p), which is the same number without cancellation if the members nearly agree.
    Source: Houlsby et al., arXiv 1112.5745 (BALD); for dropout Gal, Ghahramani, arXiv 1506.02142.
    """
    ratio_MBC = log_p_MBC - mean_log_probability(log_p_MBC)
    return (log_p_MBC.exp() * ratio_MBC).sum(-1).mean(0).clamp(min=0.0)


def vacuity(alpha_BC: Tensor) -> Tensor:
    """Lack of evidence, u = C / sum_c alpha_c: [B], in (0, 1]. Source: Sensoy et al., arXiv 1806.01768, eq. 1."""
    return alpha_BC.shape[-1] / alpha_BC.sum(-1)


def entropy_weight(entropy_B: FloatArray, num_classes: int) -> FloatArray:
    """The confidence weight w = 1 - H / ln C, clipped to [0, 1]: float32 [B], an array or a tensor as entropy_B is.

    Source: arXiv 2511.18826; it multiplies the teacher term of a sample.
    """
    return (1.0 - entropy_B / math.log(num_classes)).clip(0.0, 1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightInputs:
    """What the weights of B samples are computed from.

    logits_BC: any float dtype. uncertainty_B: float32, the uncertainty named at registration; NaN for an excluded id, whose
    weight is then NaN. labels_B: int64. uncertainty_B and labels_B are empty if the kind was registered without them.
    num_members: M, 1 for a single prediction.
    """

    logits_BC: Tensor
    uncertainty_B: Tensor
    labels_B: Tensor
    num_members: int

    @property
    def num_classes(self) -> int:
        return self.logits_BC.shape[-1]


WeightFunction = Callable[[WeightInputs], "Tensor"]
"""Returns float32 [B], in [0, 1]. No weight may depend on another sample, as cached and live weights must agree."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    function: WeightFunction
    uncertainty: str | None
    needs_labels: bool


_KINDS: dict[str, _Kind] = {}


def register_sample_weight(
    name: str, *, uncertainty: str | None = None, needs_labels: bool = False
) -> Callable[[WeightFunction], WeightFunction]:
    """Make a weight function available as loss.sample_weight = `name`.

    uncertainty: the stored array that it needs, if any: entropy, mutual_information or vacuity. needs_labels: whether it
    needs the labels.
    """
    assert name not in _KINDS, f"sample weight {name!r} is registered twice"
    assert uncertainty is None or uncertainty in _UNCERTAINTIES, f"{uncertainty!r}: expected one of {_UNCERTAINTIES}"

    def add(function: WeightFunction) -> WeightFunction:
        _KINDS[name] = _Kind(function=function, uncertainty=uncertainty, needs_labels=needs_labels)
        return function

    return add


def weight_kinds() -> tuple[str, ...]:
    """Names of the registered kinds."""
    return tuple(_KINDS)


def uncertainty_of(kind: str) -> str | None:
    """The uncertainty that a kind is computed from; None if the logits suffice. Raises ConfigError for an unknown kind."""
    return _registered(kind).uncertainty


def needs_labels(kind: str) -> bool:
    """Whether a kind depends on the labels. Raises ConfigError for an unknown kind."""
    return _registered(kind).needs_labels


def _registered(kind: str) -> _Kind:
    if kind not in _KINDS:
        raise ConfigError(f"sample weight {kind!r} is unknown; expected one of {', '.join(_KINDS)}; change it")
    return _KINDS[kind]


def sample_weight(
    kind: str,
    logits_BC: Tensor,
    uncertainty_B: Tensor | None,
    labels_B: Tensor | MixedLabels | None,
    *,
    num_members: int = 1,
) -> Tensor:
    """The weight of each sample's teacher term, float32 [B], in [0, 1].

    logits_BC: any float dtype. uncertainty_B: float32 [B], the uncertainty named by `uncertainty_of`. labels_B: int64 [B], if
    `needs_labels`; of mixed samples the weights for both labels are averaged by their shares. num_members: M.
    Raises ConfigError for an unknown kind.
    """
    registered = _registered(kind)
    if isinstance(labels_B, MixedLabels):
        own_B = sample_weight(kind, logits_BC, uncertainty_B, labels_B.own, num_members=num_members)
        if not registered.needs_labels:
            return own_B
        other_B = sample_weight(kind, logits_BC, uncertainty_B, labels_B.other, num_members=num_members)
        return labels_B.share * own_B + (1 - labels_B.share) * other_B
    assert registered.uncertainty is None or uncertainty_B is not None, f"{kind} is computed from an uncertainty"
    assert not registered.needs_labels or labels_B is not None, f"{kind} is computed from the labels"
    empty = logits_BC.new_empty(0)
    inputs = WeightInputs(
        logits_BC=logits_BC,
        uncertainty_B=empty if uncertainty_B is None else uncertainty_B,
        labels_B=empty if labels_B is None else labels_B,
        num_members=num_members,
    )
    return registered.function(inputs)


@register_sample_weight("entropy", uncertainty="entropy")
def _entropy(inputs: WeightInputs) -> Tensor:
    """1 - H / ln C. Source: arXiv 2511.18826."""
    return entropy_weight(inputs.uncertainty_B, inputs.num_classes)


@register_sample_weight("inverse_entropy", uncertainty="entropy")
def _inverse_entropy(inputs: WeightInputs) -> Tensor:
    """H / ln C, the opposite sign: more weight for uncertain predictions. Source: Su et al., arXiv 2311.13621 (EA-KD)."""
    return (inputs.uncertainty_B / math.log(inputs.num_classes)).clamp(0.0, 1.0)


@register_sample_weight("max_probability")
def _max_probability(inputs: WeightInputs) -> Tensor:
    """max_c p_c, with p = softmax(logits) at temperature 1. Source: Hendrycks, Gimpel, arXiv 1610.02136."""
    return inputs.logits_BC.float().softmax(-1).amax(-1)


@register_sample_weight("margin")
def _margin(inputs: WeightInputs) -> Tensor:
    """p_1st - p_2nd. Source: Scheffer et al., "Active hidden Markov models", IDA 2001."""
    best_B2 = inputs.logits_BC.float().softmax(-1).topk(2, dim=-1).values
    return best_B2[:, 0] - best_B2[:, 1]


@register_sample_weight("correctness", uncertainty="entropy", needs_labels=True)
def _correctness(inputs: WeightInputs) -> Tensor:
    """1 - H / ln C if no class has a larger logit than the label, else 0."""
    label_logit_B = inputs.logits_BC.gather(1, inputs.labels_B[:, None])[:, 0]
    return entropy_weight(inputs.uncertainty_B, inputs.num_classes) * (label_logit_B >= inputs.logits_BC.amax(-1))


@register_sample_weight("mutual_information", uncertainty="mutual_information")
def _mutual_information(inputs: WeightInputs) -> Tensor:
    """1 - I / ln min(M, C), where the denominator is the largest possible I. Source: Houlsby et al., arXiv 1112.5745."""
    return (1.0 - inputs.uncertainty_B / math.log(min(inputs.num_members, inputs.num_classes))).clamp(0.0, 1.0)


@register_sample_weight("vacuity", uncertainty="vacuity")
def _vacuity(inputs: WeightInputs) -> Tensor:
    """1 - u. Source: Sensoy et al., arXiv 1806.01768."""
    return (1.0 - inputs.uncertainty_B).clamp(0.0, 1.0)


@register_sample_weight("constant")
def _constant(inputs: WeightInputs) -> Tensor:
    """1 for every sample: plain knowledge distillation."""
    return inputs.logits_BC.new_ones(len(inputs.logits_BC)).float()
