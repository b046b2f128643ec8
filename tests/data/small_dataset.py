"""A dataset folder of a few samples, written through the format's helpers."""

import hashlib
import io
import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from udkd.data.canvas import CanvasWriter
from udkd.data.dataset import DatasetFolder, Split
from udkd.data.header import ClassName, Encoder, Header, SplitHeader, content_digest
from udkd.data.manifest import ManifestRow, read_manifest, rows_to_columns, write_manifest
from udkd.data.shards import ShardWriter
from udkd.utils.crc32c import crc32c
from udkd.utils.files import sha256_file

SIDE = 24
CLASSES = (ClassName(wnid="n01", name="tench"), ClassName(wnid="n02", name="goldfish"))


def jpeg(rng: np.random.Generator, height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make_dataset(folder: Path, *, seed: int = 0, samples: int = 5) -> DatasetFolder:
    """A folder with two splits written through the format's helpers; sample 2 of each is excluded."""
    rng = np.random.default_rng(seed)
    headers: dict[str, SplitHeader] = {}
    columns = {}
    for name in ("train", "val"):
        split = folder / name
        split.mkdir(parents=True)
        rows = []
        for first in range(0, samples, 2):
            with ShardWriter(split, first // 2) as shard:
                for n in range(first, min(first + 2, samples)):
                    label = n * 2 // samples
                    if n == 2:
                        rows.append(ManifestRow(label=label, source=f"c/{n}.jpg", excluded=True, note="truncated"))
                        continue
                    height, width = int(rng.integers(1, SIDE + 1)), SIDE
                    data = jpeg(rng, height, width)
                    rows.append(
                        ManifestRow(
                            label=label,
 source=f"c/{n}.jpg",
 source_height=height * 3,
 source_width=width * 3,
 height=height,

                            width=width,
 sha256=hashlib.sha256(data).digest(),
 crc32c=crc32c(data),
 shard=first // 2,
 offset=shard.add(n, data, label),
 size=len(data),

                        )
                    )  # fmt: skip
        path = split / "manifest.parquet"
        write_manifest(path, rows_to_columns(rows))
        headers[name] = SplitHeader(
            samples=samples, excluded=1, manifest_bytes=path.stat().st_size, manifest_sha256=sha256_file(path)
        )
        columns[name] = read_manifest(
            path, samples=samples, size_bytes=path.stat().st_size, sha256=headers[name].manifest_sha256
        )
    encoder = Encoder(quality=95, subsampling="4:4:4")
    digest = content_digest(side=SIDE, fit="pad", encoder=encoder, classes=CLASSES, splits=columns)
    Header(side=SIDE, fit="pad", encoder=encoder, classes=CLASSES, splits=headers, digest=digest).write(folder)  # type: ignore[arg-type]
    return DatasetFolder.open(folder)


def write_canvas(split: Split) -> None:
    writer = CanvasWriter(split.path, num_samples=split.num_samples, side=split.side, digest=split.digest)
    crc = np.full(split.num_samples, zlib.crc32(bytes(writer.row_bytes)), dtype=np.uint32)
    with open(writer.temporary, "rb+") as file:
        for n in split.ids.tolist():
            row = split.pixels(n).tobytes()
            crc[n] = zlib.crc32(row)
            file.seek(writer.offset(n))
            file.write(row)
    writer.finish(crc)


def edit_header(folder: Path, **changes: object) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
