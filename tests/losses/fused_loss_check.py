"""Run with TRITON_INTERPRET=1 in a new process: the fused loss against the oracle in float64, one line per case as JSON.

It imports the loss and not the trainer, which takes as long to import as half of the cases.
"""

import itertools
import json
import os
import sys

import torch

from udkd.losses.distill import constant_weights_3N, distill
from udkd.losses.settings import LossSettings


def case(  # type: ignore[no-untyped-def]
    students: int,
    classes: int,
    logit_scale: float,
    settings: LossSettings,
    *,
    weighted: bool,
    dtype: torch.dtype,
    factors: tuple[float, ...] = (),
):
    """factors: of each student's three weights."""
    generator = torch.Generator().manual_seed(classes)
    batch = 5

    def random(*shape: int) -> torch.Tensor:
        return (torch.rand(shape, generator=generator) * 2 - 1) * logit_scale

    values = [random(batch, classes).to(dtype) for _ in range(students)]
    teacher_BC = random(batch, classes).half()
    weight_B = torch.rand(batch, generator=generator) if weighted else None
    labels_B = torch.arange(batch) % classes
    from udkd.losses.fused import fused_loss

    ours = [value.clone().requires_grad_() for value in values]
    oracle = [value.double().requires_grad_() for value in values]
    weights_3N = constant_weights_3N(settings, students, torch.empty(0)) * torch.tensor(factors or 1.0)
    got = fused_loss(settings)(ours, labels_B, teacher_BC, weight_B, weights_3N)
    want = distill(oracle, labels_B, teacher_BC, weight_B, settings, weights_3N)
    (got.total * 3).backward()
    (want.total * 3).backward()
    terms = [(got.total, want.total), (got.hard, want.hard), (got.teacher, want.teacher), (got.peer, want.peer)]
    grads = [(a.grad, b.grad) for a, b in zip(ours, oracle, strict=True)]
    return {
        "value": max(error(a, b) for a, b in terms),
        "grad": max(error(a, b) for a, b in grads),
        "finite": all(bool(tensor.isfinite().all()) for pair in (*terms, *grads) for tensor in pair),
        "dtype": all(z.grad.dtype == dtype for z in ours),
    }


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """The greatest difference, relative to the greatest value."""
    return float((got.detach().double() - want.detach()).abs().max() / want.abs().max().clamp(min=1e-30))


def main() -> None:
    both = ("reverse", "forward")
    plain = LossSettings()
    for direction, logit_scale in itertools.product(both, (1e-3, 5.0, 500.0)):
        row = case(2, 100, logit_scale, LossSettings(kl=direction), weighted=True, dtype=torch.float32)
        print(json.dumps(row | {"of": f"{direction}, scale {logit_scale}"}))
    sizes = itertools.product((1, 2, 3), (100, 1000)) if os.environ.get("UDKD_LONG_TESTS") else ((1, 1000), (3, 1000))
    for direction, (students, classes) in itertools.product(both, sizes):
        row = case(students, classes, 500.0, LossSettings(kl=direction), weighted=students > 1, dtype=torch.float32)
        print(json.dumps(row | {"of": f"{direction}, {students} students, {classes} classes, scale 500"}))
    for students, classes in ((1, 7), (3, 10), (5, 129)):
        row = case(students, classes, 5.0, plain, weighted=False, dtype=torch.float32)
        print(json.dumps(row | {"of": f"{students} students, {classes} classes"}))
    for settings in (
        LossSettings(alpha=1, beta=0, gamma=0, label_smoothing=0.1),
        LossSettings(alpha=0, beta=0.7, gamma=0),
        LossSettings(alpha=0, beta=0, gamma=1, temperature=1.0),
        LossSettings(alpha=0.4, beta=0, gamma=0.2),
        LossSettings(alpha=0.3, beta=0.7, gamma=0, kl="forward"),
    ):
        print(json.dumps(case(2, 33, 5.0, settings, weighted=True, dtype=torch.float32) | {"of": str(settings)}))
    print(json.dumps(case(2, 100, 5.0, plain, weighted=True, dtype=torch.bfloat16) | {"of": "bfloat16"}))
    row = case(3, 33, 5.0, plain, weighted=True, dtype=torch.float32, factors=(0.5, 3.0, 0.0))
    print(json.dumps(row | {"of": "weights of each student"}))


if __name__ == "__main__":
    sys.exit(main())
