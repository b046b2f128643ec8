"""Every kind of weight and uncertainty from its definition, in float64; top-k rows rebuilt; the texts for both."""

import math

import numpy as np
import pytest
import torch

from udkd.losses.distill import dirichlet, evidential
from udkd.losses.estimator import Estimator
from udkd.losses.sample_weight import (
    SampleWeighting,
    entropy,
    mean_log_probability,
    mutual_information,
    sample_weight,
    uncertainty_of,
    vacuity,
)
from udkd.losses.storage import Storage, dense_logits
from udkd.teacher.targets import pack

B, C, M = 60, 11, 5


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 4


def softmax(z: torch.Tensor) -> np.ndarray:
    z64 = z.double().numpy()
    e = np.exp(z64 - z64.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy64(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p)).sum(-1)


def close(ours: torch.Tensor, theirs: np.ndarray, atol: float = 2e-6) -> None:
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.double().numpy(), theirs, rtol=2e-6, atol=atol)


def test_kinds_of_one_prediction() -> None:
    z, labels = logits(B, C), torch.arange(B) % C
    p, h = softmax(z), entropy(z)
    ordered = np.sort(p, -1)
    sure = 1 - entropy64(p) / math.log(C)
    close(h, entropy64(p))
    close(sample_weight("entropy", z, h, None), sure)
    close(sample_weight("inverse_entropy", z, h, None), 1 - sure)
    close(sample_weight("max_probability", z, None, None), ordered[:, -1])
    close(sample_weight("margin", z, None, None), ordered[:, -1] - ordered[:, -2])
    correct = p.argmax(-1) == labels.numpy()
    assert 0 < correct.sum() < B
    close(sample_weight("correctness", z, h, labels), sure * correct)


def test_members_in_float64() -> None:
    log_p = torch.log_softmax(logits(M, B, C, seed=1), -1)
    p = np.exp(log_p.double().numpy())
    mean = p.mean(0)
    information = entropy64(mean) - entropy64(p).mean(0)
    close(mean_log_probability(log_p), np.log(mean))
    close(entropy(mean_log_probability(log_p)), entropy64(mean))
    close(mutual_information(log_p), information)
    close(
        sample_weight("mutual_information", log_p[0], mutual_information(log_p), None, num_members=M),
        1 - information / math.log(M),
    )
    few = sample_weight("mutual_information", log_p[0], mutual_information(log_p), None, num_members=1000)
    close(few, 1 - information / math.log(C))


def test_members_that_agree_or_disagree() -> None:
    same = torch.log_softmax(logits(1, B, C), -1).expand(3, B, C)
    assert mutual_information(same).max() < 1e-6
    assert mutual_information(same + 0).min() >= 0
    against = torch.log_softmax(torch.eye(4)[:, None] * 60, -1)  # four members, each certain of another class
    torch.testing.assert_close(mutual_information(against), torch.tensor([math.log(4)]))
    assert sample_weight("mutual_information", against[0], mutual_information(against), None, num_members=4).item() < 1e-6


def test_evidence() -> None:
    z = logits(B, C, seed=2)
    alpha = 1 + np.exp(np.minimum(z.double().numpy(), 10))
    close(dirichlet(z) / dirichlet(z).sum(-1, keepdim=True), alpha / alpha.sum(-1, keepdims=True))
    close(vacuity(dirichlet(z)), C / alpha.sum(-1))
    close(sample_weight("vacuity", z, vacuity(dirichlet(z)), None), 1 - C / alpha.sum(-1))
    torch.testing.assert_close(vacuity(dirichlet(torch.full((1, C), -1e9))), torch.ones(1))  # no evidence at all
    np.testing.assert_allclose(
        softmax(pack(dirichlet(z).log()).logits.float()), alpha / alpha.sum(-1, keepdims=True), atol=1.2e-4
    )


def test_evidential_loss_by_integration() -> None:
    """The expected cross-entropy and the KL from the uniform Dirichlet, against torch.distributions and 10^5 draws."""
    torch.manual_seed(0)
    z = torch.randn(6, 4).double() * 2
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    alpha = dirichlet(z)
    draws = torch.distributions.Dirichlet(alpha).sample((100_000,))
    expected = -draws.gather(2, labels[None, :, None].expand(100_000, 6, 1)).log().mean(0)[:, 0]
    zero = torch.zeros(6).double()
    torch.testing.assert_close(evidential(z, labels, zero), expected, rtol=0.03, atol=0.01)
    others_BC = alpha.scatter(1, labels[:, None], 1.0)
    uniform = torch.distributions.Dirichlet(torch.ones(6, 4).double())
    divergence = torch.distributions.kl_divergence(torch.distributions.Dirichlet(others_BC), uniform)
    torch.testing.assert_close(evidential(z, labels, None) - evidential(z, labels, zero), divergence)
    torch.testing.assert_close(evidential(z, labels, zero + 0.3), evidential(z, labels, zero) + 0.3 * divergence)
    assert torch.autograd.gradcheck(lambda logits: evidential(logits, labels, None), z.requires_grad_())


