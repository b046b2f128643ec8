"""How uncertain a teacher is about a sample, and the sample weight that follows.

Letters: B batch, C classes, M members (networks of an ensemble, or passes with dropout).
Every kind ends in the same two arrays, the logits of the mean prediction and one weight a sample, so training costs the same.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

WeightKind = Literal[
    "entropy", "inverse_entropy", "max_probability", "margin", "correctness", "mutual_information", "vacuity", "constant"
]
"""What a sample weight is computed from: `weight` has the formulas; constant is 1 for every sample."""

WeightControl = Literal["none", "equal_mean", "shuffled"]
"""Controls to compare the weights with: their mean for every sample, or the same values on other samples."""

UNCERTAINTY_OF: Mapping[str, str] = {
    "entropy": "entropy",
    "inverse_entropy": "entropy",
    "correctness": "entropy",
    "mutual_information": "mutual_information",
    "vacuity": "vacuity",
}
"""The uncertainty that a kind of weight is computed from. The others need only the logits."""


@dataclass(frozen=True, kw_only=True)
class SampleWeighting:
    """How uncertainties become weights.

    control, mean_one (weights divided by their mean) and seed (of "shuffled") need all samples of a view at once.
    """

    kind: WeightKind = "entropy"
    control: WeightControl = "none"
    mean_one: bool = False
    seed: int = 0

    @property
    def text(self) -> str:
        """For people: the kind, and what is done to it."""
        control = {"none": "", "equal_mean": ", everyone's mean", "shuffled": ", shuffled"}[self.control]
        return self.kind + control + (", mean 1" if self.mean_one else "")

    @property
    def needs_all(self) -> bool:
        """Whether a sample's weight depends on other samples."""
        return self.control != "none" or self.mean_one


def entropy(logits_BC: Tensor) -> Tensor:
    """Entropy of softmax(logits) at temperature 1, in nats: float32 [B], in [0, ln C].

    Source: arXiv 2511.18826, the uncertainty of the teacher's prediction. For a mean over members it is the total
    uncertainty (Depeweg et al., arXiv 1710.07283).
    """
    log_p_BC = torch.log_softmax(logits_BC.float(), dim=-1)
    return -(log_p_BC.exp() * log_p_BC).sum(-1)


def mean_log_probability(log_p_MBC: Tensor) -> Tensor:
    """Log of the members' mean probability, [B, C]: ln (1/M) sum_m p_m.

    Source: Lakshminarayanan et al., arXiv 1612.01474, equation of the ensemble's prediction.
    """
    return torch.logsumexp(log_p_MBC, dim=0) - math.log(len(log_p_MBC))


def mutual_information(log_p_MBC: Tensor) -> Tensor:
    """How much the members disagree: I = H[mean_m p_m] - mean_m H[p_m] in nats, float32 [B], in [0, ln min(M, C)].

    Computed as mean_m KL(p_m || mean p), the same number, which does not cancel where the members nearly agree.
    Source: Houlsby et al., arXiv 1112.5745 (BALD); for dropout Gal, Ghahramani, arXiv 1506.02142.
    """
    ratio_MBC = log_p_MBC - mean_log_probability(log_p_MBC)
    return (log_p_MBC.exp() * ratio_MBC).sum(-1).mean(0).clamp(min=0.0)


def vacuity(alpha_BC: Tensor) -> Tensor:
    """How little evidence there is: u = C / sum_c alpha_c, [B], in (0, 1]. Source: Sensoy et al., arXiv 1806.01768, eq. 1."""
    return alpha_BC.shape[-1] / alpha_BC.sum(-1)


def entropy_weight(entropy_B: Tensor, num_classes: int) -> Tensor:
    """The confidence weight w = 1 - H / ln C, clipped to [0, 1]: float32 [B].

    Source: arXiv 2511.18826; it multiplies the teacher term of a sample.
    """
    return (1.0 - entropy_B / math.log(num_classes)).clamp(0.0, 1.0)


def weight(
    kind: WeightKind,
    logits_BC: Tensor,
    uncertainty_B: Tensor | None,
    labels_B: Tensor | None,
    *,
    num_members: int = 1,
) -> Tensor:
    """The weight of each sample's teacher term, float32 [B], in [0, 1]. p is softmax(logits) at temperature 1.

    entropy             1 - H / ln C                      arXiv 2511.18826
    inverse_entropy     H / ln C, the opposite sign        Su et al., arXiv 2311.13621 (EA-KD: more for uncertain ones)
    max_probability     max_c p_c                          Hendrycks, Gimpel, arXiv 1610.02136
    margin              p_1st - p_2nd                      Scheffer et al., "Active hidden Markov models", IDA 2001
    correctness         1 - H / ln C where no class beats the label, else 0
    mutual_information  1 - I / ln min(M, C)               Houlsby et al., arXiv 1112.5745; the bound is attained
    vacuity             1 - u                              Sensoy et al., arXiv 1806.01768

    uncertainty_B: float32 [B], the one UNCERTAINTY_OF names; labels_B: int64 [B], for correctness alone.
    A NaN uncertainty (an excluded id) gives NaN. No sample depends on another.
    """
    num_classes = logits_BC.shape[-1]
    if kind == "max_probability":
        return torch.softmax(logits_BC.float(), dim=-1).amax(-1)
    if kind == "margin":
        best_B2 = torch.softmax(logits_BC.float(), dim=-1).topk(2, dim=-1).values
        return best_B2[:, 0] - best_B2[:, 1]
    assert uncertainty_B is not None, f"{kind} needs an uncertainty"
    if kind == "entropy":
        return entropy_weight(uncertainty_B, num_classes)
    if kind == "inverse_entropy":
        return (uncertainty_B / math.log(num_classes)).clamp(0.0, 1.0)
    if kind == "correctness":
        assert labels_B is not None, "correctness is checked against the labels"
        label_B = logits_BC.gather(1, labels_B[:, None])[:, 0]
        return entropy_weight(uncertainty_B, num_classes) * (label_B >= logits_BC.amax(-1))
    if kind == "mutual_information":
        return (1.0 - uncertainty_B / math.log(min(num_members, num_classes))).clamp(0.0, 1.0)
    assert kind == "vacuity", f"{kind}: expected one of {get_args(WeightKind)}"
    return (1.0 - uncertainty_B).clamp(0.0, 1.0)
