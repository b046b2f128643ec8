"""The loss: the oracle against float64 NumPy written from the formulas, values and gradients; compiled equal to eager."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from udkd.losses.distill import Terms, constant_weights_3N, distill, distill_with, divergence, kl
from udkd.losses.settings import KlKind, LossSettings
from udkd.utils.compile import compiled as compile_graph

F64 = NDArray[np.float64]
KL_KINDS: tuple[KlKind, ...] = ("reverse", "forward")


def softmax(z: F64) -> F64:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def log_softmax(z: F64) -> F64:
    shifted = z - z.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


class Paper:
    """L_i = α CE(z_i, y) + β w τ² KL(q_i^τ || p_T^τ) + γ τ² mean over j of KL(q_i^τ || sg[q_j^τ]), with its gradients by hand.

    d KL(q || p) / dz = q (log q - log p - KL) / τ      (student || teacher)
    d KL(p || q) / dz = (q - p) / τ                     (teacher || student)
    d CE / dz         = softmax(z) - ((1 - ε) onehot + ε / C)
    """

    def __init__(
        self, s: LossSettings, logits: Sequence[F64], y: NDArray[np.int64], teacher: F64 | None, w: F64 | None
    ) -> None:
        count = len(logits)
        batch, classes = logits[0].shape
        weight = np.ones(batch) if w is None else w
        aim = (1 - s.label_smoothing) * np.eye(classes)[y] + s.label_smoothing / classes
        soft = [log_softmax(z / s.temperature) for z in logits]
        self.hard, self.teacher, self.peer = np.zeros((3, count))
        self.gradients = [np.zeros_like(z) for z in logits]
        for i, z in enumerate(logits):
            if s.alpha:
                self.hard[i] = -(aim * log_softmax(z)).sum(axis=1).mean()
                self.gradients[i] += s.alpha * (softmax(z) - aim) / batch
            if s.beta:
                assert teacher is not None
                value, slope = self._kl(s, soft[i], log_softmax(teacher / s.temperature))
                self.teacher[i] = s.temperature**2 * (weight * value).mean()
                self.gradients[i] += s.beta * s.temperature**2 * weight[:, None] * slope / batch
            for j in range(count) if s.gamma else ():
                if j != i:
                    value, slope = self._kl(s, soft[i], soft[j])
                    self.peer[i] += s.temperature**2 * value.mean() / (count - 1)
                    self.gradients[i] += s.gamma * s.temperature**2 * slope / batch / (count - 1)
        self.total = (s.alpha * self.hard + s.beta * self.teacher + s.gamma * self.peer).sum()

    @staticmethod
    def _kl(s: LossSettings, log_q: F64, log_p: F64) -> tuple[F64, F64]:
        """The divergence per row, and its gradient by the student's logits."""
        q, p = np.exp(log_q), np.exp(log_p)
        if s.kl == "reverse":
            value = (q * (log_q - log_p)).sum(axis=1)
            return value, q * (log_q - log_p - value[:, None]) / s.temperature
        return (p * (log_p - log_q)).sum(axis=1), (q - p) / s.temperature


def inputs(students: int, batch: int = 7, classes: int = 11, size: float = 3.0, seed: int = 0) -> tuple[list[F64], ...]:
    """Students' logits, labels, the teacher's logits, weights in [0, 1]."""
    rng = np.random.default_rng([students, batch, classes, seed])
    logits = [rng.normal(0, size, (batch, classes)) for _ in range(students)]
    return logits, rng.integers(0, classes, batch), rng.normal(0, size, (batch, classes)), rng.random(batch)


def run(
    settings: LossSettings,
    logits: Sequence[F64],
    labels: NDArray[np.int64],
    teacher: F64 | None,
    weight: F64 | None,
    dtype: torch.dtype = torch.float64,
    loss: object = None,
) -> tuple[Terms, list[F64]]:
    """The product's loss and its gradients by every student's logits."""
    z = [torch.tensor(rows, dtype=dtype, requires_grad=True) for rows in logits]
    t, w = (None if value is None else torch.tensor(value, dtype=dtype) for value in (teacher, weight))
    weights_3N = constant_weights_3N(settings, len(z), z[0])
    terms = (loss or distill_with(settings))(z, torch.from_numpy(labels), t, w, weights_3N)  # type: ignore[operator]
    terms.total.backward()
    return terms, [rows.grad.double().numpy() for rows in z if rows.grad is not None]