def test_known_values() -> None:
    sure, unsure = torch.tensor([[0.0, -1e6, -1e6, -1e6]]), torch.zeros(1, 4)
    for kind, high, low in (("entropy", 1, 0), ("inverse_entropy", 0, 1), ("max_probability", 1, 0.25), ("margin", 1, 0)):
        for z, expected in ((sure, high), (unsure, low)):
            given = entropy(z) if uncertainty_of(kind) else None
            assert sample_weight(kind, z, given, None).item() == pytest.approx(expected, abs=1e-6), kind
    assert sample_weight("correctness", sure, entropy(sure), torch.tensor([0])).item() == 1
    assert sample_weight("correctness", sure, entropy(sure), torch.tensor([2])).item() == 0


@pytest.mark.parametrize("kind", ["entropy", "inverse_entropy", "correctness"])
def test_an_excluded_id_has_no_weight(kind: str) -> None:
    given = torch.tensor([math.nan])
    assert sample_weight(kind, torch.zeros(1, C), given, torch.tensor([0])).isnan().all()


def test_live_rows_and_cached_rows_have_the_same_weight() -> None:
    """No row depends on another: all rows at once, or in batches of any size."""
    packed = pack(logits(192, 101, seed=3))
    for kind in ("entropy", "inverse_entropy", "max_probability", "margin", "correctness"):
        given = packed.entropy if uncertainty_of(kind) else None
        labels = torch.arange(192) % 101
        full = sample_weight(kind, packed.logits, given, labels)
        for size in (1, 3, 64):
            parts = [
                sample_weight(kind, z, None if given is None else h, y)
                for z, h, y in zip(packed.logits.split(size), packed.entropy.split(size), labels.split(size), strict=True)
            ]
            assert torch.equal(torch.cat(parts), full), (kind, size)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("classes", "k"), [(1000, 32), (70_000, 8), (5, 4), (3, 1)])
def test_top_k(classes: int, k: int, dtype: str) -> None:
    z = logits(20, classes, seed=4)
    packed = pack(z, Storage(dtype=dtype, top_k=k))
    assert packed.classes is not None
    assert packed.tail is not None
    assert packed.logits.shape == packed.classes.shape == (20, k)
    p, tolerance = softmax(z), 1.5e-4 if dtype == "float16" else 1e-5
    # float32 sums of 70,000 terms, in as many lanes as the processor has: 6e-5 with AVX2, under 5e-5 with AVX-512.
    close(packed.entropy, entropy64(p), 4e-6 if classes < 70_000 else 2e-4)
    order = np.argsort(-z.numpy(), axis=1, kind="stable")
    assert np.array_equal(packed.classes.numpy(), order[:, :k])
    kept = np.take_along_axis(p, order[:, :k], 1)
    np.testing.assert_allclose(packed.tail.double().numpy(), 1 - kept.sum(1), atol=2e-6 if classes < 70_000 else 1e-5)
    full = softmax(packed.dense(classes))
    np.testing.assert_allclose(full.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(np.take_along_axis(full, order[:, :k], 1), kept, atol=tolerance)
    rest = np.take_along_axis(full, order[:, k:], 1)
    np.testing.assert_allclose(rest.sum(1), packed.tail.double().numpy(), atol=3e-6 if classes < 70_000 else 2e-5)
    assert np.ptp(rest, axis=1).max() < 1e-9


def test_top_k_without_a_tail() -> None:
    z = torch.full((1, 50), -1e5)
    z[0, 7] = 0
    packed = pack(z, Storage(top_k=3))
    full = packed.dense(50)
    assert full.isfinite().all()
    assert torch.softmax(full, -1)[0, 7] == 1


def test_of_equal_logits_the_lower_class_is_kept() -> None:
    packed = pack(torch.zeros(2, 9), Storage(top_k=3))
    assert packed.classes is not None
    assert packed.classes.tolist() == [[0, 1, 2]] * 2
    torch.testing.assert_close(torch.softmax(packed.dense(9), -1), torch.full((2, 9), 1 / 9))
    wide = dense_logits(packed.logits, packed.classes.to(torch.int32), packed.tail, 9)
    assert torch.equal(wide, packed.dense(9))


def test_texts_are_parsed_back() -> None:
    for estimator in (Estimator(), Estimator(kind="ensemble"), Estimator(kind="mc_dropout", mc_samples=8, p=0.15, seed=3)):
        assert Estimator.parse(estimator.text) == estimator
    for storage in (Storage(), Storage(dtype="float32"), Storage(top_k=32)):
        assert Storage.parse(storage.text) == storage
    assert Storage(top_k=32).text == "float16 top-32"
    assert SampleWeighting(kind="margin", control="shuffled", mean_one=True).text == "margin, shuffled, mean 1"
    for parse, bad in ((Estimator.parse, "mc_dropout"), (Storage.parse, "float16 top-0"), (Storage.parse, "int8")):
        with pytest.raises(ValueError, match=bad.split()[0]):
            parse(bad)
