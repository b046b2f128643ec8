"""Opens a dataset folder and reads the samples of its splits."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from udkd.data.canvas import canvas_bytes, decode_canvas, open_canvas
from udkd.data.derived import DERIVED, is_derived
from udkd.data.header import ClassName, Fit, Header, SplitHeader, content_digest, read_header
from udkd.data.manifest import FILE_NAME, Columns, read_manifest
from udkd.data.shards import OpenShards, damaged_sample, shard_name
from udkd.utils.crc32c import crc32c
from udkd.utils.errors import DataError

_MAX_SOURCE_PX = 1 << 30
"""Largest side of a source image: beyond it products of coordinates in udkd.augment.views would not fit in 64 bits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split(Columns):
    """One split: the columns of its manifest, and methods that read its bytes and pixels.

    name: "train" or "val". path: the split's folder. side: S, pixels. digest: the digest of the dataset folder.
    """

    name: str
    path: Path
    side: int
    digest: str

    def describe(self, sample_id: int) -> str:
        """A sample's name in errors: split, id and source name."""
        return f"{self.name} sample {sample_id} ({self.source[sample_id]})"

    def shard_path(self, sample_id: int) -> Path:
        """The path of the tar with a sample's bytes."""
        return self.path / f"{shard_name(int(self.shard[sample_id]))}.tar"

    def read(self, sample_id: int) -> bytes:
        """The stored JPEG bytes of a sample, verified by their crc32c. Safe in threads and forked processes.

        Raises DataError, naming id and source, for an unknown id, an excluded sample, and a missing or damaged shard.
        """
        if not 0 <= sample_id < self.num_samples:
            raise DataError(
                f"{self.path} has no {self.name} sample {sample_id}; expected an id from 0 to {self.num_samples - 1}"
            )
        if self.excluded[sample_id]:
            raise DataError(
                f"{self.describe(sample_id)} is excluded ({self.note[sample_id]}); "
                "expected an order without it; take ids from Split.ids"
            )
        (data,) = self.read_many(np.array([sample_id]))
        return data

    def read_many(self, ids: np.ndarray) -> Iterator[bytes]:
        """Yield the bytes of samples in turn, as `read` does, opening each shard once. ids: int64, checked by `order`."""
        columns = (ids, self.shard[ids], self.offset[ids], self.size[ids], self.crc32c[ids])
        with OpenShards(self.path) as shards:
            for sample_id, shard, offset, size, crc in zip(*(column.tolist() for column in columns), strict=True):
                # Formatting a name costs as much as reading a small sample: only errors do it.
                data = shards.read(shard, offset, size, partial(self.describe, sample_id))
                if crc32c(data) != crc:
                    raise damaged_sample(shard, offset, size, len(data), self.describe(sample_id))
                yield data

    def pixels(self, sample_id: int, out: np.ndarray | None = None) -> np.ndarray:
        """Decode a sample to its canvas, uint8 [S, S, 3], in `out` if given. The reference for the exact backends."""
        _, _, height, width = self.sizes[sample_id].tolist()
        what = self.describe(sample_id)
        return decode_canvas(self.read(sample_id), self.side, height=height, width=width, what=what, out=out)

    def order(self, ids: np.ndarray) -> np.ndarray:
        """A checked, contiguous int64 copy of `ids` for a backend.

        Raises DataError for an id that does not exist or is excluded; a backend would deliver zeros or other pixels for it.
        """
        assert ids.dtype.kind in "iu", f"ids are integers, not {ids.dtype}"
        order = np.array(ids, dtype=np.int64)
        outside = order[(order < 0) | (order >= self.num_samples)]
        if len(outside):
            raise DataError(
                f"{self.path} has no {self.name} sample {outside[0]}; expected an id from 0 to {self.num_samples - 1}"
            )
        excluded = order[self.excluded[order]]
        if len(excluded):
            raise DataError(
                f"{self.describe(excluded[0])} is excluded ({self.note[excluded[0]]}); "
                "expected an order without it; take ids from Split.ids"
            )
        return order

    def has(self, derived: str) -> bool:
        """Whether a derived format (a name of DERIVED) is present; opening it may still fail."""
        return is_derived(self.path, derived)

    def canvas(self) -> tuple[np.memmap, np.ndarray]:
        """Open the resident format: uint8 [N, S, S, 3], mapped read-only, and each row's crc32, uint32 [N].

        Raises DataError if it is absent or belongs to another dataset, or if its shape or size differs.
        """
        return open_canvas(self.path, num_samples=self.num_samples, side=self.side, digest=self.digest)


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetFolder:
    """An open dataset folder. Opening checks the manifests and the digest; `udkd data verify` checks every byte.

    side: S, pixels. fit: "pad" or "squash". classes: index i is label i. encoder: how images were encoded, by setting.
    digest: sha256 of the content, in hex. splits: by name.
    """

    path: Path
    side: int
    fit: Fit
    classes: tuple[ClassName, ...]
    encoder: dict[str, object]
    digest: str
    splits: dict[str, Split]

    @staticmethod
    def open(path: Path) -> "DatasetFolder":
        """Open a finished folder.

        Raises DataError for a wrong path, an unfinished folder, another format version, or a manifest that does not match.
        """
        path = Path(path)
        return DatasetFolder.load(path, read_header(path))

    @staticmethod
    def load(path: Path, header: Header, *, before_shards: bool = False) -> "DatasetFolder":
        """Open a folder with this header, before dataset.json exists. Errors: see `open`.

        before_shards: the shards may be missing, too; they are copied later.
        """
        for folder, part in header.splits.items():
            if not before_shards:
                _check_counts(path / folder, part, header.side)
        columns: dict[str, Columns] = {
            name: read_manifest(
                path / name / FILE_NAME, samples=part.samples, size_bytes=part.manifest_bytes, sha256=part.manifest_sha256
            )
            for name, part in header.splits.items()
        }
        digest = content_digest(
            side=header.side, fit=header.fit, encoder=header.encoder, classes=header.classes, splits=columns
        )
        if digest != header.digest:
            raise DataError(
                f"{path}: manifests and dataset.json differ (digest {digest[:16]}… against {header.digest[:16]}…); "
                "expected one conversion's files; convert again"
            )
        for name, rows in columns.items():
            _check_columns(path / name / FILE_NAME, rows, header.side, len(header.classes))
        splits = {
            name: Split(name=name, path=path / name, side=header.side, digest=digest, **vars(rows))
            for name, rows in columns.items()
        }
        return DatasetFolder(
            path=path,
            side=header.side,
            fit=header.fit,
            classes=header.classes,
            encoder=header.encoder.model_dump(mode="json"),
            digest=digest,
            splits=splits,
        )

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the formats: "shards", then each derived format (DERIVED) that every split has."""
        return ("shards", *(name for name in DERIVED if all(split.has(name) for split in self.splits.values())))

    def split(self, name: str) -> Split:
        """A split by name. Raises DataError if the folder has none of that name."""
        if name not in self.splits:
            raise DataError(f"{self.path} has no split {name!r}; expected one of {', '.join(self.splits)}")
        return self.splits[name]

    @property
    def train(self) -> Split:
        """The training split."""
        return self.split("train")

    @property
    def val(self) -> Split:
        """The validation split. Raises DataError if the folder has none."""
        return self.split("val")


class Dataset(DatasetFolder):
    """A dataset folder, opened by its path.

    train, val: its splits. Raises DataError: see DatasetFolder.open.

        data = udkd.Dataset("quickstart/data")
        data.classes[0]  # the class of label 0
        data.train.ids  # int64, the kept samples
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(**vars(DatasetFolder.open(Path(path))))