def assert_same(terms: Terms, gradients: list[F64], paper: Paper, values: float, slopes: float) -> None:
    assert float(terms.total.detach()) == pytest.approx(paper.total, rel=values, abs=values)
    for name in ("hard", "teacher", "peer"):
        np.testing.assert_allclose(getattr(terms, name).double(), getattr(paper, name), rtol=values, atol=values, err_msg=name)
    for mine, theirs in zip(gradients, paper.gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=slopes, atol=slopes)


SETTINGS = [
    LossSettings(),
    LossSettings(kl="forward"),
    LossSettings(alpha=0.3, beta=0.7, gamma=0.0),
    LossSettings(alpha=1.0, beta=0.0, gamma=0.0),
    LossSettings(alpha=0.0, beta=1.0, gamma=0.0, temperature=1.0, kl="forward"),
    LossSettings(alpha=0.0, beta=0.0, gamma=1.0, temperature=0.7),
    LossSettings(alpha=0.5, beta=0.2, gamma=0.3, temperature=9.0, label_smoothing=0.1),
    LossSettings(alpha=0.5, beta=0.0, gamma=0.3, label_smoothing=0.9, kl="forward"),
]


@pytest.mark.parametrize(
    ("students", "settings"),
    [(count, each) for count in (1, 2, 3, 4) for each in SETTINGS if count > 1 or each.alpha + each.beta > 0],
    ids=str,
)
@pytest.mark.parametrize("weighted", [True, False])
def test_equals_the_formula_in_float64(settings: LossSettings, students: int, weighted: bool) -> None:
    logits, labels, teacher, weight = inputs(students)
    given = (logits, labels, teacher if settings.beta else None, weight if weighted else None)
    paper = Paper(settings, *given)
    assert_same(*run(settings, *given), paper, 1e-12, 1e-12)
    assert_same(*run(settings, *given, dtype=torch.float32), paper, 3e-6, 3e-6)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradients_are_those_of_the_values(settings: LossSettings) -> None:
    """gradcheck by finite differences. Peers are constants, so each student's logits change while the others' are fixed."""
    logits, labels, teacher, weight = inputs(3, batch=3, classes=4)
    fixed = [torch.from_numpy(z) for z in logits]
    for i in range(3):

        def loss_of_one(z: Tensor, i: int = i) -> Tensor:
            terms = distill(
                [*fixed[:i], z, *fixed[i + 1 :]],
                torch.from_numpy(labels),
                torch.from_numpy(teacher),
                torch.from_numpy(weight),
                settings,
            )
            weights = (settings.alpha, settings.beta, settings.gamma)
            student_loss = sum(k * term[i] for k, term in zip(weights, (terms.hard, terms.teacher, terms.peer), strict=True))
            # The value of student i's loss with the gradient of the total.
            return terms.total + (student_loss - terms.total).detach()

        assert torch.autograd.gradcheck(loss_of_one, (fixed[i].clone().requires_grad_(),))


@pytest.mark.parametrize("direction", KL_KINDS)
@pytest.mark.parametrize("size", [1e-4, 30.0, 500.0])
def test_extreme_logits(direction: KlKind, size: float) -> None:
    """In float32, logits to +-500: relative errors of values 5e-6, of gradients 1e-6 and 2e-5; nothing non-finite."""
    settings = LossSettings(kl=direction)
    rng = np.random.default_rng(3)
    for classes in (2, 100):
        logits = [rng.uniform(-size, size, (64, classes)).astype(np.float32).astype(np.float64) for _ in range(2)]
        teacher = rng.uniform(-size, size, (64, classes)).astype(np.float32).astype(np.float64)
        logits[0][0], logits[1][0], teacher[0] = size, size, -size  # all equal
        logits[0][1], teacher[1] = teacher[1], logits[0][1]
        labels, weight = rng.integers(0, classes, 64), rng.random(64).astype(np.float32).astype(np.float64)
        terms, gradients = run(settings, logits, labels, teacher, weight, dtype=torch.float32)
        paper = Paper(settings, logits, labels, teacher, weight)
        assert all(np.isfinite(g).all() for g in gradients)
        assert float(terms.total.detach()) == pytest.approx(paper.total, rel=5e-6)
        for mine, theirs in zip(gradients, paper.gradients, strict=True):
            assert np.abs(mine - theirs).max() <= (2e-5 if direction == "reverse" else 1e-6) * max(1, np.abs(theirs).max())


