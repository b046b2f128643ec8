"""A stream of bytes: a compressed or remote file, read once from its start to its end, and decompressed on the way."""

import contextlib
import io
import os
import sys
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from udkd.data_prep.sources.address import Address, Location
from udkd.data_prep.sources.connection import Connection, Identity, PassingError
from udkd.data_prep.sources.decompress import compression_of, decompress
from udkd.utils.errors import DataError
from udkd.utils.prefetch import prefetch

FIRST_BLOCK, BLOCK = 1 << 16, 1 << 22  # bytes; the first is small, as a file is often opened only to see what it is
DEPTH = 3  # blocks that are read ahead
RETRIES = 5  # without a new byte
FIRST_WAIT_S = 0.5  # doubled by each retry
JUMP = 1 << 24  # bytes; a new request is cheaper than reading more than this


class _LocalConnection:
    """A local file, as a connection."""

    ranges = True

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115, see close
            status = os.fstat(self._file.fileno())
            self._file.seek(start)
        except OSError as error:
            raise self._fault(error) from None
        self.position = start
        self.identity = Identity(size=status.st_size, tag=f"{status.st_ino} {status.st_mtime_ns}")

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            raise self._fault(error) from None

    def abort(self) -> None:
        pass

    def close(self) -> None:
        self._file.close()

    def _fault(self, error: OSError) -> DataError:
        return DataError(f"{self._path} cannot be read ({error.strerror}); expected a readable file; check it")


@dataclass(frozen=True)
class ByteStream:
    """The decompressed bytes of a file. Each reader starts at the beginning; a file that has changed since is refused."""

    location: Location
    _known: list[Identity] = field(default_factory=list)

    @property
    def size(self) -> int | None:
        """The number of bytes of the file, as stored; None if it is not known."""
        return self._known[0].size if self._known else None

    @property
    def tag(self) -> str:
        """What tells this version of the file from others: its ETag and size, or such."""
        return str(self._known[0]) if self._known else ""

    def reader(self) -> "ByteReader":
        """Read from the start. Close it after use."""
        return ByteReader(self)

    def connect(self, start: int) -> Connection:
        """Open the file at a byte. Raises PassingError, and DataError if it has changed."""
        known = self._known[0] if self._known else None
        connection: Connection
        if isinstance(self.location, Address):
            from udkd.data_prep.sources.remote import connect  # imports http and ssl, which workers do not need

            connection = connect(self.location, start, known)
        else:
            connection = _LocalConnection(self.location, start)
        if known is None:
            self._known.append(connection.identity)
        elif not known.is_same(connection.identity):
            connection.close()
            raise changed(self.location)
        return connection


def changed(location: Location, name: str = "") -> DataError:
    """The error for a source that is not what it was when it was listed. name: of the first image that differs."""
    return DataError(
        f"{location} changed while it was read{f' (at {name})' if name else ''}; expected a file that stays as it is; start "
        "again when nothing writes to it"
    )


