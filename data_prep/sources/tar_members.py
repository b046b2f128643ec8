"""Lists the members of a tar by name and offset. Those of a file are read in place, those of a stream in passing."""

import os
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from udkd.data_prep.sources.byte_stream import ByteReader, ByteStream
from udkd.data_prep.sources.decompress import compression_of
from udkd.utils.errors import DataError, UserError

BLOCK = tarfile.BLOCKSIZE
PART = 1 << 20  # bytes of a member that are read at once
MAX_HEADER = 1 << 24  # bytes of a long name or of extended headers, which tarfile reads at once


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in a tar. name: its path, without empty and `.` parts. offset: in the tar, bytes. size: bytes.

    crc: CRC-32 of the bytes. data: the bytes. Both are only set for members of a stream, data for those that were asked for.
    """

    name: str
    offset: int
    size: int
    crc: int = 0
    data: bytes = b""


def is_tar(path: Path) -> bool:
    """Whether `path` is a tar file, whose members can be read by offset: not a compressed one."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(BLOCK)
    return has_tar_magic(start) or (path.suffix.lower() == ".tar" and not compression_of(start))


def has_tar_magic(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a tar; tars from before 1988 have no such mark."""
    return start[257:262] == b"ustar"


def iter_members(path: Path, inside: TarMember | None = None) -> Iterator[TarMember]:
    """The regular files of a tar, in order. inside: read the tar that is this member of `path`.

    Concatenated archives are read one after the other, like `tar --ignore-zeros`. A hard link to a file in the same tar yields
    the bytes of that file. Raises DataError for a damaged tar, and for members that no image archive needs: absolute paths,
    `..`, other links, devices and sparse files.
    """
    what = str(path) if inside is None else f"{path}, {inside.name}"
    with open(path, "rb") as file:
        start, size = (inside.offset, inside.size) if inside else (0, os.fstat(file.fileno()).st_size)
        window = _FileWindow(file, start, size)
        targets: dict[str, TarMember] | None = None
        for header, offset in _headers(window, what):
            if header.isreg():
                yield TarMember(_normalized(header.name), window.start + offset, header.size)
            elif header.islnk():
                targets = _link_targets(window, what) if targets is None else targets
                target = targets.get(_normalized(header.linkname))
                if target is None:
                    raise _bad_link(header, what, "is not in the archive")
                yield TarMember(_normalized(header.name), target.offset, target.size)


def stream_members(stream: ByteStream, reader: ByteReader, keep: Callable[[str, int], bool]) -> Iterator[TarMember]:
    """The regular files of a tar that is read as a stream, as by `iter_members`, with the CRC-32 of each.

    reader: of the stream, at its start. keep: called with name and size, whether to yield the bytes, too. A hard link yields
    its target, which must come before it; archives with links are read three times.
    """
    what = str(stream.location)
    targets: dict[str, TarMember] | None = None
    for header, offset in _headers(_StreamWindow(reader, 0), what):
        if header.isreg():
            yield _read_member(reader, header, offset, keep)
        elif header.islnk():
            targets = _stream_targets(stream, what, keep) if targets is None else targets
            target = targets.get(_normalized(header.linkname))
            if target is None or target.offset > offset:
                raise _bad_link(header, what, "is not in the archive" if target is None else "comes later in the stream")
            yield replace(target, name=_normalized(header.name))


def stream_names(reader: ByteReader, what: str) -> Iterator[str]:
    """The names of the files and the hard links in a tar that is read as a stream. what: the tar, for errors."""
    headers = (header for header, _ in _headers(_StreamWindow(reader, 0), what))
    return (_normalized(header.name) for header in headers if header.isreg() or header.islnk())


def _read_member(reader: ByteReader, header: tarfile.TarInfo, offset: int, keep: Callable[[str, int], bool]) -> TarMember:
    name, crc, parts, missing = _normalized(header.name), 0, [], header.size
    kept = keep(name, header.size)
    while missing and (part := reader.read(min(missing, PART))):
        crc = zlib.crc32(part, crc)
        missing -= len(part)
        if kept:
            parts.append(part)
    return TarMember(name, offset, header.size, crc, b"".join(parts))


def _stream_targets(stream: ByteStream, what: str, keep: Callable[[str, int], bool]) -> dict[str, TarMember]:
    """`_link_targets` for a stream."""
    with stream.reader() as reader:
        links = (header for header, _ in _headers(_StreamWindow(reader, 0), what) if header.islnk())
        linked = {_normalized(header.linkname) for header in links}
    with stream.reader() as reader:
        files = ((header, offset) for header, offset in _headers(_StreamWindow(reader, 0), what) if header.isreg())
        found = (_read_member(reader, header, offset, keep) for header, offset in files if _normalized(header.name) in linked)
        return {member.name: member for member in found}


def _bad_link(header: tarfile.TarInfo, what: str, fault: str) -> DataError:
    return DataError(
        f"{what} holds {header.name!r}, a hard link to {header.linkname!r}, which {fault}; "
        "expected regular files and folders; pack the images again with tar --hard-dereference"
    )


def _normalized(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _link_targets(window: "_FileWindow", what: str) -> dict[str, TarMember]:
    """The targets of an archive's hard links, by name. Takes two more passes, so it is called only for archives with links."""
    linked = {_normalized(header.linkname) for header, _ in _headers(window, what) if header.islnk()}
    files = ((_normalized(header.name), header, offset) for header, offset in _headers(window, what) if header.isreg())
    return {name: TarMember(name, window.start + offset, header.size) for name, header, offset in files if name in linked}


def _headers(file: "_FileWindow", what: str) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Yield and check every member of a tar and of those concatenated to it, with the offset of its bytes."""
    start: int | None = 0
    while start is not None:
        window = file.part(start)
        end = 0
        try:
            with tarfile.open(fileobj=window, mode="r:") as archive:  # type: ignore[call-overload]
                while (member := archive.next()) is not None:
                    _check(member, what)
                    # tarfile keeps all members otherwise: 130,000 of them take 200 MB.
                    archive.members = []
                    end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
                    yield member, start + member.offset_data
        except UserError:
            raise
        except (tarfile.TarError, ValueError, OverflowError) as error:  # the last two are raised for numbers in headers
            text = str(error).splitlines()[0][:200]
            if start:
                raise DataError(
                    f"{what} has other data after its end, at byte {start} ({text}); expected a tar, or concatenated tars; "
                    "truncate it there, or fetch the tar again"
                ) from None
            raise DataError(f"{what} is not a complete tar ({text}); expected an archive of images; fetch it again") from None
        # tarfile treats a truncated or overwritten header after the first member as the end, so look for the real end marker.
        window.seek(end)
        if end > window.size or window.read(BLOCK) != bytes(BLOCK):
            at = start + min(end, window.size)
            raise DataError(f"{what} is truncated or damaged at byte {at}; expected a complete tar; fetch it again")
        start = _next_data(file, start + end + BLOCK)


def _next_data(window: "_FileWindow", start: int) -> int | None:
    """Offset of the first block from `start` on that is not all zeros; None if only zeros follow."""
    window.seek(start)
    while data := window.read(PART):
        if (zeros := len(data) - len(data.lstrip(b"\0"))) < len(data):
            return start + zeros // BLOCK * BLOCK
        start += len(data)
    return None


def _check(member: tarfile.TarInfo, what: str) -> None:
    if member.name.startswith("/"):
        fault, remedy = "its path leaves the archive, as it is absolute", "pack the images again without -P"
    elif ".." in member.name.split("/"):
        fault, remedy = "its path leaves the archive", "pack the images again"
    elif member.issym():
        fault, remedy = f"it is a link to {member.linkname!r}", "pack the images again with tar --dereference"
    elif not (member.isreg() or member.isdir() or member.islnk()) or member.issparse():
        fault, remedy = "it is a device or a sparse file", "pack the images again"
    elif member.size < 0:
        fault, remedy = "its size is negative", "pack the images again"
    else:
        return
    raise DataError(f"{what} holds {member.name!r}: {fault}; expected regular files and folders; {remedy}")


def read_at(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes of a file from an offset; fewer if the file is shorter. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, min(size, os.fstat(descriptor).st_size), offset)
    finally:
        os.close(descriptor)


class _FileWindow:
    """A file object for a range of an open file, with the methods that tarfile needs."""

    def __init__(self, file: "BinaryIO | ByteReader", start: int, size: int) -> None:
        self._file = file
        self.start = start
        self._size = size
        self._position = 0

    @property
    def size(self) -> int:
        """The number of bytes in the window."""
        return self._size

    def part(self, start: int) -> "_FileWindow":
        """The rest of the window from `start` on."""
        return _FileWindow(self._file, self.start + start, self.size - start)

    def seek(self, position: int) -> None:
        self._position = position

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER:
            raise ValueError(f"a header of {size:,} bytes, the limit is {MAX_HEADER:,}")
        self._file.seek(self.start + self._position)
        data = self._file.read(max(0, min(size, self.size - self._position)))
        self._position += len(data)
        return data


class _StreamWindow(_FileWindow):
    """The bytes of a stream from an offset on. size: sys.maxsize or more until the end was reached."""

    def __init__(self, reader: ByteReader, start: int) -> None:
        super().__init__(reader, start, sys.maxsize)
        self._reader = reader

    @property
    def size(self) -> int:
        return self._reader.size - self.start

    def part(self, start: int) -> "_StreamWindow":
        return _StreamWindow(self._reader, self.start + start)
