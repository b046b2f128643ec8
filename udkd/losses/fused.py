# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""The loss of N students as one Triton kernel. A program reads a sample's logits, target and label, and writes the sample's
terms and the gradients of all students' logits.

It computes udkd.losses.distill.distill in float32. With p = softmax(z / t), log-probabilities l, d = l_i - l_j and
D = KL(p_i || p_j), the gradient dD/dz_i is p_i (d - D) / t for student || other, and (p_i - p_j) / t for other || student.
Letters: B batch, C classes, N students; K is C rounded up to a power of two.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from udkd.losses.distill import Labels, Loss, Terms
from udkd.losses.settings import LossSettings

_ROWS = 4  # hard, teacher, peer, and their weighted sum
_ELEMENTS_PER_WARP = 512


def fused_loss(settings: LossSettings) -> Loss:
    """`distill` with its settings bound. The backward pass only scales the gradients that the forward pass computed."""

    def loss(
        logits: Sequence[Tensor], labels_B: Labels, teacher_BC: Tensor | None, weight_B: Tensor | None, weights_3N: Tensor
    ) -> Terms:
        assert isinstance(labels_B, Tensor), "the fused loss has one label a sample"
        assert teacher_BC is not None or not settings.beta, "beta > 0 needs the teacher's logits"
        total, rows_4N = _FusedLoss.apply(settings, labels_B, teacher_BC, weight_B, weights_3N, *logits)
        return Terms(total=total, hard=rows_4N[0], teacher=rows_4N[1], peer=rows_4N[2])

    return loss


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        settings: LossSettings,
        labels_B: Tensor,
        teacher_BC: Tensor | None,
        weight_B: Tensor | None,
        weights_3N: Tensor,
        *logits: Tensor,
    ) -> tuple[Tensor, Tensor]:
        contiguous = [z_BC.contiguous() for z_BC in logits]
        rows_4NB, grads = _launch(settings, labels_B, teacher_BC, weight_B, weights_3N, contiguous)
        rows_4N = rows_4NB.mean(-1)
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(rows_4N)
        return rows_4N[_ROWS - 1].sum(), rows_4N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, None, *torch._foreach_mul(list(ctx.saved_tensors), grads[0])