_ALWAYS_READ = 2_000_000  # rows; they take 0.3 GB and some seconds
_MIN_SAMPLE_BYTES = 256  # in any format


def _check_counts(folder: Path, part: SplitHeader, side: int) -> None:
    """Check a large manifest's count against the sizes of the data files before reading it. Raises DataError."""
    if part.samples <= _ALWAYS_READ:
        return
    kept = part.samples - part.excluded
    least = kept * min(_MIN_SAMPLE_BYTES, canvas_bytes(1, side))
    size_bytes = sum(path.stat().st_size for path in folder.glob("*") if path.is_file() and path.name != FILE_NAME)
    if size_bytes < least or part.excluded > kept + _ALWAYS_READ:
        raise DataError(
            f"{folder} lists {kept:,} samples and {part.excluded:,} excluded ones, and its files have {size_bytes:,} bytes; "
            f"expected {least:,} or more; the folder is damaged or parts are missing, copy all of it or convert again"
        )


def _check_columns(path: Path, rows: Columns, side: int, num_classes: int) -> None:
    """Check the ranges that indexing relies on: a checksum proves only that the file is as it was written."""
    kept = ~rows.excluded
    in_range = (
        bool(np.all((rows.labels >= 0) & (rows.labels < num_classes)))
        and bool(np.all((rows.sizes[kept] >= 1) & (rows.sizes[kept] <= _MAX_SOURCE_PX)))
        and bool(np.all(rows.sizes[kept, 2:] <= side))
        and bool(np.all((rows.shard[kept] >= 0) & (rows.offset[kept] >= 0) & (rows.size[kept] > 0)))
        and bool(np.all(rows.size[kept] < 2**31))  # decoders refuse larger JPEGs
    )
    if not in_range:
        raise DataError(
            f"{path} holds labels, sizes or offsets out of range; expected what udkd data convert writes; convert again"
        )
