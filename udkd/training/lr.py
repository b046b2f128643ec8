"""Learning rate, view size and EMA rate as pure functions of step or epoch: nothing to save or restore."""

import math
from collections.abc import Sequence

from udkd.config.sections import StudentSection

SIZE_STEP_PX = 32
"""Views of a progressive run grow in steps of this: every size is compiled separately."""


def cosine(step: int, *, peak: float, warmup_steps: int, total_steps: int, end: float = 0.0) -> float:
    """Linear from 0 to `peak` over warmup_steps, then half a cosine to end * peak at total_steps.

    Source: Loshchilov and Hutter, SGDR (arXiv 1608.03983), equation 5 without restarts, evaluated at every step.
    """
    if step < warmup_steps:
        return _warmup(step, peak, warmup_steps)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return end * peak + 0.5 * (peak - end * peak) * (1.0 + math.cos(math.pi * progress))


def linear(step: int, *, peak: float, warmup_steps: int, total_steps: int, end: float = 0.0, stable_steps: int = 0) -> float:
    """Linear from 0 to `peak` over warmup_steps, `peak` for stable_steps, then linear to end * peak at total_steps.

    Source: with stable_steps, the warm-up, stable, decay (WSD) schedule of MiniCPM (arXiv 2404.06395), with a linear decay as
    in Haegele et al. (arXiv 2405.18392).
    """
    if step < warmup_steps:
        return _warmup(step, peak, warmup_steps)
    first = warmup_steps + stable_steps
    progress = max(0, step - first) / max(1, total_steps - first)
    return peak * (1.0 - (1.0 - end) * progress)


def stepwise(step: int, *, peak: float, warmup_steps: int, milestones: Sequence[int] = (), gamma: float = 1.0) -> float:
    """Linear from 0 to `peak` over warmup_steps, then `peak`, times gamma from each step in `milestones` on."""
    if step < warmup_steps:
        return _warmup(step, peak, warmup_steps)
    return peak * gamma ** sum(step >= milestone for milestone in milestones)


def learning_rate(student: StudentSection, step: int, *, peak: float, epochs: int, steps_per_epoch: int) -> float:
    """The learning rate of a student's schedule in step number `step` of its `epochs` epochs."""
    warmup_steps, total_steps = round(student.warmup_epochs * steps_per_epoch), epochs * steps_per_epoch
    if student.schedule in ("constant", "step"):
        milestones = [round(epoch * steps_per_epoch) for epoch in student.step_epochs]
        return stepwise(step, peak=peak, warmup_steps=warmup_steps, milestones=milestones, gamma=student.step_gamma)
    if student.schedule == "cosine":
        return cosine(step, peak=peak, warmup_steps=warmup_steps, total_steps=total_steps, end=student.lr_end)
    decay_steps = round(student.decay_epochs * steps_per_epoch) if student.schedule == "wsd" else total_steps - warmup_steps
    stable_steps = max(0, total_steps - warmup_steps - decay_steps)
    return linear(
        step, peak=peak, warmup_steps=warmup_steps, total_steps=total_steps, end=student.lr_end, stable_steps=stable_steps
    )


def _warmup(step: int, peak: float, warmup_steps: int) -> float:
    return peak * (step + 1) / warmup_steps


def progressive_px(epoch: int, *, epochs: int, first_px: int, last_px: int, until: float) -> int:
    """The side of an epoch's views: from first_px, in steps of SIZE_STEP_PX, to last_px at the fraction `until` of the epochs.

    Source: progressive resizing as ffcv-imagenet's rn50 configurations use it (get_resolution), which is fast.ai's.
    """
    if first_px == 0 or epoch >= until * epochs:
        return last_px
    grown = (last_px - first_px) * epoch / (until * epochs)
    return min(last_px, first_px + SIZE_STEP_PX * round(grown / SIZE_STEP_PX))


def ema_rate(step: int, decay: float) -> float:
    """How far an averaged weight moves towards the newest one after step `step`: 1 - decay, more at first.

    Source: TensorFlow's ExponentialMovingAverage with num_updates: decay min(d, (1 + n) / (10 + n)).
    """
    return 1.0 - min(decay, (1 + step) / (10 + step))
