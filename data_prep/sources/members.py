"""The members of a tar file, by name and offset: nothing is ever extracted."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from udkd.words.errors import DataError

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file in a tar. name: its path, without empty and `.` parts. offset: in the file on disk, bytes."""

    name: str
    offset: int
    size: int


def is_tar(path: Path) -> bool:
    """Whether `path` is a tar file. Raises DataError for a compressed one: what is in it cannot be read by offset."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(BLOCK)
    for magic, kind in COMPRESSED.items():
        if (start.startswith(magic) and ".tar" in path.name) or (start.startswith(magic) and path.suffix == ".tgz"):
            raise DataError(f"{path} is compressed ({kind}); expected a plain tar; decompress it first")
    return start[257:262] == b"ustar" or path.suffix == ".tar"


def members(path: Path, inside: Member | None = None) -> Iterator[Member]:
    """The plain files of a tar, in order; of a tar that is a member of another where `inside` names it.

    Raises DataError for a damaged tar and for members that no image archive needs: absolute paths, `..`, links, devices
    and sparse files are refused with the whole archive; one that holds any was made by mistake or in bad faith.
    """
    what = str(path) if inside is None else f"{path}, {inside.name}"
    with open(path, "rb") as file:
        window = _Window(file, inside.offset, inside.size) if inside else _Window(file, 0, os.fstat(file.fileno()).st_size)
        try:
            with tarfile.open(fileobj=window, mode="r:") as archive:  # type: ignore[call-overload]
                end = 0
                while (member := archive.next()) is not None:
                    _check(member, what)
                    # Members would pile up in memory: 130,000 of them take 200 MB.
                    archive.members = []
                    end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
                    if member.isreg():
                        name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
                        yield Member(name, window.start + member.offset_data, member.size)
        except (tarfile.TarError, ValueError, OverflowError) as error:  # the last two: of numbers in its headers
            text = str(error).splitlines()[0][:200]
            raise DataError(f"{what} is no whole tar ({text}); expected an archive of images; fetch it again") from None
        # `tarfile` takes a cut or overwritten header after the first member for the end, so look for the real end mark.
        window.seek(end)
        if end > window.size or window.read(BLOCK) != bytes(BLOCK):
            raise DataError(f"{what} is cut or damaged at byte {min(end, window.size)}; expected a whole tar; fetch it again")


def _check(member: tarfile.TarInfo, what: str) -> None:
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts:
        fault = "its path leaves the archive"
    elif not (member.isreg() or member.isdir()) or member.issparse():
        fault = "it is a link, a device or a sparse file"
    elif member.size < 0:
        fault = "its size is negative"
    else:
        return
    raise DataError(f"{what} holds {member.name!r}: {fault}; expected plain files and folders; pack the images anew")


def read_at(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a file by offset; fewer where it ends before. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, min(size, os.fstat(descriptor).st_size), offset)
    finally:
        os.close(descriptor)


class _Window:
    """A stretch of an open file, as a file of its own: what `tarfile` needs of one."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file = file
        self.start = start
        self.size = size
        self._position = 0

    def seek(self, position: int) -> None:
        self._position = position

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        self._file.seek(self.start + self._position)
        data = self._file.read(max(0, min(size, self.size - self._position)))
        self._position += len(data)
        return data
