"""Where classifiers are right and wrong together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Samples by which of two classifiers is right. same: of `neither`, those of which both guess one class."""

    both: int
    first: int
    second: int
    neither: int
    same: int

    @property
    def samples(self) -> int:
        return self.both + self.first + self.second + self.neither


def agreement(
    first: NDArray[np.integer], second: NDArray[np.integer], labels: NDArray[np.integer], among: NDArray[np.bool_]
) -> Pair:
    """First guesses of two classifiers, labels, and which samples count: [n] each."""
    a, b = first == labels, second == labels
    return Pair(
        both=int((a & b & among).sum()),
        first=int((a & ~b & among).sum()),
        second=int((b & ~a & among).sum()),
        neither=int((~a & ~b & among).sum()),
        same=int((~a & (first == second) & among).sum()),
    )


def patterns(right_SN: NDArray[np.bool_], among: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Samples by who is right, int64 [2^S]: bit s of the index stands for classifier s. right_SN: bool [S, n]."""
    assert len(right_SN) <= 16, "patterns of at most 16 classifiers"
    codes = (right_SN[:, among].astype(np.int64) << np.arange(len(right_SN))[:, None]).sum(axis=0)
    return np.bincount(codes, minlength=1 << len(right_SN)).astype(np.int64)
