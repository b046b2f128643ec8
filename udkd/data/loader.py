"""Loader: the batches of a split, epoch after epoch."""

from collections.abc import Iterator
from typing import Self

import torch

from udkd.data.backends.registry import open_backend
from udkd.data.batch import Batch
from udkd.data.dataset import Split
from udkd.utils.environment import find_device
from udkd.utils.errors import ConfigError
from udkd.utils.rng import Stream, permutation


class Loader:
    """Batches of a split's kept samples, in another order in every epoch: `for batch in loader.epoch(n)`.

    The order of epoch n is a pure function of (seed, n), and that of `udkd train` with train.seed = seed, which drops the last
    batch where it is smaller. Iterating over the loader itself gives epoch 0, then epoch 1 and so on. It is a context manager.

    batch_size: samples of a batch. shuffle: False gives the order of the split's ids in every epoch. drop_last: leave out a
    smaller last batch. device: where batches are delivered, "auto" for a GPU if there is one. backend: a registered name, or
    "auto". workers: decoding threads of this process, None for one per core.
    Raises ConfigError for an unknown backend or device, DataError where the split lacks what the backend reads.

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
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected 1 or more; change it")
        if workers is not None and workers < 1:
            raise ConfigError(f"workers is {workers}; expected 1 or more, or None for one per core; change it")
        self._batches = len(split.ids) // batch_size if drop_last else -(-len(split.ids) // batch_size)
        self.split = split
        self.batch_size = batch_size
        self.device = find_device(device)
        self.seed = seed
        self.shuffle = shuffle
        self._backend = open_backend(backend, split, self.device, workers=workers or 0)
        self._next_epoch = 0

    @property
    def pixel_class(self) -> str:
        """How the pixels are decoded, as the keys of caches name it."""
        return self._backend.describe()

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._batches

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number`. Raises DataError, naming the sample, where one cannot be decoded."""
        ids = self.split.ids
        order = permutation(ids, self.seed, Stream.SAMPLE_ORDER, number) if self.shuffle else ids
        return self._backend.epoch(order[: self._batches * self.batch_size], self.batch_size)

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
