"""Loads the batches of a split, epoch after epoch."""

from collections.abc import Iterator
from typing import Self

import torch

from udkd.data.backends.registry import open_backend
from udkd.data.batch import Batch
from udkd.data.dataset import Split
from udkd.utils.environment import resolve_device
from udkd.utils.errors import ConfigError
from udkd.utils.rng import Stream, permutation


class Loader:
    """Batches of a split's samples except the excluded ones, reshuffled for each epoch: `for batch in loader.epoch(n)`.

    The order of epoch n is a pure function of (seed, n), the same as in `udkd train` with train.seed = seed. The last batch may
    be smaller. Iterating over the loader itself gives epoch 0, then epoch 1 and so on. It is also a context manager.

    batch_size: samples per batch. device: where batches are delivered, "auto" for a GPU if there is one.
    backend: a registered name, or "auto". workers: decoding threads, 0 for one per core.
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
        backend: str = "auto",
        workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected 1 or more; change it")
        self.split = split
        self.batch_size = batch_size
        self.device = resolve_device(device)
        self.seed = seed
        self._backend = open_backend(backend, split, self.device, workers=workers)
        self._next_epoch = 0

    @property
    def pixel_class(self) -> str:
        """How the pixels are decoded, as a text that is part of a cache key."""
        return self._backend.describe()

    def __len__(self) -> int:
        """The number of batches per epoch."""
        return -(-len(self.split.ids) // self.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number`. Iterating raises DataError, naming the sample, if one cannot be decoded."""
        order = permutation(self.split.ids, self.seed, Stream.SAMPLE_ORDER, number)
        return self._backend.epoch(order, self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        number, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.epoch(number)

    def close(self) -> None:
        """Release threads, files and memory; may be called twice."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
