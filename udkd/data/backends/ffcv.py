"""The FFCV backend: reads stored bytes from samples.beton and decodes them exactly with FFCV's libturbojpeg.

FFCV's Loader is not used: its decoder is inexact (FASTDCT) and ignores failures, an exception in its thread blocks the
consumer forever, stopping early leaks the thread, and later batches overwrite earlier ones. This backend uses FFCV's reader and
library, with its own loops, compiled with numba, in the threads of udkd.data.loading.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from udkd.data.batch import Batch
from udkd.data.beton import import_ffcv, open_beton
from udkd.data.dataset import Split
from udkd.data.loading.host_loader import HostLoader
from udkd.utils.crc32c import crc32c_function
from udkd.utils.errors import DataError

_REMEDY = "write it again with udkd data derive --formats ffcv"


@final
class FfcvBackend:
    """Decodes every sample in every epoch, without holding the interpreter lock.

    workers: decoding threads; 0 means one per core. Raises ConfigError if FFCV is not installed, and DataError if
    samples.beton is absent, damaged or of another dataset.
    """

    def __init__(self, split: Split, device: torch.device, *, workers: int = 0) -> None:
        self.num_samples = split.num_samples
        self._split = split
        self._beton = open_beton(split)
        self._loops = _compile_loops(import_ffcv())
        self._loader = HostLoader(split, device, workers=workers, stage="ffcv backend")

    def epoch(self, order: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """See udkd.data.batch.Backend."""
        return self._loader.epoch(self._split.order(order), batch_size, self._decode)

    def close(self) -> None:
        """Release the memory; no thread or open file outlives an epoch."""
        self._loader.close()

    def describe(self) -> str:
        """The pixel class: libturbojpeg's accurate DCT, with the same pixels as Pillow."""
        return "libjpeg islow, fancy upsampling"

    def _decode(self, ids: NDArray[np.int64], canvas: NDArray[np.uint8]) -> None:
        split = self._split
        ends = np.cumsum(split.size[ids])
        stored = np.empty(int(ends[-1]), dtype=np.uint8)
        starts = ends - split.size[ids]
        counts, crcs = np.empty(len(ids), dtype=np.int64), np.empty(len(ids), dtype=np.uint32)
        descriptor = os.open(self._beton.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._loops.read(descriptor, stored.ctypes.data, starts, ends, self._beton.offset[ids], counts, crcs)
        finally:
            os.close(descriptor)
        damaged = (counts != split.size[ids]) | (crcs != split.crc32c[ids])
        if damaged.any():
            raise self._damage_error(int(ids[damaged][0]), unreadable=bool(counts[damaged][0] < 0))
        codes = np.empty(len(ids), dtype=np.int32)
        self._loops.decode(stored.ctypes.data, starts, ends, split.sizes[ids], canvas, codes)
        if codes.any():
            what = split.describe(int(ids[codes != 0][0]))
            raise DataError(
                f"{what}: libturbojpeg does not decode it; expected a decode, as Pillow's succeeds; use another --backend"
            )

    def _damage_error(self, sample_id: int, *, unreadable: bool) -> DataError:
        what = f"{self._split.describe(sample_id)} in {self._beton.path.name}"
        if unreadable:
            return DataError(f"{what} cannot be read (an error of the disk or the file system); expected its bytes; {_REMEDY}")
        return DataError(f"{what} is damaged; expected the manifest's checksum; {_REMEDY}")


@dataclass(frozen=True)
class _Loops:
    """Loops over samples, compiled to run without the interpreter lock.

    read(descriptor, address, starts, ends, offsets, counts, crcs): reads stored bytes, and fills in for each sample the number
    of bytes read (-1: failed) and their CRC-32C.
    decode(address, starts, ends, sizes, canvas, codes): decodes onto canvases, and fills in codes, 0 for success.
    """

    read: Callable[..., None]
    decode: Callable[..., None]


@functools.cache  # half a second
def _compile_loops(ffcv: ModuleType) -> _Loops:
    """Compile the loops.

    Arrays are passed as arguments, because numba freezes arrays in a closure. Stored bytes are passed by address, because
    FFCV's memory manager makes numba's type of uint8 vectors read-only, process-wide.
    """
    import numba
    from numba import types

    pread: Any = ctypes.CDLL(None).pread  # a memory map turns an I/O error into SIGBUS
    pread.restype, pread.argtypes = ctypes.c_int64, [ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64]
    library = ctypes.CDLL(ffcv._libffcv.__file__)  # its libturbojpeg is reachable through it
    begin: Any = library.tjInitDecompress
    begin.restype, begin.argtypes = ctypes.c_void_p, []
    decompress: Any = library.tjDecompress2
    decompress.restype = ctypes.c_int32
    decompress.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, *[ctypes.c_int32] * 5]
    end: Any = library.tjDestroy
    end.restype, end.argtypes = ctypes.c_int32, [ctypes.c_void_p]

    crc32c: Any = crc32c_function()

    def read(descriptor: Any, stored: Any, starts: Any, ends: Any, offsets: Any, counts: Any, crcs: Any) -> None:
        for n in range(len(counts)):
            address, size = stored + starts[n], ends[n] - starts[n]
            counts[n] = pread(descriptor, address, size, offsets[n])
            crcs[n] = crc32c(address, size)

    def decode(stored: Any, starts: Any, ends: Any, sizes: Any, canvas: Any, codes: Any) -> None:
        side = canvas.shape[1]
        for n in range(len(codes)):
            handle = begin()  # one per image: a reused handle would decode an image without tables with the previous image's
            height, width = sizes[n, 2], sizes[n, 3]
            canvas[n, :height, width:] = 0
            canvas[n, height:] = 0
            source, target = stored + starts[n], canvas[n].ctypes.data
            # A row pitch of the canvas: no copy. Format 0 is RGB; flags 0: the accurate DCT, fancy upsampling.
            codes[n] = decompress(handle, source, ends[n] - starts[n], target, width, 3 * side, height, 0, 0)
            end(handle)

    u1, u4, i4, i8 = types.uint8, types.uint32, types.int32, types.int64
    reads = types.void(i4, i8, i8[::1], i8[::1], i8[::1], i8[::1], u4[::1])
    decodes = types.void(i8, i8[::1], i8[::1], i4[:, ::1], u1[:, :, :, ::1], i4[::1])
    return _Loops(read=numba.njit(reads, nogil=True)(read), decode=numba.njit(decodes, nogil=True)(decode))
