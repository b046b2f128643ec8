"""By how much one classifier is more often right than another on the same samples."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from udkd.report.analysis.intervals import bootstrap, paired

Verdict = Literal["improves", "worsens", "no clear difference"]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A paired difference of accuracies, percentage points.

    samples: n; of none nothing is known. gained, lost: samples that only the one has right, only the other. points: their
    balance.
    low, high: the interval: as wide as the bootstrap's and Bonett and Price's together. The bootstrap alone is too short
    where few samples differ: of three that are all gained it knows no other outcome.
    """

    samples: int
    gained: int
    lost: int
    points: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """A claim only where the interval keeps clear of 0."""
        return "improves" if self.low > 0 else "worsens" if self.high < 0 else "no clear difference"


def gain(correct: NDArray[np.bool_], other: NDArray[np.bool_], seed: int = 0) -> Gain:
    """Of `correct` over `other`, bool [n] both, sample by sample; the bootstrap's draws follow from seed and counts alone."""
    samples, gained, lost = len(correct), int((correct & ~other).sum()), int((other & ~correct).sum())
    if samples == 0:
        return Gain(samples=0, gained=0, lost=0, points=0.0, low=-100.0, high=100.0)
    bounds = [bootstrap(correct.astype(np.int64) - other.astype(np.int64), seed), paired(gained, lost, samples)]
    return Gain(
        samples=samples,
        gained=gained,
        lost=lost,
        points=100 * (gained - lost) / samples,
        low=100 * min(low for low, _ in bounds),
        high=100 * max(high for _, high in bounds),
    )
