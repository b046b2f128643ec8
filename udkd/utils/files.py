"""Durable files: a final name only ever holds a whole file.

Write `x.tmp`, flush, fsync, rename, fsync of the folder. A crash at any moment leaves the old file or the new one.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from udkd.utils.errors import BusyError, UserError
from udkd.utils.parsing import parse_json

_WAIT_S = 5.0


def fsync_folder(folder: Path) -> None:
    """Make renames and new names inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to; it takes the name `path` only when the block ends without an error.

    Until then it is `path` + ".tmp", a new file of ours alone: links are never followed, what a killed process left is
    removed. Raises BusyError where another process writes the same file and does not end within _WAIT_S.
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
                with contextlib.suppress(OSError):  # while it is still locked: after that the name may be another's
                    temporary.unlink(missing_ok=True)
                raise
        fsync_folder(path.parent)
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)  # a failing write does not say where
        raise


def _new_file(path: Path) -> BinaryIO:
    """A file made just now, locked while it is open, which tells a writer at work from what a killed one left."""
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
        # Between our making it and our locking it, another may have taken it for stale.
        if _locked(file.fileno()) and _is_at(file.fileno(), path):
            return file
        file.close()


def _remove_stale(path: Path) -> bool:
    """Remove a temporary file that no process holds; False where one does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        path.unlink(missing_ok=True)  # a link: it goes, what it points to stays
        return True
    try:
        if not _locked(descriptor):
            return False
        if _is_at(descriptor, path):
            path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Whether we hold the exclusive lock of an open file now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file (or a link to one) to read. Raises ValueError for anything else: a FIFO would wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise ValueError(f"{path} is no regular file")


def read_regular(path: Path, most: int | None = None) -> bytes:
    """A regular file's bytes. Raises ValueError where it is none, or holds more than `most` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise ValueError(f"{path} has {size:,} bytes, more than {most:,}")
        return file.read()


def write_bytes(path: Path, data: bytes) -> None:
    with atomic(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def json_bytes(value: object) -> bytes:
    """`value` as indented JSON with sorted keys: the same value gives the same bytes.

    UTF-8, but for lone surrogates, which stand for the bytes of a path that is none: they are escaped, as JSON can.
    """
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def write_json(path: Path, value: object) -> None:
    """Write `json_bytes` of a value."""
    write_bytes(path, json_bytes(value))


def read_exact_json(path: Path) -> Any:
    """The value that `write_json` wrote. Raises ValueError where the file is not to the byte as it was written."""
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
    """One writer per folder: `with FolderLock(folder): …`. While it is held the folder has a file `.lock`, which goes with it.

    The kernel releases the lock when its process ends, however it ends, so a stale lock cannot exist; the file of a killed
    process stays and is in nobody's way. Raises BusyError, naming the process that holds the folder.

    name: another than `.lock`, for files of the folder that are written apart from the others.
    """

    def __init__(self, folder: Path, name: str = ".lock") -> None:
        self.path = folder / name
        self._file: BinaryIO | None = None

    def __enter__(self) -> "FolderLock":
        # Whoever held it may have removed the file between our opening it and our locking it: what we hold then is nobody's.
        while not self._take(file := self._open()):
            pass
        self._file = file
        return self

    def refuse_if_held(self) -> None:
        """BusyError where another process holds the folder; nothing is written, so a folder that cannot be written will do."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return  # nobody has made it
        with os.fdopen(descriptor, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._busy(file) from None

    def _busy(self, file: BinaryIO) -> BusyError:
        file.seek(0)
        holder = file.read(100).decode(errors="replace").strip() or "unknown"
        writer = f"{self.path.parent} is being written by process {holder}"
        return BusyError(f"{writer}; expected one writer; wait for it or stop it")

    def _open(self) -> BinaryIO:
        """The lock's own file: whatever else has its name, a link to another file above all, is left alone."""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise self._not_ours() from None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.close(descriptor)
            raise self._not_ours()
        return os.fdopen(descriptor, "r+b")

    def _not_ours(self) -> UserError:
        return UserError(f"{self.path} is a link or no regular file; expected a lock file of udkd's own; remove it")

    def _take(self, file: BinaryIO) -> bool:
        """Lock an open file and write our name in; False, and it is closed, where it has the path no longer."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file.fileno(), self.path):
                file.truncate(0)
                file.write(str(os.getpid()).encode())
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
        if _is_at(self._file.fileno(), self.path):  # not that of another, after someone has removed ours
            self.path.unlink(missing_ok=True)  # while it is still ours: after that it may be the next one's
        fcntl.flock(self._file, fcntl.LOCK_UN)  # closing alone would leave it to a forked child that lives on
        self._file.close()
        self._file = None
