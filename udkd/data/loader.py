"""Loads the batches of a split, epoch after epoch."""

from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.data.backends.registry import open_backend
from udkd.data.batch import Batch
from udkd.data.dataset import Split
from udkd.utils.environment import resolve_device
from udkd.utils.errors import ConfigError
from udkd.utils.rng import Stream, permutation


class Loader:
    """Batches of a split's samples except the excluded ones, reshuffled for each epoch: `for batch in loader.epoch(n)`.

    The order of epoch n is a pure function of (seed, n), the same as in `udkd train` with train.seed = seed, which drops a
    smaller last batch. It is also a context manager.

    Iterating over the loader itself gives epoch 0, then epoch 1 and so on, or the epoch that `set_epoch` chose: so it can take
    the place of a DataLoader in Lightning's Trainer, Accelerate and other loops. Every process delivers all batches.

    batch_size: samples per batch. shuffle: False keeps the order of the split's ids in every epoch. drop_last: leave out a
    smaller last batch. device: where batches are delivered, "auto" for a GPU if there is one. backend: a registered name, or
    "auto". workers: decoding threads of this process, None for one per core. arrange: reorders the ids of an epoch, given its
    number; `Augment.keep_pairs` puts samples that are mixed into one batch.
    Raises ConfigError for an unknown backend or device, and DataError if the split lacks the files that the backend reads.

        with udkd.Loader(data.train, batch_size=32) as loader:
            for batch in loader.epoch(0):
                batch.canvas  # uint8 [32, S, S, 3]
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        device: torch.device | str = "auto",
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        backend: str = "auto",
        workers: int | None = None,
        arrange: Callable[[NDArray[np.int64], int], NDArray[np.int64]] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected 1 or more; change it")
        if workers is not None and workers < 1:
            raise ConfigError(f"workers is {workers}; expected 1 or more, or None for one per core; change it")
        self._batches = len(split.ids) // batch_size if drop_last else -(-len(split.ids) // batch_size)
        self.split = split
        self.batch_size = batch_size
        self.device = resolve_device(device)
        self.seed = seed
        self.shuffle = shuffle
        self._backend = open_backend(backend, split, self.device, workers=workers or 0)
        self._arrange = arrange
        self._next_epoch = 0

    @property
    def pixel_class(self) -> str:
        """How the pixels are decoded, as a text that is part of a cache key."""
        return self._backend.describe()

    def __len__(self) -> int:
        """The number of batches per epoch."""
        return self._batches

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number`. Iterating raises DataError, naming the sample, if one cannot be decoded."""
        ids = self.split.ids
        order = permutation(ids, self.seed, Stream.SAMPLE_ORDER, number) if self.shuffle else ids
        if self._arrange is not None:
            order = self._arrange(order, number)
        return self._backend.epoch(order[: self._batches * self.batch_size], self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, as for a DistributedSampler; those after it count on from there."""
        if epoch < 0:
            raise ConfigError(f"epoch is {epoch}; expected 0 or more; change it")
        self._next_epoch = epoch

    batch_sampler = None
    """As in a DataLoader without one: Lightning reads it where there is a `sampler`."""

    @property
    def sampler(self) -> Self:
        """The loader, which sets the order: Lightning calls `loader.sampler.set_epoch(epoch)`, also when it resumes."""
        return self

    def __iter__(self) -> Iterator[Batch]:
        # At the first batch, not before: Lightning calls iter() and then set_epoch() when it resumes.
        number, self._next_epoch = self._next_epoch, self._next_epoch + 1
        yield from self.epoch(number)

    def close(self) -> None:
        """Release threads, files and memory; may be called twice."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
