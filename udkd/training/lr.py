"""Learning rate, view size and EMA rate as pure functions of step or epoch: nothing to save or restore."""

import math

SIZE_STEP_PX = 32
"""Views of a progressive run grow in steps of this: every size is compiled separately."""


def cosine(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Linear from 0 to `peak` over warmup_steps, then half a cosine to 0 at total_steps.

    Source: Loshchilov and Hutter, SGDR (arXiv 1608.03983), equation 5 without restarts, evaluated at every step.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * peak * (1.0 + math.cos(math.pi * progress))


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