def test_float16_lowest_logits_of_a_cache_give_finite_losses() -> None:
    """float16's lowest value, which stands for probability 0 in a cache, gives finite losses and gradients."""
    teacher = np.full((4, 6), float(torch.finfo(torch.float16).min))
    teacher[:, 2] = 0
    for direction in KL_KINDS:
        logits, _, _, _ = inputs(2, batch=4, classes=6)
        terms, gradients = run(LossSettings(kl=direction), logits, np.arange(4), teacher, None, torch.float32)
        assert math.isfinite(float(terms.total.detach()))
        assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("direction", KL_KINDS)
def test_a_small_divergence_keeps_its_precision(direction: KlKind) -> None:
    """In float32, against the same numbers in float64: an error of eps sum p |d|; the plain sum's is eps sum p |log p|."""
    rng = np.random.default_rng(1)
    base = rng.normal(0, 2, (200, 50)).astype(np.float32)
    for size in (1e-1, 1e-3, 1e-5):
        moved = base + rng.normal(0, size, base.shape).astype(np.float32)
        one, other = (torch.log_softmax(torch.from_numpy(z), dim=-1) for z in (base, moved))
        p, q = (one, other) if direction == "reverse" else (other, one)
        d = p.double() - q.double()
        # Written so that nothing cancels in float64 either: d + expm1(-d) by its series.
        exact = (p.double().exp() * (d**2 / 2 - d**3 / 6 + d**4 / 24 - d**5 / 120 + d**6 / 720)).sum(-1)
        error = (divergence(one, other, direction).double() - exact).abs()
        assert (error <= 1.2e-7 * ((p.exp() * d.abs()).sum(-1) + exact)).all()
        plain = ((p.exp() * (p - q)).sum(-1).double() - exact).abs()
        assert error.mean() < plain.mean() / 10
        assert (divergence(one, other, direction) >= 0).all()
    assert kl(one, one).eq(0).all()


def test_kl_against_kl_div() -> None:
    """PyTorch's formula in float64, near and far from 0, across the change of formula at |d| = 1."""
    rng = np.random.default_rng(2)
    for size in (0.01, 1.0, 10.0, 200.0):
        p, q = (torch.log_softmax(torch.from_numpy(rng.normal(0, size, (300, 20))), dim=-1) for _ in range(2))
        theirs = F.kl_div(q, p, log_target=True, reduction="none").sum(-1)
        torch.testing.assert_close(kl(p, q), theirs, rtol=1e-12, atol=1e-15)
    d = torch.tensor([-1.0, 1.0, -1 + 1e-9, 1 - 1e-9, 0.0], dtype=torch.float64, requires_grad=True)
    log_p = torch.zeros(5, 1, dtype=torch.float64)
    value = kl(log_p, log_p - d[:, None])
    torch.testing.assert_close(value, d + torch.expm1(-d), rtol=1e-12, atol=1e-15)
    (slope,) = torch.autograd.grad(value.sum(), d)
    torch.testing.assert_close(slope, 1 - torch.exp(-d), rtol=1e-8, atol=1e-12)


def test_no_gradient_reaches_the_teacher_the_weight_or_peers() -> None:
    """Not to the teacher, not to the weight, not between peers: a student's gradient is that of its loss alone."""
    logits, labels, teacher, weight = inputs(3)
    z = [torch.from_numpy(rows).requires_grad_() for rows in logits]
    t, w = torch.from_numpy(teacher).requires_grad_(), torch.from_numpy(weight).requires_grad_()
    distill(z, torch.from_numpy(labels), t, w, LossSettings()).total.backward()
    assert t.grad is None
    assert w.grad is None
    alone = torch.from_numpy(logits[0]).requires_grad_()
    others = [torch.from_numpy(rows) for rows in logits[1:]]
    distill([alone, *others], torch.from_numpy(labels), t.detach(), w.detach(), LossSettings()).total.backward()
    assert torch.equal(z[0].grad, alone.grad)  # type: ignore[arg-type]


