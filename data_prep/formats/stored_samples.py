"""Stored samples as sent to worker processes, which read and check them without the manifest."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from udkd.data.dataset import Split
from udkd.data.shards import read_sample


@dataclass(frozen=True, slots=True)
class StoredSample:
    """Where the bytes of one sample are stored, and what is expected of them. offset, size: bytes. height, width: pixels."""

    sample_id: int
    label: int
    shard: int
    offset: int
    size: int
    sha256: bytes
    height: int
    width: int
    what: str

    def read(self, folder: Path) -> bytes:
        """The checked JPEG bytes. folder: of the split. Raises DataError."""
        return read_sample(folder, self.shard, self.offset, self.size, self.sha256, self.what)


def stored_samples(split: Split, ids: np.ndarray) -> list[StoredSample]:
    """The samples of some ids, none of which is excluded."""
    return [
        StoredSample(
            sample_id=n,
            label=int(split.labels[n]),
            shard=int(split.shard[n]),
            offset=int(split.offset[n]),
            size=int(split.size[n]),
            sha256=split.sha256[n].tobytes(),
            height=int(split.sizes[n, 2]),
            width=int(split.sizes[n, 3]),
            what=split.describe(n),
        )
        for n in ids.tolist()
    ]
