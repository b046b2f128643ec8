"""Learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math


def cosine(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Linear from 0 to `peak` over warmup_steps, then half a cosine to 0 at total_steps.

    Source: Loshchilov and Hutter, SGDR (arXiv 1608.03983), equation 5 without restarts, evaluated at every step.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * peak * (1.0 + math.cos(math.pi * progress))
