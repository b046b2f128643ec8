"""What a derived format is to the converter."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from udkd.data.dataset import DatasetFolder, Split
from udkd.utils.progress import Observer


@dataclass(frozen=True, kw_only=True)
class DatasetSize:
    """What the size of a format depends on. samples: rows, all splits together. side: S, pixels.

    stored: bytes of all stored JPEGs; None before they are there.
    """

    samples: int
    side: int
    stored: int | None

    @staticmethod
    def of(dataset: DatasetFolder) -> "DatasetSize":
        """The volume of a folder whose shards are there."""
        splits = dataset.splits.values()
        return DatasetSize(
            samples=sum(split.num_samples for split in splits),
            side=dataset.side,
            stored=sum(int(split.size.sum()) for split in splits),
        )


@dataclass(frozen=True, kw_only=True)
class FormatWriter:
    """One format that is written from the shards, without the source.

    files: what it writes, in words. require: raises ConfigError where a package that it needs is not installed; called
    before any work. size_bytes: what it takes on disk; None while that is not known. size_line: the same in words.
    derive(dataset, workers, observer): discard what is there of it in each split, write it anew with progress, its
    description last; raises DataError and OSError. problems: what `verify` finds in a split that has it, a line each.
    """

    files: str
    require: Callable[[], None]
    size_bytes: Callable[[DatasetSize], int | None]
    size_line: Callable[[DatasetSize], str]
    derive: Callable[[DatasetFolder, int, Observer], None]
    problems: Callable[[Split], Iterator[str]]


def nothing_required() -> None:
    """For formats that need no package of their own."""