def _launch(
    settings: LossSettings,
    labels_B: Tensor,
    teacher_BC: Tensor | None,
    weight_B: Tensor | None,
    weights_3N: Tensor,
    logits: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Run the kernel: the terms of each sample, float32 [4, N, B], and the gradients of the mean, in the logits' dtypes."""
    num_students, (batch, classes) = len(logits), logits[0].shape
    grads = [torch.empty_like(z_BC) for z_BC in logits]
    rows_4NB = torch.empty(_ROWS, num_students, batch, dtype=torch.float32, device=labels_B.device)
    assert weights_3N.dtype == torch.float32, f"weights_3N is {weights_3N.dtype}; expected float32"
    has_teacher = settings.beta != 0 and teacher_BC is not None
    block = triton.next_power_of_2(classes)
    _kernel[(batch,)](
        tuple(logits),
        tuple(grads),
        rows_4NB,
        labels_B,
        teacher_BC.contiguous() if has_teacher and teacher_BC is not None else rows_4NB,  # any pointer, as it is not read
        weight_B.contiguous() if has_teacher and weight_B is not None else rows_4NB,
        weights_3N.contiguous(),
        batch,
        classes,
        HARD=settings.alpha != 0,
        HAS_TEACHER=has_teacher,
        PEERS=settings.gamma != 0 and num_students > 1,
        TEMPERATURE=float(settings.temperature),
        SMOOTHING=float(settings.label_smoothing),
        WEIGHTED=has_teacher and weight_B is not None,
        STUDENT_FIRST=settings.kl == "reverse",
        N=num_students,
        K=block,
        num_warps=min(8, max(1, block // _ELEMENTS_PER_WARP)),
    )
    return rows_4NB, grads


@triton.jit
def _log_softmax(z_K, inside_K):  # no annotations: Triton compiles them too, and knows no `Any`
    shifted_K = z_K - tl.max(tl.where(inside_K, z_K, -float("inf")), 0)
    total = tl.sum(tl.where(inside_K, tl.exp(shifted_K), 0.0), 0)
    return shifted_K - tl.log(total)


@triton.jit
def _divergence_summand(log_p_K, log_q_K):
    """The summand p d + q - p with d = log p - log q, precise if it is small: see udkd.losses.distill.kl."""
    d_K = log_p_K - log_q_K
    p_K = tl.exp(log_p_K)
    near_K = tl.minimum(tl.maximum(d_K, -0.25), 0.25)
    # d + expm1(-d) = d^2 (1/2 - d (1/6 - d (1/24 - ...))): within 0.25 the term left out is below 1e-8 of the sum.
    series_K = 1.0 / 5040.0 - near_K * (1.0 / 40320.0)
    series_K = 1.0 / 720.0 - near_K * series_K
    series_K = 1.0 / 120.0 - near_K * series_K
    series_K = 1.0 / 24.0 - near_K * series_K
    series_K = 1.0 / 6.0 - near_K * series_K
    series_K = 0.5 - near_K * series_K
    return tl.where(tl.abs(d_K) < 0.25, p_K * near_K * near_K * series_K, p_K * d_K + (tl.exp(log_q_K) - p_K))


@triton.jit
def _kernel(
    logits,  # N pointers to [B, C]
    grads,  # N pointers to [B, C]
    rows_ptr,  # float32 [4, N, B]
    labels_ptr,  # int64 [B]
    teacher_ptr,  # [B, C]
    weight_ptr,  # float32 [B]
    weights_ptr,  # float32 [3, N]
    batch,
    classes,
    HARD: tl.constexpr,
    HAS_TEACHER: tl.constexpr,
    PEERS: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    SMOOTHING: tl.constexpr,
    WEIGHTED: tl.constexpr,
    STUDENT_FIRST: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """Each program computes one sample. A row has a few hundred bytes, so reading it again for a peer hits the L1 cache."""
    row = tl.program_id(0).to(tl.int64)
    class_K = tl.arange(0, K)
    inside_K = class_K < classes
    label = tl.load(labels_ptr + row)
    scale = TEMPERATURE * TEMPERATURE
    w = 1.0
    target_K = class_K.to(tl.float32)
    if HAS_TEACHER:
        teacher_K = tl.load(teacher_ptr + row * classes + class_K, mask=inside_K, other=0.0).to(tl.float32)
        target_K = _log_softmax(teacher_K / TEMPERATURE, inside_K)
        if WEIGHTED:
            w = tl.load(weight_ptr + row).to(tl.float32)
    for i in tl.static_range(N):
        z_K = tl.load(logits[i] + row * classes + class_K, mask=inside_K, other=0.0).to(tl.float32)
        grad_K = tl.zeros([K], tl.float32)
        alpha = tl.load(weights_ptr + i)
        beta = tl.load(weights_ptr + N + i)
        gamma = tl.load(weights_ptr + 2 * N + i)
        hard = 0.0
        teacher = 0.0
        peer = 0.0
        if HARD:
            log_p_K = _log_softmax(z_K, inside_K)
            goal_K = tl.where(class_K == label, 1.0 - SMOOTHING, 0.0) + SMOOTHING / classes
            hard = -tl.sum(tl.where(inside_K & (goal_K > 0.0), goal_K * log_p_K, 0.0), 0)
            grad_K += alpha * (tl.exp(log_p_K) - goal_K)
        if HAS_TEACHER or PEERS:
            soft_K = _log_softmax(z_K / TEMPERATURE, inside_K)
            p_K = tl.exp(soft_K)
            if HAS_TEACHER:
                if STUDENT_FIRST:
                    value = tl.sum(tl.where(inside_K, _divergence_summand(soft_K, target_K), 0.0), 0)
                    grad_K += beta * w * TEMPERATURE * p_K * (soft_K - target_K - value)
                else:
                    value = tl.sum(tl.where(inside_K, _divergence_summand(target_K, soft_K), 0.0), 0)
                    grad_K += beta * w * TEMPERATURE * (p_K - tl.exp(target_K))
                teacher = scale * w * value
            if PEERS:
                for j in tl.static_range(N):
                    if j != i:
                        y_K = tl.load(logits[j] + row * classes + class_K, mask=inside_K, other=0.0).to(tl.float32)
                        fixed_K = _log_softmax(y_K / TEMPERATURE, inside_K)
                        per_peer = 1.0 / (N - 1)
                        if STUDENT_FIRST:
                            value = tl.sum(tl.where(inside_K, _divergence_summand(soft_K, fixed_K), 0.0), 0)
                            grad_K += gamma * (per_peer * TEMPERATURE) * p_K * (soft_K - fixed_K - value)
                        else:
                            value = tl.sum(tl.where(inside_K, _divergence_summand(fixed_K, soft_K), 0.0), 0)
                            grad_K += gamma * (per_peer * TEMPERATURE) * (p_K - tl.exp(fixed_K))
                        peer += scale * per_peer * value
        tl.store(grads[i] + row * classes + class_K, (grad_K / batch).to(grads[i].dtype.element_ty), mask=inside_K)
        tl.store(rows_ptr + i * batch + row, hard)
        tl.store(rows_ptr + (N + i) * batch + row, teacher)
        tl.store(rows_ptr + (2 * N + i) * batch + row, peer)
        tl.store(rows_ptr + (3 * N + i) * batch + row, alpha * hard + beta * teacher + gamma * peer)
