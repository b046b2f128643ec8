"""One view of a cache as a file, `view-%04d.udkd`: format 1.

All numbers are little-endian. N rows (one for each id of the split, excluded ones included), C classes.

    offset 0   8 bytes   magic "UDKDVIEW"
           8   uint32    format version
          12   uint32    length L of the header text
          16   uint32    crc32 of the 16 bytes above and the header text
          20   L bytes   header: JSON, ASCII, with "key" (see key.py), "view", "rows" and "arrays": of each array its
                         name, dtype, shape and offset from the start of the data
    data starts at the next multiple of 64, and so does each array; the gaps are zeros:
          logits     float16 or float32 [N, C], the row's maximum subtracted
          entropy    float32 [N], nats; then the key's other uncertainties, likewise
          features   float16 [N, D], if the key's D is above 0: the teacher's pooled features
          checksums  uint32 [ceil(N / block_rows)]

In the top-k form of many classes, logits is [N, k], best first, and two arrays follow it:
          classes    uint16 [N, k], uint32 where C > 65,536: the classes of these logits
          tail       float32 [N], the exact probability of the classes that were not kept
The entropy is exact in both forms. `udkd.losses.storage.dense_logits` restores all C logits; their softmax sums to 1.

A block is `block_rows` consecutive ids; the last may be shorter. Its checksum is the crc32 of its index (uint64) and its
rows of each array in the file's order. It starts from the header's crc32, so that a block copied from another position, view
or cache does not match. An excluded id has zeros as logits (and classes) and NaN elsewhere: training on one by mistake gives
a loss that is not finite.

At C = 100 a row takes 204 bytes plus its share of the header and the checksums; top-32 of any C up to 65,536 takes 136.
Features add 2 D bytes: 4,096 for a ResNet-50, 1,024 for a ResNet-18.
"""

import errno
import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from udkd.losses.storage import Storage, dense_logits
from udkd.teacher.cache.key import FORMAT_VERSION, CacheKey
from udkd.utils.errors import CacheError
from udkd.utils.files import open_regular
from udkd.utils.parsing import parse_json

MAGIC = b"UDKDVIEW"
ALIGNMENT = 64
_PREFIX = struct.Struct("<8sIII")
_CHECKED_PREFIX = 16  # bytes of the prefix that the header's crc32 covers
_MAX_HEADER_BYTES = 1 << 20
REBUILD = "delete the file and run `udkd cache build` again: it computes what is missing"


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of the file. offset: in bytes from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class ViewHeader:
    """The header of a view file; every byte position follows from it."""

    key: CacheKey
    view: int
    num_rows: int

    @property
    def num_blocks(self) -> int:
        return -(-self.num_rows // self.key.block_rows)

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        storage = Storage.parse(self.key.storage)
        width = storage.top_k or self.key.num_classes
        logits_dtype = {"float16": "<f2", "float32": "<f4"}[storage.dtype]
        class_dtype = "<u2" if self.key.num_classes <= 1 << 16 else "<u4"
        kept: list[tuple[str, str, tuple[int, ...]]] = [
            ("classes", class_dtype, (self.num_rows, width)),
            ("tail", "<f4", (self.num_rows,)),
        ]
        shapes: list[tuple[str, str, tuple[int, ...]]] = [
            ("logits", logits_dtype, (self.num_rows, width)),
            *(kept if storage.top_k else ()),
            *((name, "<f4", (self.num_rows,)) for name in self.key.uncertainties),
            *([("features", "<f2", (self.num_rows, self.key.features))] if self.key.features else ()),
            ("checksums", "<u4", (self.num_blocks,)),
        ]
        specs, offset = [], 0
        for name, dtype, shape in shapes:
            specs.append(ArraySpec(name=name, dtype=dtype, shape=shape, offset=offset))
            offset = _aligned(offset + specs[-1].num_bytes)
        return tuple(specs)

    def to_bytes(self) -> bytes:
        """The file's bytes before the data, padding included."""
        text = json.dumps(
            {
                "key": json.loads(self.key.to_json()),
                "view": self.view,
                "rows": self.num_rows,
                "arrays": [
                    {"name": spec.name, "dtype": spec.dtype, "shape": spec.shape, "offset": spec.offset} for spec in self.arrays
                ],
            },
            sort_keys=True,
            separators=(",", ":"),
        ).encode("ascii")
        prefix = struct.pack("<8sII", MAGIC, FORMAT_VERSION, len(text))
        crc = zlib.crc32(text, zlib.crc32(prefix))
        head = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(text), crc) + text
        return head.ljust(_aligned(len(head)), b"\0")

    @property
    def checksum(self) -> int:
        """The header's crc32, the starting value of every block's checksum."""
        return int(_PREFIX.unpack_from(self.to_bytes())[3])

    @property
    def data_start(self) -> int:
        return len(self.to_bytes())

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        last = self.arrays[-1]
        return self.data_start + last.offset + last.num_bytes

    def block_range(self, block: int) -> tuple[int, int]:
        """First id of a block, and the id after its last."""
        first = block * self.key.block_rows
        return first, min(first + self.key.block_rows, self.num_rows)


