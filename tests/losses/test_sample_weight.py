"""Entropy and the weight that follows: known values, float64, clipped."""

import math

import numpy as np
import pytest
import torch

from udkd.losses.sample_weight import entropy, entropy_weight


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_known_values(classes: int) -> None:
    uniform = torch.full((1, classes), 7.0)
    certain = torch.full((1, classes), -1e4)
    certain[0, -1] = 1e4
    two = torch.full((1, classes), -1e4)
    two[0, :2] = 0
    h = entropy(torch.cat([uniform, certain, two]))
    torch.testing.assert_close(h, torch.tensor([math.log(classes), 0.0, math.log(2)]), rtol=1e-6, atol=1e-6)
    w = entropy_weight(h, classes)
    assert np.array_equal(entropy_weight(h.numpy(), classes), w.numpy()), "NumPy's are the same bits"
    torch.testing.assert_close(w, torch.tensor([0.0, 1.0, 1 - math.log(2) / math.log(classes)]), rtol=1e-6, atol=1e-6)
    assert ((w >= 0) & (w <= 1)).all(), "clipped: rounding may take H beyond ln C"


def test_equals_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (0.01, 1, 10, 300):
        z = torch.rand(500, 100, generator=generator) * size
        p = torch.softmax(z.double(), dim=1)
        exact = -torch.special.xlogy(p, p).sum(1)
        h = entropy(z)
        assert h.dtype == torch.float32
        torch.testing.assert_close(h.double(), exact, rtol=3e-6, atol=1e-6)
        torch.testing.assert_close(entropy_weight(h, 100).double(), 1 - exact / math.log(100), rtol=0, atol=3e-6)


def test_the_weight_is_clipped_and_falls_with_entropy() -> None:
    h = torch.tensor([-1e-7, 0.0, 1.0, 2.0, math.log(10), math.log(10) + 1e-6, 5.0])
    w = entropy_weight(h, 10)
    assert w[0] == w[1] == 1
    assert w[-1] == w[-2] == 0
    assert (w.diff() <= 0).all()


def test_low_precision_logits_are_raised_first() -> None:
    z = torch.tensor([[0.1, 2.3, -1.7, 0.0]])
    assert torch.equal(entropy(z.half()), entropy(z.half().float()))
    assert torch.equal(entropy(z.bfloat16()), entropy(z.bfloat16().float()))
    assert entropy(z.half()).dtype == torch.float32
