"""Durable files: a final name only ever holds a whole file.

Write `x.tmp`, flush, fsync, rename, fsync of the folder. A crash at any moment leaves the old file or the new one.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from udkd.words.errors import BusyError


def fsync_folder(folder: Path) -> None:
    """Make renames and new names inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to; it takes the name `path` only when the block ends without an error."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # where nothing can be made, nothing is left either
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a failing write does not say where
        raise


def write_bytes(path: Path, data: bytes) -> None:
    with atomic(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def json_bytes(value: object) -> bytes:
    """`value` as indented JSON with sorted keys: the same value gives the same bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: object) -> None:
    """Write `json_bytes` of a value."""
    write_bytes(path, json_bytes(value))


def read_exact_json(path: Path) -> Any:
    """The value that `write_json` wrote. Raises ValueError where the file is not to the byte as it was written."""
    data = path.read_bytes()
    value = json.loads(data)
    if json_bytes(value) != data:
        raise ValueError(f"{path} is not as it was written")
    return value


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderLock:
    """One writer per folder: `with FolderLock(folder): …`. While it is held the folder has a file `.lock`, which goes with it.

    The kernel releases the lock when its process ends, however it ends, so a stale lock cannot exist; the file of a killed
    process stays and is in nobody's way. Raises BusyError, naming the process that holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._file: BinaryIO | None = None

    def __enter__(self) -> "FolderLock":
        # Whoever held it may have removed the file between our opening it and our locking it: what we hold then is nobody's.
        while not self._take(file := open(self.path, "a+b")):
            pass
        self._file = file
        return self

    def _take(self, file: BinaryIO) -> bool:
        """Lock an open file and write our name in; False, and it is closed, where it has the path no longer."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_at_the_path(file):
                file.truncate(0)
                file.write(str(os.getpid()).encode())
                file.flush()
                return True
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "unknown"
            file.close()
            raise BusyError(
                f"{self.path.parent} is being written by process {holder}; expected one writer; wait for it or stop it"
            ) from None
        except BaseException:
            file.close()
            raise
        file.close()
        return False

    def _is_at_the_path(self, file: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._file is not None
        if self._is_at_the_path(self._file):  # not that of another, after someone has removed ours
            self.path.unlink(missing_ok=True)  # while it is still ours: after that it may be the next one's
        fcntl.flock(self._file, fcntl.LOCK_UN)  # closing alone would leave it to a forked child that lives on
        self._file.close()
        self._file = None
