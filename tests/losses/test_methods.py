"""Distillation methods, each against its paper's formula in NumPy float64 (loops where that is plainer), and its gradients."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.utils.slow_hash import GOLDEN, MASK, slow_mix
from udkd.losses.distill import distill
from udkd.losses.methods.attention import attention_transfer
from udkd.losses.methods.crd import (
    Embedding,
    contrastive_loss,
    count_draws,
    draw_negatives,
    initial_memory,
    log_normaliser,
    update_memory,
)
from udkd.losses.methods.dkd import dkd
from udkd.losses.methods.fitnets import hint_loss, regressor
from udkd.losses.methods.reviewkd import Fusion, Review, hierarchical_context, review_loss
from udkd.losses.methods.rkd import angle_term, distance_term
from udkd.losses.settings import LossSettings
from udkd.utils.device_rng import integers
from udkd.utils.rng import key

MUTUAL = LossSettings(alpha=1.0, beta=0.0, gamma=1.0, temperature=1.0, kl="forward")
"""Zhang et al., "Deep Mutual Learning", CVPR 2018, section 3.1: L_i = CE(z_i, y) + mean over j != i of KL(p_j || p_i)."""

F64 = NDArray[np.float64]
RNG = np.random.default_rng(6)


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.from_numpy(scale * RNG.standard_normal(shape))


def softmax(z: F64) -> F64:
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def numeric_gradient(function: Callable[[F64], float], x: F64, step: float = 1e-6) -> F64:
    """Central differences, element by element."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[index] += step
        behind[index] -= step
        gradient[index] = (function(ahead) - function(behind)) / (2 * step)
    return gradient


def gradient_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    return gradient


# --- deep mutual learning


@pytest.mark.parametrize("count", [2, 3])
def test_mutual_learning_is_a_setting_of_the_loss(count: int) -> None:
    logits = [normal(5, 7, scale=3) for _ in range(count)]
    labels = torch.tensor([0, 6, 2, 2, 3])
    p = [softmax(z.numpy()) for z in logits]
    wanted = 0.0
    for i in range(count):
        wanted += -np.log(p[i][np.arange(5), labels.numpy()]).mean()
        wanted += np.mean([(p[j] * (np.log(p[j]) - np.log(p[i]))).sum(1).mean() for j in range(count) if j != i])
    terms = distill(logits, labels, None, None, MUTUAL)
    assert float(terms.total) == pytest.approx(wanted, rel=1e-12)


# --- decoupled knowledge distillation


def slow_dkd(student: F64, teacher: F64, labels: NDArray[np.int64], target: float, others: float, t: float) -> float:
    losses = []
    for z_s, z_t, y in zip(student, teacher, labels, strict=True):
        p_s, p_t = softmax(z_s / t), softmax(z_t / t)
        tckd = p_t[y] * np.log(p_t[y] / p_s[y]) + (1 - p_t[y]) * np.log((1 - p_t[y]) / (1 - p_s[y]))
        hat_s, hat_t = (np.delete(p, y) / np.delete(p, y).sum() for p in (p_s, p_t))
        nckd = (hat_t * np.log(hat_t / hat_s)).sum()
        losses.append(t**2 * (target * tckd + others * nckd))
    return float(np.mean(losses))


@pytest.mark.parametrize(("target", "others", "t"), [(1.0, 8.0, 4.0), (0.5, 2.0, 1.0), (1.0, 0.0, 2.0)])
def test_dkd_follows_its_formula(target: float, others: float, t: float) -> None:
    student, teacher, labels = normal(6, 5, scale=2), normal(6, 5, scale=2), torch.tensor([0, 4, 1, 2, 3, 4])
    options = {"target": target, "others": others, "temperature": t}
    assert float(dkd(student, teacher, labels, **options)) == pytest.approx(
        slow_dkd(student.numpy(), teacher.numpy(), labels.numpy(), target, others, t), rel=1e-10
    )
    actual = gradient_of(lambda z: dkd(z, teacher, labels, **options), student)
    wanted = numeric_gradient(lambda z: slow_dkd(z, teacher.numpy(), labels.numpy(), target, others, t), student.numpy())
    np.testing.assert_allclose(actual.numpy(), wanted, atol=1e-7)


