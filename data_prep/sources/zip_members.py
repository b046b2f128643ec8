"""Lists the members of a zip by name and offset, and reads them in place.

The central directory is read as a stream, as the converter has its own compact listing: for 1.3 million members zipfile takes
840 MiB, this module 5 MiB and two thirds of the time. Layout: PKWARE's APPNOTE 6.3.
"""

import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from udkd.data.image_files import BadImage
from udkd.utils.errors import DataError

_END = struct.Struct(
    "<4s4H2LH"
)  # of the central directory: signature, disk, its disk, records here, records, size, offset, comment
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_RECORD = struct.Struct("<4s6H3L5H2L")  # of the central directory
_LOCAL = struct.Struct("<4s5H3L2H")  # before each member's bytes
_END_SIGNATURE, _END64_LOCATOR_SIGNATURE, _END64_SIGNATURE = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_RECORD_SIGNATURE, _LOCAL_SIGNATURE, _SPLIT_SIGNATURE = b"PK\x01\x02", b"PK\x03\x04", b"PK\x07\x08"
_MAX_COMMENT = 0xFFFF
_MAX_RECORD = _RECORD.size + 3 * 0xFFFF  # with its name, extra fields and comment
_ZIP64, _FULL, _MANY = 1, 0xFFFFFFFF, 0xFFFF  # an extra field, and the values that stand for those in it
_ENCRYPTED, _UTF8 = 0x1, 0x800
_STORED, _DEFLATED = 0, 8
_METHODS = {1: "shrink", 6: "implode", 9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd", 95: "xz", 99: "AES encryption"}
_FAT, _UNIX = 0, 3  # the system that packed a member
_LINK, _KIND = 0o120000, 0o170000
_WINDOW = 1 << 20
_REPACK = "unpack it and name the folder"
MAX_BYTES = 1 << 30  # of an image: 100 million pixels of 10 bytes


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A file in a zip. name: its path, without empty and `.` parts. offset: of its local header. size: of its content, bytes.

    crc32: of its content. method: of compression. encrypted: whether a password is needed.
    """

    name: str
    offset: int
    size: int
    crc32: int
    method: int
    encrypted: bool

    def check(self, path: Path) -> None:
        """Raise DataError if `read_member` cannot read it."""
        if self.encrypted or self.method == 99:
            raise DataError(f"{path} is encrypted; expected a zip without a password; {_REPACK}")
        if self.method not in (_STORED, _DEFLATED):
            kind = _METHODS.get(self.method, f"method {self.method}")
            raise DataError(f"{path} holds {self.name!r}, compressed with {kind}; expected stored or deflated files; {_REPACK}")


def is_zip(path: Path) -> bool:
    """Whether `path` is a file that is called .zip, or that begins as a zip and has no other suffix (.npz and .pt are zips)."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".zip":
        return True
    if path.suffix:
        return False
    with open(path, "rb") as file:
        return file.read(4) == _LOCAL_SIGNATURE


def iter_members(path: Path) -> Iterator[ZipMember]:
    """The files of a zip, in the order of its directory. Bytes before the zip, as in self-extracting ones, are passed over.

    Raises DataError for a damaged or truncated zip, a part of a split one, and members that no image archive needs: absolute
    paths, `..` and links.
    """
    with open(path, "rb") as file:
        start, left, shift = _directory(file, path)
        file.seek(start)
        window, position = b"", 0
        while left or position < len(window):
            if left and len(window) - position < _MAX_RECORD:
                chunk = file.read(min(_WINDOW, left))
                if not chunk:
                    raise _truncated(path)
                left -= len(chunk)
                window, position = window[position:] + chunk, 0
            member, position = _record(window, position, shift, path)
            if member is not None:
                yield member


def read_member(path: Path, offset: int, size: int, crc32: int) -> bytes:
    """The content of a member, checked. Raises OSError, and BadImage for a damaged one and one of more than MAX_BYTES."""
    if size > MAX_BYTES:
        raise BadImage(f"its zip declares {size:,} bytes for it, the limit is {MAX_BYTES:,}")
    with open(path, "rb", buffering=0) as file:
        header = os.pread(file.fileno(), _LOCAL.size, offset)
        if len(header) < _LOCAL.size or header[:4] != _LOCAL_SIGNATURE:
            raise BadImage("damaged in its zip: no header where its directory says")
        _, _, _, method, _, _, _, _, _, name_bytes, extra_bytes = _LOCAL.unpack(header)
        start = offset + _LOCAL.size + name_bytes + extra_bytes
        data = os.pread(file.fileno(), size, start) if method == _STORED else _inflate(file.fileno(), start, size)
    if len(data) != size or zlib.crc32(data) != crc32:
        raise BadImage("damaged in its zip: its CRC-32 differs")
    return data


def _inflate(descriptor: int, start: int, size: int) -> bytes:
    """At most `size` + 1 bytes of a deflated stream. The directory's compressed size is not needed: the stream has an end."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    parts, left = [], size + 1
    try:
        while left and not inflate.eof:
            data = inflate.unconsumed_tail or os.pread(descriptor, min(size + 1024, _WINDOW), start)
            start += 0 if inflate.unconsumed_tail else len(data)
            if not data:
                break
            parts.append(inflate.decompress(data, left))
            left -= len(parts[-1])
    except zlib.error as error:
        raise BadImage(f"damaged in its zip: {str(error).splitlines()[0]}") from None
    return b"".join(parts)


def _directory(file: BinaryIO, path: Path) -> tuple[int, int, int]:
    """Offset and size of the central directory, and how far the zip begins after the file does."""
    total = os.fstat(file.fileno()).st_size
    tail_start = max(0, total - _END.size - _MAX_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(_END_SIGNATURE)
    if at < 0 or len(tail) - at < _END.size:
        file.seek(0)
        if file.read(4) not in (_LOCAL_SIGNATURE, _SPLIT_SIGNATURE):
            raise DataError(f"{path} is not a zip; expected one, as it is called so; fetch it again")
        raise _truncated(path)
    _, disk, first_disk, _, count, size, offset, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    locator = tail[at - _END64_LOCATOR.size : at] if at >= _END64_LOCATOR.size else b""
    if locator.startswith(_END64_LOCATOR_SIGNATURE):
        _, _, end64, disks = _END64_LOCATOR.unpack(locator)
        if disks > 1:
            raise _split(path)
        end -= _END64_LOCATOR.size + _END64.size
        if (record := _read_end64(file, end)) is None:  # bytes before the zip shift `end64`; extensible data does not
            end, record = end64, _read_end64(file, end64)
        if record is None:
            raise _truncated(path)
        _, _, _, _, disk, first_disk, _, count, size, offset = _END64.unpack(record)
    if disk or first_disk:
        raise _split(path)
    shift = end - size - offset
    if shift < 0 or size < count * _RECORD.size:
        raise _truncated(path)
    return offset + shift, size, shift


def _read_end64(file: BinaryIO, at: int) -> bytes | None:
    file.seek(at)
    record = file.read(_END64.size)
    return record if len(record) == _END64.size and record.startswith(_END64_SIGNATURE) else None


def _record(window: bytes, position: int, shift: int, path: Path) -> tuple[ZipMember | None, int]:
    """The member that a record describes, None for a folder, and where the next record starts."""
    if len(window) - position < _RECORD.size or not window.startswith(_RECORD_SIGNATURE, position):
        raise _truncated(path)
    _, made_by, _, flags, method, _, _, crc32, packed, size, *lengths, disk, _, attributes, offset = _RECORD.unpack_from(
        window, position
    )
    name_end = position + _RECORD.size + lengths[0]
    extra_end = name_end + lengths[1]
    if len(window) < extra_end + lengths[2]:
        raise _truncated(path)
    size, offset = _wide(window[name_end:extra_end], size, packed, offset)
    raw = window[name_end - lengths[0] : name_end].split(b"\0")[0]
    name = raw.decode("utf-8" if flags & _UTF8 else "cp437", "surrogateescape")
    if made_by >> 8 == _FAT and "/" not in name:
        name = name.replace("\\", "/")  # as .NET wrote them once; unzip does the same
    if disk not in (0, _MANY):
        raise _split(path)
    _check_name(name, made_by >> 8 == _UNIX and (attributes >> 16) & _KIND == _LINK, path)
    inside = "/".join(part for part in name.split("/") if part not in ("", "."))
    member = ZipMember(inside, offset + shift, size, crc32, method, bool(flags & _ENCRYPTED))
    return None if name.endswith("/") else member, extra_end + lengths[2]


def _check_name(name: str, is_link: bool, path: Path) -> None:
    if name.startswith("/") or re.match("[A-Za-z]:/", name):
        fault = "its path leaves the archive, as it is absolute"
    elif ".." in name.split("/"):
        fault = "its path leaves the archive"
    elif is_link:
        fault = "it is a link"
    else:
        return
    raise DataError(f"{path} holds {name!r}: {fault}; expected regular files and folders; pack the images again")


def _wide(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int]:
    """The size and the offset of a member, from the zip64 extra field if they are too large for a record."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == _ZIP64:
            field = extra[at + 4 : at + 4 + length]
            values = iter(struct.unpack_from(f"<{len(field) // 8}Q", field))
            size, _, offset = (next(values, value) if value == _FULL else value for value in (size, packed, offset))
        at += 4 + length
    return size, offset


def _truncated(path: Path) -> DataError:
    return DataError(
        f"{path} is truncated or damaged: its directory, at the end, is incomplete; expected a whole zip; fetch it again"
    )


def _split(path: Path) -> DataError:
    return DataError(
        f"{path} is a part of a split zip; expected a whole one; join the parts with: zip -s 0 {path.name} --out whole.zip"
    )
