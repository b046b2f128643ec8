"""Generated images, trees and tars of them, and helpers to run the converter."""

import functools
import hashlib
import io
import os
import struct
import subprocess
import sys
import tarfile
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli import commands
from udkd.data.dataset import DatasetFolder
from udkd.data_prep.convert import ConvertSettings, convert
from udkd.utils.progress import Silent

ROOT = Path(__file__).resolve().parent.parent.parent


def needs_ffcv() -> ModuleType:
    """The package ffcv, the format's own reader and writer. Skips the test if it is not installed.

    Importing it sets PyTorch to one thread, process-wide; the number of threads is restored. Its table of image modes becomes a
    plain dict instead of numba's: compiling that takes 7 of the import's 7.5 seconds, and no compiled code reads the table.
    """
    numba_typed = pytest.importorskip("numba.typed")
    threads, typed = torch.get_num_threads(), numba_typed.Dict
    numba_typed.Dict = dict
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports distutils
            return pytest.importorskip("ffcv", exc_type=ImportError)
    finally:
        numba_typed.Dict = typed
        torch.set_num_threads(threads)


def picture(seed: int | str, height: int = 40, width: int = 56, mode: str = "RGB") -> Image.Image:
    """A smooth image with some detail, like a photograph."""
    rng = np.random.default_rng(zlib.crc32(str(seed).encode()))
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse).astype(int) + rng.integers(-6, 7, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


@functools.cache
def photo(seed: int | str, height: int = 40, width: int = 56, **options: object) -> bytes:
    return encoded(picture(seed, height, width), **options)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def small_set(train: int = 6, val: int = 2, classes: tuple[str, ...] = ("n01440764", "n01443537")) -> dict[str, bytes]:
    """Paths and JPEGs of various sizes."""
    return {
        f"{split}/{name}/{name}_{n}.JPEG": photo(f"{split}{name}{n}", 30 + 7 * n % 40, 33 + 11 * n % 50)
        for split, count in (("train", train), ("val", val))
        for name in classes
        for n in range(count)
    }


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_tar(path: Path, files: Mapping[str, bytes], prefix: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def converted(source: Path | list[Path], folder: Path, observer: Silent | None = None, **settings: object) -> DatasetFolder:
    sources = source if isinstance(source, list) else [source]
    return convert(sources, folder, ConvertSettings(**{"side": 64, **settings}), observer or Silent())  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, str]:
    """Relative path and checksum of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def children(pid: int) -> set[int]:
    """The ids of a process's children."""
    pids = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            pids.add(int(stat.parent.name))
    return pids


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "udkd.data_prep.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(*arguments: object, limit_bytes: int = 0, environment: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `udkd data …`. limit_bytes: of a file, as on a full disk."""
    variables = {"PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}  # the limit would truncate bytecode files
    return commands.run(*arguments, module="udkd.data_prep", limit_bytes=limit_bytes, variables=variables)
