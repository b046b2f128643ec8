"""Agreement of classifiers: the samples on which they are correct or incorrect together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class AgreementCounts:
    """Sample counts by which of two classifiers is correct. same: the samples of `neither` with equal predictions."""

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
) -> AgreementCounts:
    """Compare the top-1 predictions of two classifiers. first, second, labels, among (the samples to count): [n]."""
    a, b = first == labels, second == labels
    return AgreementCounts(
        both=int((a & b & among).sum()),
        first=int((a & ~b & among).sum()),
        second=int((b & ~a & among).sum()),
        neither=int((~a & ~b & among).sum()),
        same=int((~a & (first == second) & among).sum()),
    )


def patterns(correct_SN: NDArray[np.bool_], among: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number of samples per pattern, int64 [2^S]: bit s of the index is set if classifier s is correct. correct_SN: [S, n]."""
    assert len(correct_SN) <= 16, "patterns of at most 16 classifiers"
    codes = (correct_SN[:, among].astype(np.int64) << np.arange(len(correct_SN))[:, None]).sum(axis=0)
    return np.bincount(codes, minlength=1 << len(correct_SN)).astype(np.int64)
