"""A parquet file at an address, read row group by row group: once to list its rows, and once for the rows of each split."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from udkd.data_prep.sources.address import Location
from udkd.data_prep.sources.byte_stream import ByteStream
from udkd.data_prep.sources.fields import DETECT_FIELDS, Fields
from udkd.data_prep.sources.source import Entry, Listing


@dataclass(frozen=True)
class StreamedParquet:
    """Rows like those of Parquet, in one process. fields: columns chosen by the user."""

    stream: ByteStream
    fields: Fields = DETECT_FIELDS

    @property
    def path(self) -> Location:
        """The address that the user named."""
        return self.stream.location

    def __getstate__(self) -> dict[str, object]:
        """What a worker needs, which reads nothing: the name of the source."""
        return {"stream": ByteStream(self.stream.location)}

    def list(self) -> Listing:
        """All rows, in order. Raises DataError: see `Parquet.list`; also for a server that cannot begin at any byte."""
        from udkd.data_prep.sources.parquet_rows import list_rows

        return list_rows(self.path, [self.path], self.fields, self.stream)

    def read(self, entry: Entry) -> bytes:
        """Read one image, with its row group. See `read_in_order`."""
        return next(self.read_in_order([entry]))

    def read_in_order(self, entries: Iterable[Entry]) -> Iterator[bytes]:
        """See StreamSource."""
        from udkd.data_prep.sources.parquet_rows import read_rows

        return read_rows(self.stream, (entry.offset for entry in entries), self.fields)
