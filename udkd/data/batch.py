"""The batch of canvases that every backend delivers, and the backends' common interface."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of canvases, on the backend's device.

    ids:    int64 [B], sample ids of the split.
    canvas: uint8 [B, S, S, 3], RGB, the stored image in the top left corner, zeros around it.
    labels: int64 [B], class indices.
    """

    ids: Tensor
    canvas: Tensor
    labels: Tensor

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Self:
        """The batch on another device. Lightning and Accelerate move batches with this method."""
        tensors = {name: value.to(device, non_blocking=non_blocking) for name, value in vars(self).items()}
        return replace(self, **tensors)

    def rows(self, chosen: slice) -> "Batch":
        """Some of the batch's samples."""
        return Batch(ids=self.ids[chosen], canvas=self.canvas[chosen], labels=self.labels[chosen])


class Backend(Protocol):
    """Decodes stored samples into canvases, deterministically.

    An error in a worker reaches the consumer within two seconds as a DataError with the sample's id and name.
    Stopping an iterator early leaks neither threads nor memory.
    """

    @property
    def num_samples(self) -> int:
        """N, the number of rows in the split's manifest, excluded ones included. Ids are 0 … N-1."""

    def epoch(self, order: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """Deliver the samples of `order` (int64 [n], ids), in this order, in batches; the last one may be smaller."""

    def close(self) -> None:
        """Release threads, files and memory; may be called twice."""

    def describe(self) -> str:
        """The pixel class, such as "libjpeg islow, fancy upsampling": equal text guarantees equal bits."""