def test_dkd_with_equal_parts_is_plain_distillation() -> None:
    # Equation 5 of the paper: KD = TCKD + (1 - p_target) NCKD, so for one sample others = 1 - p_target gives KL(p_T || p_S).
    student, teacher, labels = normal(1, 9), normal(1, 9), torch.tensor([3])
    rest = 1 - float(torch.softmax(teacher, -1)[0, 3])
    plain = nn.functional.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="sum")
    assert float(dkd(student, teacher, labels, others=rest, temperature=1.0)) == pytest.approx(float(plain), rel=1e-12)


def test_dkd_stays_finite_and_precise_in_float32() -> None:
    student = normal(32, 100, scale=150).clamp(-500, 500)
    teacher = normal(32, 100, scale=150).clamp(-500, 500)
    teacher -= teacher.amax(1, keepdim=True)  # as a cache stores them
    labels = torch.arange(32)
    for t in (1.0, 4.0):
        exact, actual = (
            gradient_of(lambda z: dkd(z, teacher.to(z.dtype), labels, temperature=t), student.to(dtype))  # noqa: B023
            for dtype in (torch.float64, torch.float32)
        )
        assert actual.isfinite().all()
        torch.testing.assert_close(actual.double(), exact, rtol=1e-4, atol=2e-5 * float(exact.abs().max()))
    assert float(dkd(student, student, labels)) == 0
    assert not gradient_of(lambda z: dkd(z, z, labels), student).any()


# --- attention transfer


def slow_attention(student: F64, teacher: F64) -> float:
    total = 0.0
    for a_s, a_t in zip(student, teacher, strict=True):
        q_s, q_t = ((a**2).sum(0).ravel() for a in (a_s, a_t))
        total += ((q_s / np.linalg.norm(q_s) - q_t / np.linalg.norm(q_t)) ** 2).sum()
    return float(total / (len(student) * student.shape[2] * student.shape[3]))


def test_attention_transfer_follows_its_formula() -> None:
    student, teacher = normal(3, 2, 3, 4), normal(3, 5, 3, 4)
    assert float(attention_transfer(student, teacher)) == pytest.approx(
        slow_attention(student.numpy(), teacher.numpy()), rel=1e-12
    )
    actual = gradient_of(lambda x: attention_transfer(x, teacher), student)
    np.testing.assert_allclose(
        actual.numpy(), numeric_gradient(lambda x: slow_attention(x, teacher.numpy()), student.numpy()), atol=1e-8
    )


def test_maps_of_two_sizes_meet_at_the_smaller() -> None:
    student, teacher = normal(2, 3, 4, 4), normal(2, 6, 8, 8)
    small = teacher.view(2, 6, 4, 2, 4, 2).mean((3, 5))
    assert float(attention_transfer(student, teacher)) == pytest.approx(float(attention_transfer(student, small)), rel=1e-12)
    assert float(attention_transfer(teacher, student)) == pytest.approx(float(attention_transfer(small, student)), rel=1e-12)


def test_attention_of_a_zero_or_huge_map_is_finite() -> None:
    for scale in (0.0, 1e4):
        x = (normal(2, 2048, 7, 7) * scale).float()
        gradient = gradient_of(lambda z: attention_transfer(z, torch.ones(2, 8, 7, 7)), x)
        assert gradient.isfinite().all()


# --- FitNets