def test_terms_of_weight_zero_are_not_built() -> None:
    logits, labels, _, _ = inputs(2)
    z = [torch.from_numpy(rows).requires_grad_() for rows in logits]
    terms = distill(z, torch.from_numpy(labels), None, None, LossSettings(alpha=1, beta=0, gamma=0))
    assert terms.teacher.tolist() == terms.peer.tolist() == [0.0, 0.0]
    want = sum(F.cross_entropy(torch.from_numpy(rows), torch.from_numpy(labels)) for rows in logits)
    assert float(terms.total.detach()) == pytest.approx(float(want), rel=1e-12)  # type: ignore[arg-type]
    assert not terms.hard.requires_grad
    one = distill(z[:1], torch.from_numpy(labels), None, None, LossSettings(alpha=1, beta=0, gamma=5))
    assert one.peer.tolist() == [0.0], "a single student has no peers"


def test_weights_of_each_student() -> None:
    """Given for a step, they replace the settings'; gradients are scaled with them, terms are not."""
    logits, labels, teacher, weight = inputs(2)
    z = [torch.from_numpy(rows).requires_grad_() for rows in logits]
    given = (z, torch.from_numpy(labels), torch.from_numpy(teacher), torch.from_numpy(weight), LossSettings())
    plain = distill(*given)
    plain.total.backward()
    before = [rows.grad.clone() for rows in z if rows.grad is not None]
    for rows in z:
        rows.grad = None
    weights_3N = constant_weights_3N(LossSettings(), 2, z[0]) * torch.tensor([2.0, 0.5])
    terms = distill(*given, weights_3N)
    terms.total.backward()
    rows_3N = torch.stack([terms.hard, terms.teacher, terms.peer])
    assert torch.equal(rows_3N, torch.stack([plain.hard, plain.teacher, plain.peer]))
    assert float(terms.total.detach()) == pytest.approx(float((weights_3N * rows_3N).sum()), rel=1e-12)
    for factor, rows, slope in zip((2.0, 0.5), z, before, strict=True):
        assert torch.equal(rows.grad, factor * slope)  # type: ignore[arg-type]


def test_constant_added_to_a_row_changes_nothing() -> None:
    """The cache stores the teacher's logits up to a constant per row."""
    logits, labels, teacher, weight = inputs(2)
    one, _ = run(LossSettings(), logits, labels, teacher, weight)
    other, _ = run(LossSettings(), logits, labels, teacher - teacher.max(axis=1, keepdims=True), weight)
    assert float(one.total.detach()) == pytest.approx(float(other.total.detach()), rel=1e-12)


def test_low_precision_logits_are_raised_first() -> None:
    logits, labels, teacher, weight = inputs(2)
    low = [torch.from_numpy(rows).bfloat16() for rows in logits]
    half = torch.from_numpy(teacher).half()
    given = (torch.from_numpy(labels), half, torch.from_numpy(weight).float(), LossSettings())
    terms = distill(low, *given)
    assert terms.total.dtype == torch.float32
    assert torch.equal(terms.total, distill([z.float() for z in low], given[0], half.float(), *given[2:]).total)


@pytest.mark.parametrize(
    "settings",
    [LossSettings(kl="forward", label_smoothing=0.1), pytest.param(LossSettings(), marks=pytest.mark.long)],
    ids=str,
)
def test_compiled_equals_eager(settings: LossSettings) -> None:
    compiled = compile_graph(distill_with(settings))
    for seed, size in enumerate((1.0, 100.0)):
        logits, labels, teacher, weight = inputs(2, batch=16, classes=100, size=size, seed=seed)
        given = (logits, labels, np.float16(teacher).astype(np.float64), weight, torch.float32)
        terms, gradients = run(settings, *given)
        fast, slopes = run(settings, *given, loss=compiled)
        for name in ("total", "hard", "teacher", "peer"):
            torch.testing.assert_close(getattr(fast, name), getattr(terms, name), rtol=1e-6, atol=1e-6)
        for mine, theirs in zip(slopes, gradients, strict=True):
            assert np.abs(mine - theirs).max() <= 1e-6 * max(1, np.abs(theirs).max())
