"""What the converter needs to know about a derived format."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from udkd.data.dataset import DatasetFolder, Split
from udkd.utils.progress import Observer


@dataclass(frozen=True, kw_only=True)
class DatasetSize:
    """What the size of a format depends on. samples: rows of all splits. side: S, pixels.

    stored: bytes of all stored JPEGs; None before they are written.
    """

    samples: int
    side: int
    stored: int | None

    @staticmethod
    def of(dataset: DatasetFolder) -> "DatasetSize":
        """The size of a folder with its shards."""
        splits = dataset.splits.values()
        return DatasetSize(
            samples=sum(split.num_samples for split in splits),
            side=dataset.side,
            stored=sum(int(split.size.sum()) for split in splits),
        )


@dataclass(frozen=True, kw_only=True)
class FormatWriter:
    """Writes one format from the shards, without the source.

    files: text naming its files. require: called before any work; raises ConfigError if a package is missing.
    size_bytes: size on disk; None if it is not known yet. size_text: what precedes that size in messages.
    derive(dataset, workers, observer): replaces the format in each split, writing its description last; raises DataError and
    OSError. problems: what `verify` finds in a split with this format, one line each.
    """

    files: str
    require: Callable[[], None]
    size_bytes: Callable[[DatasetSize], int | None]
    size_text: Callable[[DatasetSize], str]
    derive: Callable[[DatasetFolder, int, Observer], None]
    problems: Callable[[Split], Iterator[str]]


def nothing_required() -> None:
    """The `require` of formats without optional packages."""
