"""Groups of samples: tenths by entropy, and classes."""

import numpy as np
from numpy.typing import NDArray

TENTHS = 10


def tenths(entropy: NDArray[np.floating], ids: NDArray[np.integer], groups: int = TENTHS) -> list[NDArray[np.int64]]:
    """Rows in groups whose sizes differ by at most one, the highest entropy (the lowest weight) first.

    With fewer samples than groups, one group each; equal entropies are in the order of ids. Each int64 [k].
    """
    order = np.lexsort((ids, -entropy)).astype(np.int64)
    return list(np.array_split(order, min(groups, len(order))))


def by_class(labels: NDArray[np.integer], num_classes: int) -> list[NDArray[np.int64]]:
    """Rows of each class in ascending order, int64 [k] each; k = 0 for a class without samples."""
    order = np.argsort(labels, kind="stable").astype(np.int64)
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))[:-1]
    return list(np.split(order, ends))