def view_path(folder: Path, view: int) -> Path:
    return folder / f"view-{view:04d}.udkd"


def read_view_header(path: Path) -> ViewHeader:
    """Read and check a file's header and the file's size, before anything else takes memory.

    CacheError: no file, not a view file, another version, a damaged header, or a size that does not match the header.
    """
    with _opened(path) as file:
        return _header(path, file)


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except ValueError:
        state = "not a regular file"
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        state = "missing, or a broken link"
    raise CacheError(f"{path} is {state}; expected a cached view; {REBUILD}")


def _header(path: Path, file: BinaryIO) -> ViewHeader:
    size = file.seek(0, 2)
    file.seek(0)
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size or not prefix.startswith(MAGIC):
        raise CacheError(f"{path} is not a cached view (it starts with {prefix[:8]!r}); expected {MAGIC!r}; {REBUILD}")
    _, version, length, crc = _PREFIX.unpack(prefix)
    if version != FORMAT_VERSION:
        raise CacheError(
            f"{path} has format version {version}; expected {FORMAT_VERSION}; use the udkd that wrote it, or {REBUILD}"
        )
    if length > min(_MAX_HEADER_BYTES, size):
        raise CacheError(f"{path}: header of {length} bytes in a file of {size}; expected a complete header; {REBUILD}")
    text = file.read(length)
    if zlib.crc32(text, zlib.crc32(prefix[:_CHECKED_PREFIX])) != crc:
        raise CacheError(f"{path}: header does not match its checksum; expected the bytes that were written; {REBUILD}")
    header = _parse(path, text)
    expected = header.to_bytes()
    file.seek(0)
    if file.read(len(expected)) != expected:
        raise CacheError(f"{path}: header in an unknown layout; expected that of format {FORMAT_VERSION}; {REBUILD}")
    if size != header.num_bytes:
        raise CacheError(f"{path} has {size} bytes; expected {header.num_bytes}; {REBUILD}")
    return header


