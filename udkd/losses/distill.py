"""The loss of N students that learn from one teacher and from each other: the eager reference implementation.

Source: arXiv 2511.18826, the equation of the total loss (L_CE, L_KD weighted by 1 - H / ln C, and L_peer).
Letters: B batch, C classes, N students.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udkd.augment.mixing import MixedLabels
from udkd.losses.settings import KlKind, LossSettings
from udkd.utils.errors import ConfigError

EVIDENCE_LIMIT = 10.0
"""Larger logits give no more evidence: exp(10) is 22,026 observations of one class."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The loss and its terms, means over the batch.

    total: scalar with gradient, the sum over students.
    hard, teacher, peer: float32 [N], detached, of each student, before the weights alpha, beta and gamma. The teacher and peer
    terms include the temperature squared, the teacher term the sample weights. A term that is not computed is 0.
    method: float32 [N], detached, the term of loss.method before its weight; None without a method.
    """

    total: Tensor
    hard: Tensor
    teacher: Tensor
    peer: Tensor
    method: Tensor | None = None

    def plus(self, method_N: Tensor, weight_N: Tensor) -> "Terms":
        """Add the term of loss.method to the total, weighted for each student."""
        total = self.total + (weight_N * method_N).sum()
        return replace(self, total=total, method=method_N.detach().to(self.hard.dtype))

    def detached(self) -> "Terms":
        """The same without gradient, so that the graph can be freed."""
        return replace(self, total=self.total.detach())

    @classmethod
    def mean(cls, parts: Sequence["Terms"]) -> "Terms":
        """The terms of a batch from those of its equal parts, without gradient."""
        means = {name: torch.stack([getattr(part, name) for part in parts]).mean(0) for name in _TERMS}
        methods = [part.method for part in parts if part.method is not None]
        return cls(**means, method=torch.stack(methods).mean(0) if methods else None)


_TERMS = ("total", "hard", "teacher", "peer")

Labels = Tensor | MixedLabels
"""Class indices int64 [B], or those of mixed samples."""

Loss = Callable[[Sequence[Tensor], Labels, Tensor | None, Tensor | None, Tensor], Terms]
"""`distill` with its settings bound, in any implementation. Arguments: logits, labels, teacher, weight, weights_3N."""


def kl(log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """KL(p || q) of each row, [B], from log-probabilities [B, C].

    With d = log p - log q, sum p d equals sum (p d + q - p), as p and q both sum to 1. Every summand of the latter is >= 0, so
    a small divergence has an error of eps sum p |d| (the plain sum: eps sum p |log p|) and never turns negative. For |d| < 1
    the summand is p (d + expm1(-d)); for larger |d| expm1 could overflow, and p d + q - p is precise.
    """
    d_BC = log_p_BC - log_q_BC
    p_BC = log_p_BC.exp()
    near_BC = d_BC.clamp(-1.0, 1.0)
    summand_BC = torch.where(d_BC.abs() < 1.0, p_BC * (near_BC + torch.expm1(-near_BC)), p_BC * d_BC + (log_q_BC.exp() - p_BC))
    return summand_BC.sum(-1)


def divergence(student_BC: Tensor, other_BC: Tensor, kind: KlKind) -> Tensor:
    """KL(student || other) for "reverse", KL(other || student) for "forward": [B], from log-probabilities [B, C]."""
    return kl(student_BC, other_BC) if kind == "reverse" else kl(other_BC, student_BC)


def dirichlet(logits_BC: Tensor) -> Tensor:
    """The Dirichlet parameters from the logits z of an evidential network: alpha = 1 + exp(min(z, 10)), [B, C].

    Source: Sensoy et al., arXiv 1806.01768, alpha = evidence + 1. Their evidence is ReLU(z), or exp(z) in their published
    code. ReLU gives no gradient to samples without evidence (Pandey, Yu, arXiv 2306.11113): initially all, with 100 classes.
    """
    return 1.0 + logits_BC.clamp(max=EVIDENCE_LIMIT).exp()


def evidential(logits_BC: Tensor, labels_B: Tensor, regulariser_B: Tensor | None) -> Tensor:
    """The evidential loss of each sample, [B]: the expected cross-entropy under the Dirichlet, plus a regulariser.

    With alpha from `dirichlet` and its sum S: digamma(S) - digamma(alpha_y) + r KL(D(alpha~) || D(1)), where alpha~ is alpha
    without the label's evidence, and r is regulariser_B (1 if None).
    Source: Sensoy et al., arXiv 1806.01768, eq. 4 and the regulariser of section 4. Their experiments use eq. 5, a squared
    error, whose gradient at 100 classes starts 50 times smaller.
    """
    alpha_BC = dirichlet(logits_BC)
    label_B1 = labels_B[:, None]
    expected_B = torch.digamma(alpha_BC.sum(-1)) - torch.digamma(alpha_BC.gather(1, label_B1)[:, 0])
    other_BC = alpha_BC.scatter(1, label_B1, 1.0)
    total_B1 = other_BC.sum(-1, keepdim=True)
    kl_B = torch.lgamma(total_B1[:, 0]) - math.lgamma(logits_BC.shape[-1]) - torch.lgamma(other_BC).sum(-1)
    kl_B = kl_B + ((other_BC - 1.0) * (torch.digamma(other_BC) - torch.digamma(total_B1))).sum(-1)
    return expected_B + (kl_B if regulariser_B is None else regulariser_B.to(kl_B.dtype) * kl_B)


def cross_entropy(logits_BC: Tensor, labels: Labels, label_smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy, []; of mixed samples the mean of both labels' cross-entropies, weighted by their shares.

    Which is the cross-entropy with the mixed label distribution, as in the papers of MixUp and CutMix.
    """
    if not isinstance(labels, MixedLabels):
        return F.cross_entropy(logits_BC, labels, label_smoothing=label_smoothing)
    own_B, other_B = (
        F.cross_entropy(logits_BC, each_B, label_smoothing=label_smoothing, reduction="none")
        for each_B in (labels.own, labels.other)
    )
    share_B = labels.share.to(own_B.dtype)
    return (share_B * own_B + (1 - share_B) * other_B).mean()


