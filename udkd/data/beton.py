"""Reads samples.beton, FFCV's own format: the samples of a split in id order, without the excluded ones.

It has two fields, `image` (RGBImageField, mode jpg: the stored bytes) and `label` (IntField). FFCV's table has no checksums, so
each of its rows is checked against the manifest on opening, and each sample's bytes when they are read.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from udkd.data.dataset import Split
from udkd.data.derived import DERIVED, read_sealed
from udkd.utils.errors import ConfigError, DataError

BETON_FIELDS = ("image", "label")
(FILE_NAME,) = DERIVED["ffcv"].data


@contextlib.contextmanager
def _plain_dict() -> Iterator[None]:
    """Let FFCV use a plain dict instead of numba's for its table of image modes, which is filled at import.

    Compiling numba's dict takes 7 of the import's 7.5 seconds in each process, and no compiled code reads the table.
    """
    import numba.typed

    typed = numba.typed.Dict
    numba.typed.Dict = dict
    try:
        yield
    finally:
        numba.typed.Dict = typed


def import_ffcv() -> ModuleType:
    """The package ffcv. Raises ConfigError if it is missing or does not load.

    Importing it sets PyTorch to one thread, process-wide; the number of threads is restored.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings(), _plain_dict():
            warnings.simplefilter("ignore")  # it imports distutils
            import ffcv
            import ffcv._libffcv
            import ffcv.memory_allocator
            import ffcv.reader
            import ffcv.types
    except Exception as error:  # of a broken package: a missing library, another NumPy's binary, half an upgrade
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"FFCV cannot be used ({reason}); expected the package ffcv and its libraries; "
            "run make install, which reports what it needs, or do without the ffcv format and backend"
        ) from None
    finally:
        torch.set_num_threads(threads)
    module: ModuleType = ffcv
    return module


@dataclass(frozen=True, eq=False)
class BetonOffsets:
    """A checked samples.beton. offset: int64 [N], the position of each sample's bytes by id; -1 for excluded samples."""

    path: Path
    offset: NDArray[np.int64]


def open_beton(split: Split) -> BetonOffsets:
    """Open a split's samples.beton with FFCV's Reader and check its table against the manifest.

    Raises DataError if it is absent, truncated, damaged or of another dataset, and ConfigError if FFCV is not installed.
    """
    read_sealed(split.path, "ffcv", digest=split.digest)
    ffcv = import_ffcv()
    path = split.path / FILE_NAME
    try:
        header = np.fromfile(path, dtype=ffcv.types.HeaderType, count=1)[0]
        table_bytes = len(split.ids) * ffcv.types.ALLOC_TABLE_TYPE.itemsize
        expected = (ffcv.types.CURRENT_VERSION, len(BETON_FIELDS), len(split.ids), path.stat().st_size - table_bytes)
        if tuple(int(header[name]) for name in ("version", "num_fields", "num_samples", "alloc_table_ptr")) != expected:
            raise ValueError("its header is of other data")
        return BetonOffsets(path, _offsets(split, ffcv.reader.Reader(str(path)), int(header["alloc_table_ptr"])))
    except (ValueError, KeyError, IndexError, AssertionError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({error}); expected what udkd data convert packed from this dataset; "
            "write it again with udkd data derive --formats ffcv"
        ) from None


def _offsets(split: Split, reader: "ffcv.reader.Reader", end: int) -> NDArray[np.int64]:  # type: ignore[name-defined] # noqa: F821
    """Offsets from FFCV's table, each row checked against the manifest. Raises ValueError."""
    ids = split.ids
    if tuple(reader.field_names) != BETON_FIELDS:
        raise ValueError(f"its fields are {', '.join(reader.field_names)}")
    image, label = (reader.metadata[name] for name in reader.metadata.dtype.names)
    stored = np.stack([label.astype(np.int64), image["mode"], image["height"], image["width"]], axis=1)
    expected = np.stack([split.labels[ids], np.zeros(len(ids)), split.sizes[ids, 2], split.sizes[ids, 3]], axis=1)
    start = image["data_ptr"].astype(np.int64)
    differs = (stored != expected).any(axis=1) | (start < 0) | (start + split.size[ids] > end)
    if differs.any():
        raise ValueError(f"its row of {split.describe(int(ids[differs][0]))} differs from the manifest")
    offset = np.full(split.num_samples, -1, np.int64)
    offset[ids] = start
    return offset