def _parse(path: Path, text: bytes) -> ViewHeader:
    try:
        value = parse_json(text)
        view, rows, key = value["view"], value["rows"], json.dumps(value["key"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheError(f"{path}: unreadable header ({error!r}); expected JSON with key, view and rows; {REBUILD}") from None
    if type(view) is not int or type(rows) is not int or view < 0 or rows < 1:
        raise CacheError(f"{path}: view {view!r} and rows {rows!r}; expected two integers; {REBUILD}")
    try:
        return ViewHeader(key=CacheKey.from_json(key), view=view, num_rows=rows)
    except CacheError as error:
        raise CacheError(f"{path}: {error}") from None


class ViewFile:
    """A view file, memory-mapped: data is read when it is accessed, and changes to the arrays never reach the disk.

    logits: [N, C], or [N, k] in the top-k form; uncertainties: by name, float32 [N]; checksums: uint32 [blocks].
    arrays: all but the checksums, by name, in the file's order.
    CacheError: see `read_view_header`, or bytes between the arrays that are not zeros.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _opened(path) as file:
            self.header = _header(path, file)
            # Copy-on-write instead of read-only: the pages stay shared, and PyTorch takes the memory without a warning.
            mapped = np.memmap(file, dtype=np.uint8, mode="c")
        start, end = self.header.data_start, self.header.data_start
        arrays: dict[str, np.ndarray] = {}
        for spec in self.header.arrays:
            if mapped[end : start + spec.offset].any():
                raise CacheError(f"{path}: bytes before array {spec.name} are not zeros; expected padding; {REBUILD}")
            end = start + spec.offset + spec.num_bytes
            arrays[spec.name] = np.asarray(mapped[start + spec.offset : end].view(spec.dtype).reshape(spec.shape))
        self.checksums: NDArray[np.uint32] = arrays.pop("checksums")
        self.arrays: Mapping[str, np.ndarray] = arrays
        self.logits: np.ndarray = arrays["logits"]
        self.uncertainties: Mapping[str, NDArray[np.float32]] = {name: arrays[name] for name in self.header.key.uncertainties}
        self._header_checksum = self.header.checksum

    def dense_logits(self, rows: NDArray[np.int64] | slice) -> np.ndarray:
        """Logits of all C classes of some rows: as stored, or float32 rebuilt from the top-k form."""
        if "classes" not in self.arrays:
            return self.logits[rows]
        import torch  # a cache that is described, not trained from, is read without it

        logits, classes, tail = (torch.from_numpy(self.arrays[name][rows]) for name in ("logits", "classes", "tail"))
        return dense_logits(logits, classes, tail, self.header.key.num_classes).numpy()

    def is_block_intact(self, block: int) -> bool:
        """Whether a block matches its checksum and holds values that a build can have written."""
        return not self._fault(block)

    def _fault(self, block: int) -> str:
        """What is wrong with a block, or ""."""
        first, end = self.header.block_range(block)
        rows = {name: array[first:end] for name, array in self.arrays.items()}
        if block_checksum(self._header_checksum, block, list(rows.values())) != int(self.checksums[block]):
            return "does not match its checksum"
        name = _invalid_array(rows, self.header.key.num_classes)
        return f"holds impossible {name} although its checksum matches" if name else ""

    def damaged_blocks(self) -> list[int]:
        """Every block that is not intact; reads the complete file."""
        return [block for block in range(self.header.num_blocks) if not self.is_block_intact(block)]

    def require_block(self, block: int) -> None:
        """CacheError, naming file, block and ids, unless the block is intact."""
        fault = self._fault(block)
        if fault:
            first, end = self.header.block_range(block)
            raise CacheError(
                f"{self.path}: block {block} (ids {first} to {end - 1}) {fault}; "
                f"expected the bytes that the build wrote; {REBUILD}"
            )


def block_checksum(header_checksum: int, block: int, rows: list[np.ndarray]) -> int:
    """The crc32 of a block's index and its rows of each array in the file's order, starting from the header's checksum."""
    crc = zlib.crc32(struct.pack("<Q", block), header_checksum)
    for array in rows:
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    return crc


def _invalid_array(rows: Mapping[str, np.ndarray], num_classes: int) -> str:
    """The first array with values that would make a loss NaN or index out of bounds, or ""."""
    kept = ~np.isnan(rows["entropy"])
    for name, array in rows.items():
        if name == "classes":
            is_valid = int(array.max()) < num_classes
        elif name == "logits":  # zeros where an id is excluded
            is_valid = _all_finite(array)
        elif name == "tail":
            is_valid = bool(((array[kept] >= 0) & (array[kept] < 1)).all())
        else:
            is_valid = _all_finite(array[kept])
        if not is_valid:
            return name
    return ""


def _all_finite(array: np.ndarray) -> bool:
    if array.dtype != np.float16:
        return bool(np.isfinite(array).all())
    # An exponent of all ones is NaN or infinite: this takes an eighth of the time of np.isfinite, and of the block's checksum.
    return int((array.view(np.uint16) & 0x7C00).max(initial=0)) < 0x7C00


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