class ByteReader:
    """Reads a ByteStream like a file. Seeks forward, and backward only into what the last `read` returned.

    size: number of decompressed bytes; sys.maxsize until the end was reached. stored: number of bytes of the file so far.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._stopped = threading.Event()
        self._blocks: Generator[bytes] | None = None
        self._connection: Connection | None = None
        self._block = memoryview(b"")
        self._position = 0
        self._last = b""
        self._jumps = False  # whether the file is not compressed, and its server can begin at any byte
        self.size = sys.maxsize
        self.stored = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading ahead."""
        self._stop()
        if self._blocks is not None:
            self._blocks.close()

    def _stop(self) -> None:
        self._stopped.set()
        if self._connection is not None:
            self._connection.abort()

    def tell(self) -> int:
        """The number of decompressed bytes before the next one."""
        return self._position

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end. Raises DataError."""
        parts = []
        while size > 0 and self._fill():
            part = self._block[:size]
            self._block = self._block[len(part) :]
            size -= len(part)
            self._position += len(part)
            parts.append(part)
        self._last = b"".join(parts)
        return self._last

    def seek(self, position: int) -> None:
        """Move to a byte, or to the end if there are fewer."""
        back = self._position - position
        if back > len(self._last):
            assert self._jumps, "the reader of a compressed stream cannot go back"
            self._start(position)
            return
        if back > 0:
            self._block = memoryview(self._last[-back:] + bytes(self._block))
            self._last, self._position = self._last[:-back], position
            return
        if self._blocks is None:
            self._fill()  # the first block tells whether it can jump
        stored = self._stream.size
        if -back > JUMP and self._jumps and (stored is None or position < stored):  # servers refuse to begin beyond the end
            self._start(position)
        self._last = b""
        while self._position < position and self._fill():
            passed = min(position - self._position, len(self._block))
            self._block = self._block[passed:]
            self._position += passed

    def seekable(self) -> "SeekableFile":
        """The reader as a file that goes anywhere. Raises DataError if the server cannot begin at any byte."""
        self._fill()
        size = self._stream.size
        if not self._jumps or size is None:
            raise DataError(
                f"{self._stream.location}: the server cannot begin at any byte; expected one that answers Range; download "
                "the file first"
            )
        return SeekableFile(self, size)

    def _fill(self) -> bool:
        """Whether there are more bytes, of which some are then in `_block`."""
        if self._blocks is None:
            self._start(0)
        assert self._blocks is not None
        while not self._block:
            block = next(self._blocks, None)
            if block is None:
                self.size = self._position
                return False
            self._block = memoryview(block)
        return True

    def _start(self, position: int) -> None:
        if self._blocks is not None:
            self.close()
            self._stopped = threading.Event()
        self._block, self._position, self.stored = memoryview(b""), position, position
        what = str(self._stream.location)
        stored = self._stored_blocks(position, self._stopped)
        if position:  # only of files that are not compressed
            self._blocks = prefetch(stored, DEPTH, f"read {what}", self._stop)
            return
        first = next(stored, b"")
        if first.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
            stored.close()
            raise DataError(f"{what} is a web page; expected a file; give the address that a browser downloads it from")
        kind = compression_of(first)
        self._jumps = not kind and self._connection is not None and self._connection.ranges
        blocks = _chained(first, stored)
        if kind and isinstance(self._stream.location, Address):
            blocks = prefetch(blocks, DEPTH, f"read {what}", self._stop)  # so that download and decompression overlap
        self._blocks = prefetch(decompress(blocks, kind, what), DEPTH, f"decompress {what}", self._stop)

    def _stored_blocks(self, start: int, stopped: threading.Event) -> Generator[bytes]:
        """The bytes of the file. After a fault that may pass they continue where they were."""
        position, failures, size = start, 0, FIRST_BLOCK
        location = self._stream.location
        while not stopped.is_set():
            try:
                with contextlib.closing(self._stream.connect(position)) as connection:
                    self._connection = connection
                    while connection.position < position:  # the server begins at the first byte
                        passed = len(connection.read(min(BLOCK, position - connection.position)))
                        connection.position += passed
                        if not passed:
                            raise PassingError(f"the connection ended at byte {connection.position:,}")
                    while data := connection.read(size):
                        position += len(data)
                        self.stored = position
                        failures, size = 0, min(2 * size, BLOCK)
                        yield data
                    total = connection.identity.size
                    if total is None or position >= total:
                        return
                    if not isinstance(location, Address):
                        raise changed(location)
                    raise PassingError(f"the connection ended at byte {position:,} of {total:,}")
            except PassingError as error:
                failures += 1
                if failures > RETRIES:
                    raise DataError(
                        f"{location} cannot be read beyond byte {position:,} ({error}, {RETRIES} retries); expected a server "
                        "that answers; start again later, or download the file first"
                    ) from None
                stopped.wait(max(error.wait_s, FIRST_WAIT_S * 2 ** (failures - 1)))


class SeekableFile(io.RawIOBase):
    """A ByteReader as a file for pyarrow. size: bytes."""

    def __init__(self, reader: ByteReader, size: int) -> None:
        self._reader, self._size = reader, size
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position, bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position. The next read moves there."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        self._reader.seek(self._position)
        data = self._reader.read(self._size - self._position if size < 0 else size)
        self._position += len(data)
        return data


def _chained(first: bytes, rest: Generator[bytes]) -> Generator[bytes]:
    """The first block and the rest, which is closed with this generator."""
    with contextlib.closing(rest):
        if first:
            yield first
        yield from rest
