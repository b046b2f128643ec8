"""Descriptions of stored samples for worker processes, which read and check the samples without the manifest."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from udkd.data.dataset import Split
from udkd.data.shards import read_sample


@dataclass(frozen=True, slots=True)
class StoredSample:
    """Where a sample's bytes are stored, and what they should be. offset, size: bytes. height, width: pixels. what: a name."""

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
        """The JPEG bytes, checked by their sha256. folder: the split's. Raises DataError."""
        return read_sample(folder, self.shard, self.offset, self.size, self.sha256, self.what)


def stored_samples(split: Split, ids: np.ndarray) -> list[StoredSample]:
    """Descriptions of the samples `ids`, none of which is excluded."""
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