def correct_share(predicted_B: Tensor, labels: Labels) -> Tensor:
    """How much of each label a predicted class is, float32 [B]: 0 or 1; of mixed samples the share of the predicted label."""
    if not isinstance(labels, MixedLabels):
        return (predicted_B == labels).float()
    return labels.share * (predicted_B == labels.own) + (1 - labels.share) * (predicted_B == labels.other)


def distill(
    logits: Sequence[Tensor],
    labels_B: Labels,
    teacher_BC: Tensor | None,
    weight_B: Tensor | None,
    settings: LossSettings,
    weights_3N: Tensor | None = None,
) -> Terms:
    """L_i = alpha CE(z_i, y) + beta w t^2 KL(q_i || p_T) + gamma t^2 KL(q_i || sg[q_j]): batch mean, sum over students i.

    logits:     N tensors [B, C] of any float dtype; converted to float32 first, except float64.
    labels_B:   int64 [B], or MixedLabels of mixed samples.
    teacher_BC: float16 or float32 [B, C], the teacher's logits up to a constant per row; None if beta is 0.
    weight_B:   float32 [B], weight of each sample's teacher term, or of the evidential loss's regulariser; None means 1.
    weights_3N: [3, N], alpha, beta and gamma of each student; None for the weights in `settings`. A term whose weight in
                `settings` is 0 is not computed.
    With more than two students the peer term is the mean over the peers. Peers, teacher and weight carry no gradient.
    """
    logits = [at_least_float32(z_BC) for z_BC in logits]
    zero = logits[0].new_zeros(())
    hard, teacher, peer = ([zero] * len(logits) for _ in range(3))
    scale = settings.temperature**2
    if settings.alpha and settings.label_loss == "evidential":
        assert isinstance(labels_B, Tensor), "the evidential loss has one label a sample"
        hard = [evidential(z_BC, labels_B, weight_B).mean() for z_BC in logits]
    elif settings.alpha:
        hard = [cross_entropy(z_BC, labels_B, settings.label_smoothing) for z_BC in logits]
    if settings.beta or settings.gamma:
        soft = [torch.log_softmax(z_BC / settings.temperature, dim=-1) for z_BC in logits]
    if settings.beta:
        assert teacher_BC is not None, "beta > 0 needs the teacher's logits"
        target_BC = torch.log_softmax(teacher_BC.to(logits[0].dtype) / settings.temperature, dim=-1).detach()
        w_B = 1.0 if weight_B is None else weight_B.to(logits[0].dtype).detach()
        teacher = [scale * (w_B * divergence(q_BC, target_BC, settings.kl)).mean() for q_BC in soft]
    if settings.gamma and len(logits) > 1:
        fixed = [q_BC.detach() for q_BC in soft]
        peer = [
            scale * torch.stack([divergence(q_BC, fixed[j], settings.kl).mean() for j in range(len(soft)) if j != i]).mean()
            for i, q_BC in enumerate(soft)
        ]
    if weights_3N is None:
        weights_3N = constant_weights_3N(settings, len(logits), zero)
    # Student by student, not as one product of [3, N] tensors: joining the terms first costs a compiled graph six kernels.
    columns = zip(weights_3N.to(zero.dtype).unbind(1), hard, teacher, peer, strict=True)
    total = torch.stack([w_3[0] * h + w_3[1] * t + w_3[2] * p for w_3, h, t, p in columns]).sum()
    return Terms(total=total, hard=_detached(hard), teacher=_detached(teacher), peer=_detached(peer))


