"""How well a score separates correct from incorrect predictions."""

import numpy as np
from numpy.typing import NDArray

from udkd.utils.statistics import ranks


def separation(score: NDArray[np.floating], correct: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve: the probability that a correct sample scores higher than an incorrect one, ties count half.

    None where all are correct or all are incorrect.
    Source: Hanley, McNeil, "The meaning and use of the area under a receiver operating characteristic curve", 1982.
    """
    hits, misses = int(correct.sum()), int((~correct).sum())
    if hits == 0 or misses == 0:
        return None
    return float((ranks(score)[correct].sum() - hits * (hits + 1) / 2) / (hits * misses))
