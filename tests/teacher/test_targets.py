"""Packing: centred, exact in entropy, and no row depends on another."""

import math

import pytest
import torch

from udkd.losses.storage import Storage
from udkd.teacher.targets import pack


def test_entropy_is_of_the_unrounded_logits() -> None:
    logits = torch.randn(200, 100, generator=torch.Generator().manual_seed(0)) * 5
    packed = pack(logits)
    p = torch.softmax(logits.double(), dim=1)
    exact = -(p * p.log()).sum(1)
    assert packed.entropy.dtype == torch.float32
    torch.testing.assert_close(packed.entropy.double(), exact, rtol=2e-6, atol=2e-6)
    rounded = torch.softmax(packed.logits.double(), dim=1)
    assert (rounded - p).abs().max() < 1.2e-4
    assert packed.logits.dtype == torch.float16
    assert packed.logits.amax(1).eq(0).all()


def test_uniform_and_certain() -> None:
    packed = pack(torch.tensor([[7.0, 7.0, 7.0, 7.0], [0.0, -1e6, -1e6, -1e6]]))
    torch.testing.assert_close(packed.entropy, torch.tensor([math.log(4), 0.0]))
    assert packed.logits.isfinite().all()


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 64])
def test_a_row_does_not_depend_on_its_batch(batch: int) -> None:
    logits = torch.randn(192, 101, generator=torch.Generator().manual_seed(1)) * 8
    full = pack(logits)
    parts = [pack(part) for part in logits.split(batch)]
    assert torch.equal(torch.cat([part.logits for part in parts]), full.logits)
    assert torch.equal(torch.cat([part.entropy for part in parts]), full.entropy)


def test_float32_on_request() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(pack(logits, Storage(dtype="float32")).logits, logits - logits.amax(1, keepdim=True))
