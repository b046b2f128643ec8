"""The resident format: canvas.npy (uint8 [N, S, S, 3]), canvas.crc32.npy (uint32 [N]) and canvas.json, written last.

Excluded rows are zeros. The pixels are decoded by Pillow from the stored bytes: libjpeg islow, fancy upsampling.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from udkd.data.derived import DERIVED, is_derived, remove_derived
from udkd.utils.errors import DataError
from udkd.utils.files import atomic_write, fsync_folder, read_exact_json, sha256_file, write_json
from udkd.utils.operating_system import reserve_space
from udkd.utils.printable import shorten

FORMAT = "udkd-canvas"
VERSION = 1
DESCRIPTION_NAME = DERIVED["resident"].description
DATA_NAME, CHECKSUM_NAME = DERIVED["resident"].data
PIXELS = "libjpeg islow, fancy upsampling"


def canvas_bytes(num_samples: int, side: int) -> int:
    """The size of canvas.npy in bytes, on disk or on a device, without its header: N · S · S · 3."""
    return num_samples * side * side * 3


def decode_canvas(jpeg: bytes, side: int, *, height: int, width: int, what: str, out: np.ndarray | None = None) -> np.ndarray:
    """Decode one stored sample: uint8 [S, S, 3], the image in the top left corner, zeros around it.

    out: the canvas to overwrite; None to allocate one. Every backend of this pixel class must match this decode bit for bit.
    what: the sample's name for the DataError.
    """
    with stored_image(jpeg, side, height=height, width=width, what=what) as image:
        pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        canvas = np.empty((side, side, 3), dtype=np.uint8) if out is None else out
        paste(pixels, canvas)
    return canvas


@contextlib.contextmanager
def stored_image(jpeg: bytes, side: int, *, height: int, width: int, what: str) -> Iterator[Image.Image]:
    """Open a stored JPEG and check its size; the block decodes the pixels. Any failure, also in the block, is a DataError."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            size = (image.height, image.width)
            if size != (height, width) or max(size) > side:
                raise DataError(
                    f"{what}: the stored JPEG is {size[0]} x {size[1]} px; expected {height} x {width} within {side}; "
                    "convert again"
                )
            yield image
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{what}: the stored JPEG does not decode ({error}); expected what udkd data convert checked; convert again"
        ) from None


def paste(pixels: np.ndarray, canvas: np.ndarray) -> None:
    """Copy an image [h, w, 3] into the top left corner of a canvas [S, S, 3] and zero the rest."""
    height, width, _ = pixels.shape
    canvas[:height, :width] = pixels
    canvas[:height, width:] = 0
    canvas[height:] = 0


def _npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


class CanvasWriter:
    """Creates canvas.npy.tmp at its full size, for any number of processes to write rows to; `finish` renames it.

    The disk space is reserved first, so that a full disk is an OSError here instead of a failure midway. Write rows with
    `pwrite`, not through a memory map, which turns an I/O error into SIGBUS.
    """

    def __init__(self, folder: Path, *, num_samples: int, side: int, digest: str) -> None:
        self.folder = folder
        self.shape = (num_samples, side, side, 3)
        self.digest = digest
        self.temporary = folder / (DATA_NAME + ".tmp")
        header = _npy_header(self.shape, "|u1")
        self.start = len(header)
        self.row_bytes = canvas_bytes(1, side)
        remove_derived(folder, "resident")
        with open(self.temporary, "wb") as file:
            file.write(header)
            file.flush()
            try:
                reserve_space(file.fileno(), self.start + canvas_bytes(num_samples, side))
            except OSError:
                self.temporary.unlink()
                raise

    def offset(self, sample_id: int) -> int:
        """The byte offset of a sample's row in the temporary file."""
        return self.start + sample_id * self.row_bytes

    def finish(self, crc32: np.ndarray) -> None:
        """Sync the rows and give the files their final names. crc32: uint32 [N], of each row's S · S · 3 bytes."""
        with open(self.temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary, self.folder / DATA_NAME)
        with atomic_write(self.folder / CHECKSUM_NAME) as file:
            file.write(_npy_header((self.shape[0],), "<u4"))
            file.write(crc32.astype("<u4").tobytes())
        fsync_folder(self.folder)
        write_json(
            self.folder / DESCRIPTION_NAME,
            {
                "format": FORMAT,
                "version": VERSION,
                "dataset_digest": self.digest,
                "split": self.folder.name,
                "shape": list(self.shape),
                "pixels": PIXELS,
                "crc32_sha256": sha256_file(self.folder / CHECKSUM_NAME),
            },
        )


def open_canvas(folder: Path, *, num_samples: int, side: int, digest: str) -> tuple[np.memmap, np.ndarray]:
    """Map canvas.npy read-only and load its row checksums.

    Returns uint8 [N, S, S, 3] and uint32 [N]. Raises DataError if the resident format is absent or damaged, or has another
    dataset, version, shape or size. No pixels are read: when you use a row, compare its zlib.crc32 with the second array.
    """
    remedy = "write it again with udkd data derive"
    shape = (num_samples, side, side, 3)
    path = folder / DESCRIPTION_NAME
    if not is_derived(folder, "resident"):
        raise DataError(f"{folder} has no resident format; expected canvas.npy and canvas.json; write it with udkd data derive")
    try:
        stored = {"split": folder.name, **read_exact_json(path)}  # the first writers of version 1 left the split out
    except (ValueError, TypeError):
        raise DataError(f"{path} is damaged; expected a description of canvas.npy; {remedy}") from None
    expected = {
        "format": FORMAT,
        "version": VERSION,
        "dataset_digest": digest,
        "split": folder.name,  # train and val share one digest
        "shape": list(shape),
        "pixels": PIXELS,
        "crc32_sha256": stored.get("crc32_sha256"),
    }
    for name in sorted(set(stored) | set(expected)):
        value = expected.get(name)
        if stored.get(name) != value:
            stored_value = shorten(repr(stored.get(name)))
            raise DataError(f"{path}: {name} is {stored_value}; expected {value!r}; the canvas belongs to other data, {remedy}")
    for file, header, size_bytes in (
        (folder / DATA_NAME, _npy_header(shape, "|u1"), canvas_bytes(num_samples, side)),
        (folder / CHECKSUM_NAME, _npy_header((num_samples,), "<u4"), 4 * num_samples),
    ):
        _check_npy(file, header, size_bytes, remedy)
    if sha256_file(folder / CHECKSUM_NAME) != stored["crc32_sha256"]:
        raise DataError(f"{folder / CHECKSUM_NAME} does not match its checksum in canvas.json; expected it to; {remedy}")
    if num_samples == 0:
        raise DataError(f"{folder} holds no samples; expected at least one; convert again")
    canvas = np.lib.format.open_memmap(folder / DATA_NAME, mode="r")
    return canvas, np.load(folder / CHECKSUM_NAME, allow_pickle=False)


def _check_npy(path: Path, header: bytes, size_bytes: int, remedy: str) -> None:
    actual = path.stat().st_size if path.is_file() else -1
    if actual != len(header) + size_bytes:
        raise DataError(
            f"{path} has {max(actual, 0)} bytes; expected {len(header) + size_bytes}; "
            f"it is truncated or of other data, {remedy}"
        )
    with open(path, "rb") as file:
        if file.read(len(header)) != header:
            raise DataError(f"{path} has another array header; expected the shape that canvas.json names; {remedy}")
