"""Durable files: a final name only ever holds a complete file.

Write `x.tmp`, flush, fsync, rename, fsync of the folder. A crash at any moment leaves the old file or the new one.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from udkd.utils.errors import BusyError, UserError
from udkd.utils.parsing import parse_json

_WAIT_S = 5.0
_MAX_HOLDER_BYTES = 400


def fsync_folder(folder: Path) -> None:
    """Make renames and new files inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to; it takes the name `path` only when the block ends without an error.

    Until then its name is `path` + ".tmp". Links are never followed, and a temporary file left by a killed process is
    replaced. Raises BusyError if another process is still writing the same file after _WAIT_S.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with _new_file(temporary) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):  # while it is locked: afterwards the name may belong to another process
                    temporary.unlink(missing_ok=True)
                raise
        fsync_folder(path.parent)
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)  # a failed write does not name its file
        raise


def _new_file(path: Path) -> BinaryIO:
    """Create a file, locked while it is open: the lock distinguishes an active writer's file from a killed one's."""
    end = time.monotonic() + _WAIT_S
    while True:
        try:
            file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "wb")
        except FileExistsError:
            if not _remove_stale(path):
                if time.monotonic() > end:
                    raise BusyError(f"{path} is being written by another process; expected one writer; wait for it") from None
                time.sleep(0.02)
            continue
        # Between the creation and the lock another process may have removed it as stale.
        if _lock(file.fileno()) and _is_at(file.fileno(), path):
            return file
        file.close()


def _remove_stale(path: Path) -> bool:
    """Remove a temporary file unless a process holds its lock. Returns whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        path.unlink(missing_ok=True)  # a link: remove it, not its target
        return True
    try:
        if not _lock(descriptor):
            return False
        if _is_at(descriptor, path):
            path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Try to take the exclusive lock of an open file; False if another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file (or a link to one) for reading. Raises ValueError for anything else: opening a FIFO would block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise ValueError(f"{path} is not a regular file")


def read_regular(path: Path, max_bytes: int | None = None) -> bytes:
    """A regular file's bytes. Raises ValueError for any other kind of file, and for more than `max_bytes`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise ValueError(f"{path} has {size:,} bytes, more than {max_bytes:,}")
        return file.read()


def write_bytes(path: Path, data: bytes) -> None:
    with atomic_write(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def json_bytes(value: object) -> bytes:
    """`value` as indented JSON with sorted keys in UTF-8: the same value gives the same bytes.

    Lone surrogates, which stand for the undecodable bytes of a path, are escaped.
    """
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def write_json(path: Path, value: object) -> None:
    """Write `json_bytes` of a value."""
    write_bytes(path, json_bytes(value))


def read_exact_json(path: Path) -> Any:
    """Read a value that `write_json` wrote. Raises ValueError if any byte of the file has changed."""
    data = read_regular(path)
    value = parse_json(data)
    if json_bytes(value) != data:
        raise ValueError(f"{path} is not as it was written")
    return value


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderLock:
    """One writer per folder: `with FolderLock(folder): …`. While it is held, the folder contains a file `.lock`.

    The kernel releases the lock when the process ends for any reason, so there are no stale locks; a file left by a killed
    process is harmless. Entering raises BusyError, naming the process that holds the folder, its host, and since when: that
    is the file's content. Version 0.1 wrote the process id alone.

    name: of the lock file. A second name locks files in the folder that are written independently of the others.
    """

    def __init__(self, folder: Path, name: str = ".lock") -> None:
        self.path = folder / name
        self._file: BinaryIO | None = None

    def __enter__(self) -> "FolderLock":
        # The previous holder may remove the file between our open and our lock: then we hold a file without a name.
        while not self._acquire(file := self._open()):
            pass
        self._file = file
        return self

    def require_free(self) -> None:
        """Raise BusyError if another process holds the folder. Writes nothing, so a read-only folder is fine."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return  # no lock file: not held
        with os.fdopen(descriptor, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._busy(file) from None

    def _busy(self, file: BinaryIO) -> BusyError:
        file.seek(0)
        holder = file.read(_MAX_HOLDER_BYTES).decode(errors="replace").strip() or "unknown"
        writer = f"{self.path.parent} is being written by process {holder}"
        return BusyError(f"{writer}; expected one writer; wait for it or stop it")

    def _open(self) -> BinaryIO:
        """Open the lock file. Anything else of that name, such as a link to another file, is refused and left unchanged."""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise self._not_a_lock_file() from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(descriptor)
            raise self._not_a_lock_file()
        return os.fdopen(descriptor, "r+b")

    def _not_a_lock_file(self) -> UserError:
        return UserError(f"{self.path} is a link or not a regular file; expected a lock file of udkd; remove it")

    def _acquire(self, file: BinaryIO) -> bool:
        """Lock an open file and write who we are; if it no longer has the path, close it and return False."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file.fileno(), self.path):
                file.truncate(0)
                file.write(f"{os.getpid()} on {platform.node()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC".encode())
                file.flush()
                return True
        except BlockingIOError:
            busy = self._busy(file)
            file.close()
            raise busy from None
        except BaseException:
            file.close()
            raise
        file.close()
        return False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._file is not None
        if _is_at(self._file.fileno(), self.path):  # if it was removed, the path may belong to another process by now
            self.path.unlink(missing_ok=True)  # before the unlock: afterwards it may belong to the next holder
        fcntl.flock(self._file, fcntl.LOCK_UN)  # closing alone would leave the lock to a forked child
        self._file.close()
        self._file = None