def constant_weights_3N(settings: LossSettings, num_students: int, like: Tensor) -> Tensor:
    """Alpha, beta and gamma of each student, [3, N], with the dtype and device of `like`."""
    # Filled on the device: a copy from the host would make the host wait.
    return torch.stack([like.new_full((num_students,), weight) for weight in (settings.alpha, settings.beta, settings.gamma)])


def distill_with(settings: LossSettings) -> Loss:
    """`distill` with its settings bound."""

    def loss(
        logits: Sequence[Tensor], labels_B: Labels, teacher_BC: Tensor | None, weight_B: Tensor | None, weights_3N: Tensor
    ) -> Terms:
        return distill(logits, labels_B, teacher_BC, weight_B, settings, weights_3N)

    return loss


class Targets(Protocol):
    """What the loss needs from a teacher's targets: see udkd.teacher.target.TeacherTargets."""

    @property
    def logits(self) -> Tensor | None: ...

    @property
    def weight(self) -> Tensor | None: ...


class DistillationLoss(nn.Module):
    """`distill` as a module without parameters: `terms = criterion(logits, labels, targets)`. Arguments: see LossSettings.

        criterion = udkd.DistillationLoss(alpha=0.4, beta=0.4, gamma=0.2, temperature=4.0)
        terms = criterion([student(x) for student in students], batch.labels, teacher(batch, epoch))
        terms.total.backward()

    Raises ConfigError for invalid settings, and when called without the teacher's logits although beta > 0.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.4,
        beta: float = 0.4,
        gamma: float = 0.2,
        temperature: float = 4.0,
        kl: KlKind = "reverse",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if kl not in get_args(KlKind):
            raise ConfigError(f"kl is {kl!r}; expected {' or '.join(get_args(KlKind))}; change it")
        if not (min(alpha, beta, gamma) >= 0 and temperature > 0 and 0 <= label_smoothing < 1):
            raise ConfigError(
                f"alpha, beta and gamma are {alpha}, {beta} and {gamma}, temperature {temperature}, label_smoothing "
                f"{label_smoothing}; expected 0 or more, above 0, and 0 or more but below 1; change them"
            )
        self.settings = LossSettings(
            alpha=alpha, beta=beta, gamma=gamma, temperature=temperature, kl=kl, label_smoothing=label_smoothing
        )

    def forward(self, logits: Sequence[Tensor], labels: Labels, targets: Targets | None = None) -> Terms:
        """The loss of N students. logits: N tensors [B, C]. targets: None if beta is 0.

        labels: int64 [B], or what `Augment.labels` returns, where views are mixed.
        ConfigError: class indices beside a teacher's targets of mixed samples, unless alpha is 0.
        """
        if isinstance(logits, Tensor):
            raise ConfigError(f"logits are one tensor {list(logits.shape)}; expected a list, one per student; put it in a list")
        teacher_BC, weight_B = (None, None) if targets is None else (targets.logits, targets.weight)
        if self.settings.beta and teacher_BC is None:
            raise ConfigError("beta is above 0 and there are no teacher logits; expected targets; give them, or set beta to 0")
        if self.settings.alpha and isinstance(labels, Tensor) and getattr(targets, "mixed", False):
            raise ConfigError(
                "labels are class indices and the teacher's targets are those of mixed samples; expected the labels of both "
                "with their shares; give augment.labels(batch, epoch)"
            )
        return distill(logits, labels, teacher_BC, weight_B, self.settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in vars(self.settings).items())


def at_least_float32(z_BC: Tensor) -> Tensor:
    """Convert a tensor to float32, unless it is float64."""
    return z_BC if z_BC.dtype == torch.float64 else z_BC.float()


def _detached(values: list[Tensor]) -> Tensor:
    return torch.stack([value.detach() for value in values])
