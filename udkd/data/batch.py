"""Batch, what a backend delivers, and Backend, the interface of every backend."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of canvases, on the backend's device.

    ids:    int64 [B], sample ids of the dataset folder's split.
    canvas: uint8 [B, S, S, 3], RGB, the stored image in the top left corner, zeros around it.
    labels: int64 [B], class indices.
    """

    ids: Tensor
    canvas: Tensor
    labels: Tensor


class Backend(Protocol):
    """Decodes stored samples into canvases, deterministically.

    An error in a worker reaches the consumer within two seconds as a DataError with the sample's id and name.
    Leaving the iterator early leaks nothing.
    """

    @property
    def num_samples(self) -> int:
        """N, the rows of the split's manifest (excluded rows included: ids are 0 … N-1)."""

    def epoch(self, order: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """Deliver exactly `order` (int64 ids), in batches; the last one may be smaller."""

    def close(self) -> None:
        """Release threads, files and memory; may be called twice."""

    def describe(self) -> str:
        """The pixel class, such as "libjpeg islow, fancy upsampling": equal text guarantees equal bits."""
