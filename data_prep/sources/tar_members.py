"""Lists the members of a tar file by name and offset, and reads them in place."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from udkd.utils.errors import DataError, UserError

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in a tar. name: its path, without empty and `.` parts. offset: in the tar file, bytes. size: bytes."""

    name: str
    offset: int
    size: int


def is_tar(path: Path) -> bool:
    """Whether `path` is a tar file. Raises DataError for a compressed one, whose members cannot be read by offset."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(BLOCK)
    for magic, kind in COMPRESSED.items():
        if (start.startswith(magic) and ".tar" in path.name) or (start.startswith(magic) and path.suffix == ".tgz"):
            raise DataError(f"{path} is compressed ({kind}); expected a plain tar; decompress it first")
    return start[257:262] == b"ustar" or path.suffix.lower() == ".tar"


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
                    raise DataError(
                        f"{what} holds {header.name!r}, a hard link to {header.linkname!r}, which is not in the archive; "
                        "expected regular files and folders; pack the images again with tar --hard-dereference"
                    )
                yield TarMember(_normalized(header.name), target.offset, target.size)


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
    while data := window.read(1 << 20):
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

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file = file
        self.start = start
        self.size = size
        self._position = 0

    def part(self, start: int) -> "_FileWindow":
        """The rest of the window from `start` on."""
        return _FileWindow(self._file, self.start + start, self.size - start)

    def seek(self, position: int) -> None:
        self._position = position

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        self._file.seek(self.start + self._position)
        data = self._file.read(max(0, min(size, self.size - self._position)))
        self._position += len(data)
        return data
