"""The members of a tar file, by name and offset: nothing is ever extracted."""

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
    return start[257:262] == b"ustar" or path.suffix.lower() == ".tar"


def iter_members(path: Path, inside: TarMember | None = None) -> Iterator[TarMember]:
    """The plain files of a tar, in order; of a tar that is a member of another where `inside` names it.

    Archives joined end to end are read one after the other, as `tar --ignore-zeros` does. A hard link to a file of the same
    tar is that file's bytes. Raises DataError for a damaged tar and for members that no image archive needs: absolute paths,
    `..`, other links, devices and sparse files are refused with the whole archive; one that holds any was made by mistake or
    in bad faith.
    """
    what = str(path) if inside is None else f"{path}, {inside.name}"
    with open(path, "rb") as file:
        window = (
            _FileWindow(file, inside.offset, inside.size) if inside else _FileWindow(file, 0, os.fstat(file.fileno()).st_size)
        )
        targets: dict[str, TarMember] | None = None
        for found, offset in _headers(window, what):
            if found.isreg():
                yield TarMember(_normalized(found.name), window.start + offset, found.size)
            elif found.islnk():
                targets = _link_targets(window, what) if targets is None else targets
                target = targets.get(_normalized(found.linkname))
                if target is None:
                    raise DataError(
                        f"{what} holds {found.name!r}, a hard link to {found.linkname!r}, which is no file of the archive; "
                        "expected plain files and folders; pack the images again with tar --hard-dereference"
                    )
                yield TarMember(_normalized(found.name), target.offset, target.size)


def _normalized(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _link_targets(window: "_FileWindow", what: str) -> dict[str, TarMember]:
    """The files that hard links of an archive lead to, by name. Two more passes, so that archives without links pay nothing."""
    wanted = {_normalized(found.linkname) for found, _ in _headers(window, what) if found.islnk()}
    files = ((_normalized(found.name), found, offset) for found, offset in _headers(window, what) if found.isreg())
    return {name: TarMember(name, window.start + offset, found.size) for name, found, offset in files if name in wanted}


def _headers(whole: "_FileWindow", what: str) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Every member of a tar, and of those joined to it, checked; with the place of its bytes. Raises DataError."""
    start: int | None = 0
    while start is not None:
        window = whole.part(start)
        end = 0
        try:
            with tarfile.open(fileobj=window, mode="r:") as archive:  # type: ignore[call-overload]
                while (member := archive.next()) is not None:
                    _check(member, what)
                    # Members would pile up in memory: 130,000 of them take 200 MB.
                    archive.members = []
                    end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
                    yield member, start + member.offset_data
        except UserError:
            raise
        except (tarfile.TarError, ValueError, OverflowError) as error:  # the last two: of numbers in its headers
            text = str(error).splitlines()[0][:200]
            if start:
                raise DataError(
                    f"{what} holds other data behind its end, at byte {start} ({text}); expected a tar, or tars joined to one; "
                    "cut it off there, or fetch the tar again"
                ) from None
            raise DataError(f"{what} is no whole tar ({text}); expected an archive of images; fetch it again") from None
        # `tarfile` takes a cut or overwritten header after the first member for the end, so look for the real end mark.
        window.seek(end)
        if end > window.size or window.read(BLOCK) != bytes(BLOCK):
            at = start + min(end, window.size)
            raise DataError(f"{what} is cut or damaged at byte {at}; expected a whole tar; fetch it again")
        start = _next_data(whole, start + end + BLOCK)


def _next_data(window: "_FileWindow", start: int) -> int | None:
    """The first block from `start` on that is not all zeros; None where only zeros follow."""
    window.seek(start)
    while data := window.read(1 << 20):
        if (kept := len(data) - len(data.lstrip(b"\0"))) < len(data):
            return start + kept // BLOCK * BLOCK
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
    raise DataError(f"{what} holds {member.name!r}: {fault}; expected plain files and folders; {remedy}")


def read_at(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a file by offset; fewer where it ends before. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, min(size, os.fstat(descriptor).st_size), offset)
    finally:
        os.close(descriptor)


class _FileWindow:
    """A stretch of an open file, as a file of its own: what `tarfile` needs of one."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file = file
        self.start = start
        self.size = size
        self._position = 0

    def part(self, start: int) -> "_FileWindow":
        """The rest of it, from `start` on."""
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
