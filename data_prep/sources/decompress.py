"""Decompresses a stream of gzip, bzip2, xz or zstd, block by block, in bounded memory."""

import bz2
import contextlib
import io
import lzma
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Protocol

from udkd.utils.errors import DataError

MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"} | {
    bytes((0x50 + n, 0x2A, 0x4D, 0x18)): "zstd"  # frames to be skipped, with which pzstd's files begin
    for n in range(16)
}
MAX_OUTPUT = 1 << 20  # bytes per block, as a few bytes can become gigabytes


class _Decompressor(Protocol):
    """Decompresses one member of a stream, like bz2.BZ2Decompressor."""

    def decompress(self, data: bytes, max_length: int) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    @property
    def needs_input(self) -> bool: ...


class _Gzip:
    """zlib's decompressor with the methods of the others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail


_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    "gzip": _Gzip,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
}


def compression_of(start: bytes) -> str:
    """`gzip`, `bzip2`, `xz` or `zstd` from the first bytes of a file; empty if it is none of them."""
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), "")


def decompress(blocks: Generator[bytes], kind: str, what: str) -> Generator[bytes]:
    """Decompress the blocks of a file, with all its members or frames. At its end, or after an error, `blocks` is closed.

    kind: of `compression_of`; empty to pass the blocks on. what: the file, for errors. Raises DataError for damaged data.
    """
    with contextlib.closing(blocks):
        yield from blocks if not kind else _zstd(blocks, what) if kind == "zstd" else _members(blocks, kind, what)


def _members(blocks: Iterator[bytes], kind: str, what: str) -> Iterator[bytes]:
    decompressor: _Decompressor | None = None
    position = 0
    for block in blocks:
        data = block
        position += len(block)
        while data or (decompressor is not None and not decompressor.needs_input):
            if decompressor is None:
                data = data.lstrip(b"\0")  # tapes and xz pad with zeros
                if not data:
                    break
                decompressor = _DECOMPRESSORS[kind]()
            try:
                output = decompressor.decompress(data, MAX_OUTPUT)
            except (zlib.error, OSError, lzma.LZMAError, EOFError) as error:
                raise DataError(
                    f"{what} is damaged: its {kind} data cannot be decompressed before byte {position:,} ({error}); expected "
                    "an intact file; fetch it again"
                ) from None
            data = b""
            if decompressor.eof:
                data, decompressor = decompressor.unused_data, None
            if output:
                yield output
    if decompressor is not None:
        raise _truncated(what, kind, position)


def _truncated(what: str, kind: str, position: int) -> DataError:
    return DataError(
        f"{what} is truncated: its {kind} data ends too early, at byte {position:,}; expected a complete file; fetch it again"
    )


class _Blocks(io.RawIOBase):
    """Blocks as a file, for pyarrow. position: bytes read. error: what reading a block raised."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")
        self.position = 0
        self.error: BaseException | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            while not self._rest:
                self._rest = memoryview(next(self._blocks))
        except StopIteration:
            return b""
        except BaseException as error:
            self.error = error
            raise
        data = bytes(self._rest[:size])
        self._rest = self._rest[size:]
        self.position += len(data)
        return data


def _zstd(blocks: Iterator[bytes], what: str) -> Iterator[bytes]:
    import pyarrow as pa

    file = _Blocks(blocks)
    try:
        with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as stream:
            while data := stream.read(MAX_OUTPUT):
                yield data
    except (pa.ArrowException, OSError) as error:
        if file.error is not None:
            raise file.error from None
        text = " ".join(str(error).split())[:200]
        if "truncated" in text.lower():
            raise _truncated(what, "zstd", file.position) from None
        raise DataError(
            f"{what} is damaged: its zstd data cannot be decompressed before byte {file.position:,} ({text}); expected an "
            "intact file; fetch it again"
        ) from None