def test_hint_follows_its_formula() -> None:
    student, teacher = normal(2, 3, 2, 2), normal(2, 4, 2, 2)
    bridge = regressor(3, 4).double().eval()
    convolution, norm = bridge[0], bridge[1]
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2), norm.bias.uniform_(-1, 1), norm.running_mean.uniform_(-1, 1)
    plain = np.einsum("oi,bihw->bohw", convolution.weight[:, :, 0, 0].detach().numpy(), student.numpy())
    mean, var, weight, bias = (
        x.detach().numpy()[:, None, None] for x in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    wanted = np.maximum((plain - mean) / np.sqrt(var + norm.eps) * weight + bias, 0)
    loss = hint_loss(bridge(student), teacher)
    assert loss.item() == pytest.approx(((wanted - teacher.numpy()) ** 2).mean(), rel=1e-12)
    loss.backward()
    assert convolution.weight.grad.abs().sum() > 0, "the regressor learns"


# --- relational knowledge distillation


def huber(d: F64 | float) -> float:
    return 0.5 * d**2 if abs(d) <= 1 else abs(d) - 0.5


def slow_distance(student: F64, teacher: F64) -> float:
    pairs = list(itertools.permutations(range(len(student)), 2))
    d = [np.array([np.linalg.norm(e[i] - e[j]) for i, j in pairs]) for e in (student, teacher)]
    return float(np.mean([huber(a - b) for a, b in zip(d[0] / d[0].mean(), d[1] / d[1].mean(), strict=True)]))


def slow_angle(student: F64, teacher: F64) -> float:
    losses = []
    for i, j, k in itertools.permutations(range(len(student)), 3):
        cosines = []
        for e in (student, teacher):
            one, other = e[i] - e[j], e[k] - e[j]
            cosines.append(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
        losses.append(huber(cosines[0] - cosines[1]))
    return float(np.mean(losses))


@pytest.mark.parametrize(("fast", "slow"), [(distance_term, slow_distance), (angle_term, slow_angle)])
def test_relations_follow_their_formula(fast: Callable[[Tensor, Tensor], Tensor], slow: Callable[[F64, F64], float]) -> None:
    student, teacher = normal(6, 3), normal(6, 4) * torch.tensor([5.0, 1, 1, 1])
    assert float(fast(student, teacher)) == pytest.approx(slow(student.numpy(), teacher.numpy()), rel=1e-12)
    actual = gradient_of(lambda e: fast(e, teacher), student)
    np.testing.assert_allclose(actual.numpy(), numeric_gradient(lambda e: slow(e, teacher.numpy()), student.numpy()), atol=1e-8)


@pytest.mark.parametrize("term", [distance_term, angle_term])
def test_relations_of_equal_samples_are_finite(term: Callable[[Tensor, Tensor], Tensor]) -> None:
    teacher = normal(8, 16).float()
    twins = teacher.repeat_interleave(2, dim=0)[:8]
    for student in (twins, torch.zeros(8, 16), twins * 1e4, twins * 1e-6):
        assert gradient_of(lambda e: term(e, teacher), student).isfinite().all()
    assert float(term(7 * teacher, teacher)) == pytest.approx(0, abs=1e-10), "scale does not matter"


# --- contrastive representation distillation


def test_contrast_follows_its_formula() -> None:
    samples, t, k = 50, 0.07, 9
    positive, negative, z = normal(4).tanh(), normal(4, k).tanh(), 2.5
    score = [np.exp(x.numpy() / t) / z for x in (positive, negative)]
    h_positive, h_negative = (s / (s + k / samples) for s in score)
    wanted = -(np.log(h_positive) + np.log(1 - h_negative).sum(1)).mean()
    log_z = torch.tensor(math.log(z))
    once = torch.ones(4, k)
    options = {"negatives": k, "samples": samples, "temperature": t}
    actual = contrastive_loss(positive, negative, once, log_z, **options)
    assert float(actual) == pytest.approx(wanted, rel=1e-6)
    # d/ds of -log sigma(s/t - c) is -(1 - h)/t; of -log(1 - h) it is h/t.
    gradient = gradient_of(lambda s: contrastive_loss(s, negative, once, log_z, **options), positive)
    np.testing.assert_allclose(gradient.numpy(), -(1 - h_positive) / t / 4, rtol=1e-6)
    gradient = gradient_of(lambda s: contrastive_loss(positive, s, once, log_z, **options), negative)
    np.testing.assert_allclose(gradient.numpy(), h_negative / t / 4, rtol=1e-6)
    exact = math.log(samples * np.exp(negative.numpy() / t).mean())
    assert float(log_normaliser(negative, once, samples=samples, temperature=t)) == pytest.approx(exact, rel=1e-6)
    drawn = torch.tensor([[0, 3, 3], [1, 1, 1], [8, 0, 4], [2, 5, 2]])
    by_times = contrastive_loss(positive, negative, count_draws(drawn, k), log_z, **(options | {"negatives": 3}))
    by_hand = contrastive_loss(positive, negative.gather(1, drawn), torch.ones(4, 3), log_z, **(options | {"negatives": 3}))
    assert float(by_times) == pytest.approx(float(by_hand), rel=1e-12)
    estimates = [
        log_normaliser(negative, count_draws(drawn, k), samples=samples, temperature=t),
        log_normaliser(negative.gather(1, drawn), torch.ones(4, 3), samples=samples, temperature=t),
    ]
    assert float(estimates[0]) == pytest.approx(float(estimates[1]), rel=1e-6)


def test_contrast_stays_finite_at_a_tiny_temperature() -> None:
    s = torch.tensor([-1.0, 1.0])
    loss = contrastive_loss(s, s.repeat(2, 3), torch.ones(2, 6), torch.tensor(0.0), negatives=6, samples=9, temperature=1e-3)
    assert loss.item() == pytest.approx(500 + 3000, rel=1e-3)


def test_draws_on_the_device_are_splitmix64() -> None:
    keys = key(3, np.arange(5))
    below = np.array([1, 2, 10, 1000, 2**31])
    actual = integers(torch.from_numpy(keys.view(np.int64)), 4, torch.from_numpy(below))
    for row, (name, limit) in enumerate(zip(keys.tolist(), below.tolist(), strict=True)):
        for k in range(4):
            assert int(actual[row, k]) == limit * (slow_mix((name + k * GOLDEN) & MASK) >> 33) >> 31


def test_negatives_are_even_and_of_other_classes() -> None:
    labels = np.array([2, 0, 1, 1, 2, 2, 0, 1])  # of ids 0 to 7
    by_class = torch.from_numpy(np.argsort(labels, kind="stable"))
    first = torch.from_numpy(np.searchsorted(np.sort(labels), np.arange(4)))
    batch = torch.tensor([0, 1, 2])
    keys = torch.from_numpy(key(1, np.arange(3)).view(np.int64))
    drawn = draw_negatives(batch, first, by_class, keys, 6000).numpy()
    for label, row in zip(batch.tolist(), drawn, strict=True):
        ids, counts = np.unique(row, return_counts=True)
        assert ids.tolist() == np.flatnonzero(labels != label).tolist()
        assert abs(counts - 6000 / len(ids)).max() < 5 * math.sqrt(6000 / len(ids))
    again = draw_negatives(batch, first, by_class, keys, 6000).numpy()
    assert (again == drawn).all(), "a pure function of the keys"
    assert (drawn[0] != draw_negatives(batch, first, by_class, keys + 1, 6000).numpy()[0]).any()


def test_the_memory_is_seeded_and_updated_half_way() -> None:
    memory = initial_memory(10, 4, 7, 1)
    assert torch.equal(memory, initial_memory(10, 4, 7, 1))
    assert not torch.equal(memory, initial_memory(10, 4, 7, 2))
    torch.testing.assert_close(memory.norm(dim=1), torch.ones(10))
    before, new = memory.clone(), nn.functional.normalize(normal(2, 4).float(), dim=1)
    update_memory(memory, torch.tensor([3, 8]), new)
    halfway = 0.5 * before[[3, 8]] + 0.5 * new
    torch.testing.assert_close(memory[[3, 8]], halfway / halfway.norm(dim=1, keepdim=True))
    untouched = [0, 1, 2, 4, 5, 6, 7, 9]
    assert torch.equal(memory[untouched], before[untouched])


def test_embedding_is_linear_and_of_length_1() -> None:
    embedding, x = Embedding(5, 3).double(), normal(4, 5)
    plain = x.numpy() @ embedding.linear.weight.detach().numpy().T + embedding.linear.bias.detach().numpy()
    np.testing.assert_allclose(embedding(x).detach().numpy(), plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-12)


# --- knowledge review


def averaged(x: F64, side: int) -> F64:
    b, c, h, w = x.shape
    return np.asarray(x.reshape(b, c, side, h // side, side, w // side).mean((3, 5)))


@pytest.mark.parametrize(("side", "levels"), [(8, (4, 2, 1)), (4, (2, 1)), (1, ())])
def test_hierarchical_context_follows_its_formula(side: int, levels: tuple[int, ...]) -> None:
    student, teacher = normal(2, 3, side, side), normal(2, 3, side, side)
    total, count, counts = ((student - teacher) ** 2).mean().item(), 1.0, 1.0
    for level in levels:
        count /= 2
        counts += count
        total += count * ((averaged(student.numpy(), level) - averaged(teacher.numpy(), level)) ** 2).mean()
    assert float(hierarchical_context(student, teacher)) == pytest.approx(total / counts, rel=1e-12)


def normed(x: F64, norm: nn.Module) -> F64:
    """Batch norm of a batch in training mode."""
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    scale, shift = (v.detach().numpy()[:, None, None] for v in (norm.weight, norm.bias))
    return np.asarray((x - mean) / np.sqrt(var + norm.eps) * scale + shift)


def convolved(x: F64, convolution: nn.Module) -> F64:
    """A convolution with stride 1 that keeps the size, as a sum over the kernel's positions."""
    kernel = convolution.weight.detach().numpy()
    pad = kernel.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    h, w = x.shape[2:]
    result = sum(
        np.einsum("oi,bihw->bohw", kernel[:, :, i, j], padded[:, :, i : i + h, j : j + w])
        for i, j in np.ndindex(*kernel.shape[2:])
    )
    return np.asarray(result if convolution.bias is None else result + convolution.bias.detach().numpy()[:, None, None])


def slow_fusion(fusion: Fusion, stage: F64, deeper: F64 | None) -> tuple[F64, F64]:
    x = normed(convolved(stage, fusion.inner[0]), fusion.inner[1])
    if deeper is not None:
        factor = x.shape[2] // deeper.shape[2]
        y = deeper.repeat(factor, 2).repeat(factor, 3)
        gate = 1 / (1 + np.exp(-convolved(np.concatenate([x, y], 1), fusion.attention[0])))
        x = x * gate[:, :1] + y * gate[:, 1:]
    return normed(convolved(x, fusion.outer[0]), fusion.outer[1]), x


def test_review_follows_its_structure() -> None:
    student = [normal(2, 4, 8, 8), normal(2, 6, 4, 4), normal(2, 8, 2, 2)]
    teacher = [normal(2, 5, 8, 8), normal(2, 7, 4, 4), normal(2, 9, 2, 2)]
    connector = Review([4, 6, 8], [5, 7, 9]).double()
    residual: F64 | None = None
    wanted = 0.0
    maps = connector(student)
    for index in (2, 1, 0):
        compared, residual = slow_fusion(connector.fusions[index], student[index].numpy(), residual)
        np.testing.assert_allclose(maps[index].detach().numpy(), compared, atol=1e-10)
        wanted += float(hierarchical_context(torch.from_numpy(compared), teacher[index]))
    loss = review_loss(maps, teacher)
    assert loss.item() == pytest.approx(wanted, rel=1e-9)
    loss.backward()
    for name, parameter in connector.named_parameters():
        assert parameter.grad is not None, name
