"""What the converter needs to know about a derived format."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from udkd.data.dataset import DatasetFolder, Split
from udkd.utils.progress import Observer


@dataclass(frozen=True, kw_only=True)
class DatasetSize:
    """What determines the size of a format. samples: number of rows in all splits. side: S, pixels.

    stored: total bytes of the stored JPEGs; None before they are written.
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

    files: a text that names its files. require: called before any work; raises ConfigError if a package is missing.
    size_bytes: the size on disk; None if it is not known yet. size_text: a text that precedes the size in messages.
    derive(dataset, workers, observer): replaces the format in each split and writes its description last; raises DataError and
    OSError. problems: checks a split that has this format and yields a line for each problem.
    """

    files: str
    require: Callable[[], None]
    size_bytes: Callable[[DatasetSize], int | None]
    size_text: Callable[[DatasetSize], str]
    derive: Callable[[DatasetFolder, int, Observer], None]
    problems: Callable[[Split], Iterator[str]]


def nothing_required() -> None:
    """The `require` of formats without optional packages."""
