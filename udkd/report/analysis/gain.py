"""The difference in accuracy of two classifiers on the same samples."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from udkd.report.analysis.intervals import bootstrap, paired

GainVerdict = Literal["improves", "worsens", "no clear difference"]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A paired difference of accuracies, percentage points.

    gained, lost: numbers of samples on which only one or only the other is correct. points: 100 (gained - lost) / samples.
    low, high: the union of the bootstrap's interval and Bonett and Price's; [-100, 100] without samples.
    """

    samples: int
    gained: int
    lost: int
    points: float
    low: float
    high: float

    @property
    def verdict(self) -> GainVerdict:
        """A claim only where the interval excludes 0."""
        return "improves" if self.low > 0 else "worsens" if self.high < 0 else "no clear difference"


def gain(correct: NDArray[np.bool_], other: NDArray[np.bool_], seed: int = 0) -> Gain:
    """The gain of `correct` over `other`, bool [n] each; the bootstrap's draws depend on seed and counts alone."""
    samples, gained, lost = len(correct), int((correct & ~other).sum()), int((other & ~correct).sum())
    if samples == 0:
        return Gain(samples=0, gained=0, lost=0, points=0.0, low=-100.0, high=100.0)
    # The bootstrap's interval is too short where few samples differ: for three samples, all gained, it is [100, 100].
    intervals = [bootstrap(correct.astype(np.int64) - other.astype(np.int64), seed), paired(gained, lost, samples)]
    return Gain(
        samples=samples,
        gained=gained,
        lost=lost,
        points=100 * (gained - lost) / samples,
        low=100 * min(low for low, _ in intervals),
        high=100 * max(high for _, high in intervals),
    )
