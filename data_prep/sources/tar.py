"""A tar file of an image folder, read by name in memory: nothing is ever extracted."""

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

from data_prep.sources.layout import is_image_path, place
from data_prep.sources.source import Entry, Listing
from udkd.words.errors import DataError

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Tar:
    """An uncompressed tar with one folder per class, below train/ and val/ or alone, after any prefix."""

    path: Path

    @staticmethod
    def probe(path: Path) -> "Tar | None":
        """A Tar where `path` is a tar file. Raises DataError for a compressed one: images in it cannot be read by offset."""
        with open(path, "rb") as file:
            start = file.read(BLOCK)
        for magic, kind in COMPRESSED.items():
            if start.startswith(magic):
                raise DataError(f"{path} is compressed ({kind}); expected a plain tar; decompress it first")
        if start[257:262] == b"ustar" or path.suffix == ".tar":
            return Tar(path)
        return None

    def list(self) -> Listing:
        """All image members. Raises DataError for a damaged tar and for members that no image archive needs.

        Absolute paths, `..`, links, devices and sparse files are refused with the whole archive: one that holds any was
        made by mistake or in bad faith.
        """
        found: list[tuple[str, int, int]] = []
        ignored: list[str] = []
        try:
            with tarfile.open(self.path, "r:") as archive:
                end = 0
                while (member := archive.next()) is not None:
                    self._check(member)
                    # Members would pile up in memory: 130,000 of them take 200 MB.
                    archive.members = []  # type: ignore[attr-defined]
                    end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
                    if member.isdir():
                        continue
                    name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
                    if is_image_path(name):
                        found.append((name, member.offset_data, member.size))
                    else:
                        ignored.append(name)
        except tarfile.TarError as error:
            raise DataError(f"{self.path} is no whole tar ({error}); expected an archive of images; fetch it again") from None
        self._check_end(end)
        stamp = self.path.stat().st_mtime_ns
        entries: list[Entry] = []
        root = self.path.name.removesuffix(".tar")
        for (name, offset, size), placed in zip(found, place([name for name, _, _ in found], root), strict=True):
            if placed is None:
                ignored.append(name)
            else:
                entries.append(Entry(*placed, key=name, offset=offset, size=size, stamp=stamp))
        return Listing(entries=entries, ignored=ignored)

    def _check(self, member: tarfile.TarInfo) -> None:
        parts = member.name.split("/")
        if member.name.startswith("/") or ".." in parts:
            fault = "its path leaves the archive"
        elif not (member.isreg() or member.isdir()) or member.issparse():
            fault = "it is a link, a device or a sparse file"
        else:
            return
        raise DataError(f"{self.path} holds {member.name!r}: {fault}; expected plain files and folders; pack the images anew")

    def _check_end(self, end: int) -> None:
        """`tarfile` takes a cut or overwritten header after the first member for the end, so look for the real end mark."""
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(end)
            mark = file.read(BLOCK)
        if end > size or mark != bytes(BLOCK):
            raise DataError(f"{self.path} is cut or damaged at byte {min(end, size)}; expected a whole tar; fetch it again")

    def read(self, entry: Entry) -> bytes:
        """The member's bytes, by offset."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, entry.size, entry.offset)
        finally:
            os.close(descriptor)
