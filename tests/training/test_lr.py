"""The learning rate: PyTorch's cosine, a pure function of the step."""

import math
import warnings

import pytest
import torch

from udkd.training.lr import cosine


@pytest.mark.parametrize("total", [1, 2, 7, 400])
def test_equals_pytorchs_cosine(total: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    for step in range(total + 1):
        assert cosine(step, peak=0.1, warmup_steps=0, total_steps=total) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12
        )
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.step()


@pytest.mark.parametrize(("warmup", "total"), [(1, 10), (5, 50), (10, 10), (20, 10)])
def test_warmup_rises_evenly_to_the_peak(warmup: int, total: int) -> None:
    rates = [cosine(step, peak=2.0, warmup_steps=warmup, total_steps=total) for step in range(total)]
    assert rates[: min(warmup, total)] == pytest.approx([2 * (n + 1) / warmup for n in range(min(warmup, total))])
    after = rates[warmup:]
    assert after == pytest.approx([1 + math.cos(math.pi * n / max(1, total - warmup)) for n in range(len(after))])
    assert all(0 < rate <= 2 for rate in rates)


def test_a_peak_of_zero_stays_zero() -> None:
    assert {cosine(step, peak=0.0, warmup_steps=2, total_steps=9) for step in range(9)} == {0.0}
