"""Writing a cache: block by block, in any order, resumable after a kill at any moment.

A view is written as `view-%04d.udkd.partial` and gets its final name when all of it is on disk. A block is done if its
checksum matches, so there is no journal that could disagree with the bytes.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from udkd.teacher.cache.key import CacheKey, Differing, Remedy, key_differences
from udkd.teacher.cache.reader import finished_views
from udkd.teacher.cache.view_count import VIEW_COUNT_FILE, write_view_count
from udkd.teacher.cache.view_file import REBUILD, ViewFile, ViewHeader, block_checksum, read_view_header, view_path
from udkd.utils.errors import CacheError, MismatchError
from udkd.utils.files import FolderLock, fsync_folder
from udkd.utils.folder_kinds import require_no_other
from udkd.utils.operating_system import reserve_space


@dataclass(frozen=True, kw_only=True)
class Share:
    """The blocks of a view that process `rank` of `size` computes: those with block % size == rank."""

    rank: int = 0
    size: int = 1

    def has(self, block: int) -> bool:
        return block % self.size == self.rank


ALL_BLOCKS = Share()


def _elsewhere(key: CacheKey, differing: Differing) -> str:
    return "build into another folder, or delete that one"


class CacheWriter:
    """Adds views to a cache folder, which it locks: `with CacheWriter(folder, key, excluded_N) as writer: …`.

    excluded_N: bool [N], the split's excluded rows. remedy: writes an error's advice where the folder holds another key.
    BusyError: another process writes there. MismatchError: the folder holds views, finished or not, of another key.
    CacheError: a finished view whose header is damaged. RunError: a new cache in a folder of another kind, such as a dataset.
    """

    def __init__(self, folder: Path, key: CacheKey, excluded_N: NDArray[np.bool_], remedy: Remedy = _elsewhere) -> None:
        self._remedy = remedy
        self.folder = folder
        self.key = key
        self.excluded_N = excluded_N
        self._lock = FolderLock(folder)

    def __enter__(self) -> "CacheWriter":
        if not any(self.folder.glob("view-*.udkd*")):  # one that was begun in such a folder can be finished
            require_no_other(self.folder, "teacher cache")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock.__enter__()
        try:
            for view in self.finished:
                header = _require_same_key(view_path(self.folder, view), self.key, self._remedy)
                if (header.view, header.num_rows) != (view, len(self.excluded_N)):
                    raise CacheError(
                        f"{view_path(self.folder, view)} holds view {header.view} of {header.num_rows} rows; "
                        f"expected view {view} of {len(self.excluded_N)}; {REBUILD}"
                    )
            for path in self.folder.glob("view-*.udkd.partial"):
                # A partial file without a complete header was left by a kill: it has no key and holds nothing.
                with contextlib.suppress(CacheError):
                    _require_same_key(path, self.key, self._remedy)
            self._repair_view_count()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.__exit__(kind, error, trace)

    def _repair_view_count(self) -> None:
        """Write the number of views where it is absent, damaged or too small, and remove a temporary file left by a kill."""
        (self.folder / f"{VIEW_COUNT_FILE}.tmp").unlink(missing_ok=True)
        if self.finished:
            write_view_count(self.folder, self.key, max(self.finished) + 1)

    @property
    def finished(self) -> tuple[int, ...]:
        """Numbers of the views with a final file name."""
        return finished_views(self.folder)

    def require_disk_space(self, views: Collection[int]) -> None:
        """CacheError, before the teacher runs for hours, where the disk has no room for `views`."""
        each = ViewHeader(key=self.key, view=0, num_rows=len(self.excluded_N)).num_bytes
        allocated = sum(path.lstat().st_size for path in self.folder.glob("view-*.udkd.partial"))
        disk = os.statvfs(self.folder)
        needed, free = each * len(views) - allocated, disk.f_bavail * disk.f_frsize
        if needed > free and disk.f_blocks:  # some network disks report no size
            raise CacheError(
                f"{self.folder} lacks {len(views):,} views of {each / 1e6:.3g} MB and {free / 1e6:.3g} MB are free; "
                "expected room for all; free some, or build fewer views"
            )

    def view(self, view: int, share: Share = ALL_BLOCKS) -> "ViewWriter":
        """Start or continue a view that is not finished."""
        assert view not in self.finished, f"view {view} is finished"
        header = ViewHeader(key=self.key, view=view, num_rows=len(self.excluded_N))
        return ViewWriter(self.folder, header, self.excluded_N, share)


def join_view(folder: Path, key: CacheKey, view: int, excluded_N: NDArray[np.bool_], share: Share) -> "ViewWriter":
    """Write a share of a view that the process with the lock has started: see CacheWriter.view.

    MismatchError: it was started with another key, such as another thread count or device.
    """
    header = ViewHeader(key=key, view=view, num_rows=len(excluded_N))
    _require_same_key(_partial(folder, view), key)
    return ViewWriter(folder, header, excluded_N, share)


class ViewWriter:
    """Writes one view: `with writer.view(0) as view: …`; leaving it early keeps the partial file for a later build.

    unfinished: the blocks of the writer's share still to write, in order.
    CacheError: the disk cannot hold the view.
    """

    def __init__(self, folder: Path, header: ViewHeader, excluded_N: NDArray[np.bool_], share: Share = ALL_BLOCKS) -> None:
        self.header = header
        self.final = view_path(folder, header.view)
        self.partial = _partial(folder, header.view)
        self._excluded_N = excluded_N
        self._share = share
        self._start = header.data_start
        self._checksum = header.checksum
        is_new = not self._can_resume()
        self._descriptor = self._open_partial()
        if is_new:
            os.ftruncate(self._descriptor, 0)
        try:
            # All of it now: a full disk is noticed before the teacher runs for hours.
            reserve_space(self._descriptor, header.num_bytes)
            if is_new:
                # After the allocation, so that a partial file with a readable header always has its full size.
                self._pwrite(header.to_bytes(), 0)
        except OSError as error:
            os.close(self._descriptor)
            if is_new:
                self.partial.unlink()
            raise self._disk_error(error) from error
        except BaseException:
            os.close(self._descriptor)
            raise
        blocks: Iterable[int] = range(header.num_blocks)
        if not is_new:
            file = ViewFile(self.partial)
            blocks = [block for block in blocks if share.has(block) and not file.is_block_intact(block)]
        self.unfinished: list[int] = [block for block in blocks if share.has(block)]

    def __enter__(self) -> "ViewWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def ids(self, block: int) -> NDArray[np.int64]:
        """The ids of a block that are not excluded, int64, ascending."""
        first, end = self.header.block_range(block)
        return np.flatnonzero(~self._excluded_N[first:end]).astype(np.int64) + first

    def write(self, block: int, *arrays: np.ndarray) -> None:
        """Write a block: every array but the checksums, in the file's order, [n, …], rows in the order of `ids(block)`.

        CacheError: a value that is not finite, named by its id, or a full disk.
        """
        first, end = self.header.block_range(block)
        ids = self.ids(block)
        *row_specs, checksum_spec = self.header.arrays
        assert len(arrays) == len(row_specs), f"{len(arrays)} arrays for {row_specs}"
        rows = []
        for spec, array in zip(row_specs, arrays, strict=True):
            assert array.dtype == np.dtype(spec.dtype), f"{spec.name}: {array.dtype}, expected {spec.dtype}"
            assert array.shape == (len(ids), *spec.shape[1:]), f"{spec.name}: {array.shape} for {len(ids)} ids"
            self._require_finite(spec.name, array, ids)
            filled = np.full((end - first, *spec.shape[1:]), 0 if spec.name in ("logits", "classes") else np.nan, spec.dtype)
            filled[ids - first] = array
            self._pwrite(filled.tobytes(), self._start + spec.offset + first * (spec.num_bytes // self.header.num_rows))
            rows.append(filled)
        # Rows before the checksum: after a kill in between, the old checksum does not match them.
        checksum = np.array([block_checksum(self._checksum, block, rows)], "<u4")
        self._pwrite(checksum.tobytes(), self._start + checksum_spec.offset + 4 * block)
        self.unfinished.remove(block)

    def finish(self) -> None:
        """Give the view its final name, once all of it is on disk."""
        assert not self.unfinished, f"blocks {self.unfinished} of {self.partial} are unwritten"
        if self._share.size > 1:  # other processes claim to be done: check the bytes
            damaged = ViewFile(self.partial).damaged_blocks()
            if damaged:
                raise CacheError(
                    f"{self.partial}: blocks {', '.join(map(str, damaged[:5]))} are not written though every process is done; "
                    "expected a folder that all of them share; build again where they do"
                )
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._disk_error(error) from error
        self._count_view()
        os.replace(self.partial, self.final)
        fsync_folder(self.final.parent)
        self.__exit__(None, None, None)

    def _count_view(self) -> None:
        """Record this view's number, so that its loss is noticed."""
        try:
            write_view_count(self.final.parent, self.header.key, self.header.view + 1)
        except OSError as error:
            raise self._disk_error(error) from error

    def _open_partial(self) -> int:
        """Open the partial file. CacheError where its name is a link or no regular file: a link's target must not change."""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self.partial, flags, 0o644)
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                return descriptor
            os.close(descriptor)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise
        raise CacheError(f"{self.partial} is a link or not a regular file; expected an unfinished view or nothing; remove it")

    def _can_resume(self) -> bool:
        """Whether a partial file holds blocks of this view; one without a complete header holds none."""
        try:
            return ViewFile(self.partial).header == self.header
        except (FileNotFoundError, CacheError):
            return False

    def _pwrite(self, data: bytes, offset: int) -> None:
        rest = memoryview(data)
        try:
            while rest:
                written = os.pwrite(self._descriptor, rest, offset)
                rest, offset = rest[written:], offset + written
        except OSError as error:
            raise self._disk_error(error) from error

    def _disk_error(self, error: OSError) -> CacheError:
        free = os.statvfs(self.partial.parent)
        return CacheError(
            f"{self.final}: {error.strerror} ({free.f_bavail * free.f_frsize / 1e6:.3g} MB free); expected "
            f"{self.header.num_bytes / 1e6:.3g} MB a view; free space and build again: finished blocks are kept"
        )

    def _require_finite(self, name: str, values: np.ndarray, ids: NDArray[np.int64]) -> None:
        finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        if not finite.all():
            raise CacheError(
                f"the teacher's {name} of id {ids[np.argmin(finite)]} are not finite; expected finite numbers; "
                "check the teacher's weights, or use precision float32"
            )


def _partial(folder: Path, view: int) -> Path:
    final = view_path(folder, view)
    return final.with_name(final.name + ".partial")


def _require_same_key(path: Path, key: CacheKey, remedy: Remedy = _elsewhere) -> ViewHeader:
    header = read_view_header(path)
    differing, _ = key_differences(header.key, vars(key))
    if differing:
        raise MismatchError(f"the cache in {path.parent} ({path.name})", differing, remedy(header.key, differing))
    return header
