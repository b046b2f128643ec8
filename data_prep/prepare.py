"""The job of the converter's workers. Its imports are light, as every worker runs them."""

from collections.abc import Sequence
from dataclasses import dataclass

from udkd.data_prep.image import BadImage, PixelSettings, Prepared, prepare
from udkd.data_prep.sources.source import Entry, Source
from udkd.utils.errors import DataError


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to convert; its id is its index in the split.

    source: `class/name`, printable. source_index: index of the Source that reads `entry`.
    """

    label: int
    source: str
    source_index: int
    entry: Entry


Task = Sequence[tuple[Sample, bytes | None]]
"""Samples with their bytes, which are None if the worker is to read them."""


@dataclass(frozen=True)
class PrepareJob:
    """Reads images from their sources and prepares them. For an image that cannot be used, the result is the reason."""

    sources: Sequence[Source]
    settings: PixelSettings

    def __call__(self, task: Task) -> list[Prepared | str]:
        return [self._prepare(sample, data) for sample, data in task]

    def _prepare(self, sample: Sample, data: bytes | None) -> Prepared | str:
        source = self.sources[sample.source_index]
        try:
            data = source.read(sample.entry) if data is None else data
        except BadImage as error:
            return str(error)
        except OSError as error:
            raise DataError(
                f"{sample.source} in {source.path} cannot be read ({error.strerror}); expected a readable source; check it"
            ) from None
        if len(data) != sample.entry.size:
            raise DataError(
                f"{sample.source} in {source.path} has {len(data)} bytes, {sample.entry.size} when it was listed; "
                "expected a source that does not change; start again when nothing writes to it"
            )
        try:
            return prepare(data, self.settings)
        except BadImage as error:
            return str(error)
