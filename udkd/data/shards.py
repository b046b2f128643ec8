"""Writes and reads samples-%05d.tar and .idx: WebDataset shards with the index of DALI's wds2idx (v1.2)."""

import errno
import hashlib
import os
import stat
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from udkd.utils.errors import DataError
from udkd.utils.files import atomic_write, write_text

BLOCK = 512
INDEX_VERSION = "v1.2"
_HEADER = tarfile.TarInfo("000000000.jpg").tobuf(format=tarfile.USTAR_FORMAT)
_CONSTANT = _HEADER[13:124], _HEADER[135:148], _HEADER[154:]  # between the name, the size and the checksum
_CONSTANT_SUM = sum(map(sum, _CONSTANT)) + 7 * ord(" ")  # the checksum counts its own eight bytes as spaces, and one is


def shard_name(number: int) -> str:
    """The file name of a shard, without its suffix."""
    return f"samples-{number:05d}"


class ShardPacker:
    """Packs samples into a tar: header, JPEG, padding, header, label, padding, and so on.

    The bytes depend on the samples alone: no time, owner or file mode is stored.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._index: list[str] = []
        self._position = 0

    def add(self, sample_id: int, jpeg: bytes, label: int) -> int:
        """Append a sample and return the byte offset at which its JPEG starts."""
        text = str(label).encode()
        offset = self._member(f"{sample_id:09d}.jpg", jpeg)
        label_offset = self._member(f"{sample_id:09d}.cls", text)
        self._index.append(f"jpg {offset} {len(jpeg)} {sample_id:09d}.jpg cls {label_offset} {len(text)} {sample_id:09d}.cls\n")
        return offset

    def _member(self, name: str, data: bytes) -> int:
        member = b"".join((_member_header(name, len(data)), data, bytes(-len(data) % BLOCK)))
        self._file.write(member)
        offset = self._position + BLOCK
        self._position += len(member)
        return offset

    def finish(self) -> str:
        """Write the end-of-archive blocks and return the text of the index."""
        self._file.write(bytes(2 * BLOCK))
        return f"{INDEX_VERSION} {len(self._index)}\n{''.join(self._index)}"


def _member_header(name: str, size: int) -> bytes:
    """The header of a member as TarInfo.tobuf returns it, in 3 us instead of 32, which would limit the copying of shards."""
    first, second = name.encode(), b"%011o" % size
    checksum = b"%06o" % (_CONSTANT_SUM + sum(first) + sum(second))
    return b"".join((first, _CONSTANT[0], second, _CONSTANT[1], checksum, _CONSTANT[2]))


def shard_bytes(offset: int, size: int) -> int:
    """The size of a shard, bytes, from the offset and size of its last JPEG. Its label and the end take two blocks each."""
    return -(-(offset + size) // BLOCK) * BLOCK + 4 * BLOCK


class ShardWriter:
    """Writes one shard: `with ShardWriter(split_folder, number) as shard: offset = shard.add(id, jpeg, label)`.

    Both files get their final names when the block ends without an error, the index last. An empty shard leaves no file:
    wds2idx refuses empty archives.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.path = folder / f"{shard_name(number)}.tar"
        self._stack = ExitStack()
        self._empty = True

    def __enter__(self) -> "ShardWriter":
        self._packer = ShardPacker(self._stack.enter_context(atomic_write(self.path)))
        return self

    def add(self, sample_id: int, jpeg: bytes, label: int) -> int:
        """Append a sample and return the byte offset at which its JPEG starts."""
        self._empty = False
        return self._packer.add(sample_id, jpeg, label)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            index = self._packer.finish()
        if self._empty:
            self.path.unlink()
            self.path.with_suffix(".idx").unlink(missing_ok=True)
        else:
            write_text(self.path.with_suffix(".idx"), index)


class OpenShards:
    """Reads stored bytes. A shard is kept open until the block ends or MAX_OPEN others are opened after it.

    `with OpenShards(split_folder) as shards: data = shards.read(number, offset, size, what)`. Not thread-safe.
    """

    MAX_OPEN = 32  # a process may open 1,024 files, and each reading thread has its own OpenShards

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptors: dict[int, tuple[int, int]] = {}  # (descriptor, file size) by shard number

    def __enter__(self) -> "OpenShards":
        return self

    def __exit__(self, *_: object) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1][0])

    def read(self, number: int, offset: int, size: int, what: Callable[[], str]) -> bytes:
        """The unverified bytes of a sample; fewer if the shard is truncated. what: returns the name for the DataError."""
        try:
            descriptor, end = self._descriptors.get(number) or self._open(number)
            # At most what the file holds: pread allocates `size` bytes first.
            return os.pread(descriptor, max(0, min(size, end - offset)), offset)
        except OSError as error:
            path = self._folder / f"{shard_name(number)}.tar"
            raise DataError(
                f"{what()}: {path} cannot be read ({error.strerror}); expected a shard; restore it or convert again"
            ) from None

    def _open(self, number: int) -> tuple[int, int]:
        if len(self._descriptors) == self.MAX_OPEN:
            os.close(self._descriptors.pop(next(iter(self._descriptors)))[0])
        # Non-blocking: opening a FIFO of this name would wait for a writer.
        descriptor = os.open(f"{self._folder}{os.sep}{shard_name(number)}.tar", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is not a regular file")
        self._descriptors[number] = descriptor, status.st_size
        return self._descriptors[number]


def read_sample(folder: Path, number: int, offset: int, size: int, sha256: bytes, what: str) -> bytes:
    """The stored bytes of one sample in a split's folder, verified by their sha256. what: its name for the DataError."""
    with OpenShards(folder) as shards:
        data = shards.read(number, offset, size, lambda: what)
    if hashlib.sha256(data).digest() != sha256:
        raise damaged_sample(number, offset, size, len(data), what)
    return data


def damaged_sample(number: int, offset: int, size: int, num_read: int, what: str) -> DataError:
    """The error for stored bytes that do not match their checksum."""
    return DataError(
        f"{what}: the bytes in {shard_name(number)}.tar at {offset} do not match their checksum ({num_read} of {size} bytes "
        "read); expected what was stored; the shard is damaged, restore it or convert again"
    )
