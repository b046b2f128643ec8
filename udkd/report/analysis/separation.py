"""How well a number tells right from wrong."""

import numpy as np
from numpy.typing import NDArray


def separation(score: NDArray[np.floating], correct: NDArray[np.bool_]) -> float | None:
    """The chance that a right sample scores higher than a wrong one, equal scores counted half: the area under the ROC curve.

    0.5 says nothing, 1 separates. None where all are right or all are wrong.
    Source: Hanley, McNeil, "The meaning and use of the area under a receiver operating characteristic curve", 1982.
    """
    hits, misses = int(correct.sum()), int((~correct).sum())
    if hits == 0 or misses == 0:
        return None
    _, kind, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2
    return float((rank[kind][correct].sum() - hits * (hits + 1) / 2) / (hits * misses))
