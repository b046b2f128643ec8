"""A backend from outside the package: one class with one registration.

It decodes samples one by one in the calling thread, and main() compares its canvases with the `folder` backend's.

python examples/custom_backend.py --data quickstart/data
"""

import argparse
from collections.abc import Iterator

import numpy as np
import torch

import udkd
from udkd.data.batch import Batch
from udkd.data.dataset import Split


@udkd.register_backend("one_by_one")
class OneByOneBackend:
    """Decodes with Split.pixels, the reference that every backend must equal."""

    def __init__(self, split: Split, device: torch.device, *, workers: int = 0) -> None:
        self.num_samples = split.num_samples
        self._split = split
        self._device = device

    def epoch(self, order: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """Batches of exactly the ids in `order`; Split.order refuses ids without an image."""
        ids_N = self._split.order(order)
        for start in range(0, len(ids_N), batch_size):
            ids_B = ids_N[start : start + batch_size]
            canvas_BSS3 = np.stack([self._split.pixels(int(sample_id)) for sample_id in ids_B])
            labels_B = self._split.labels[ids_B].astype(np.int64)
            arrays = {"ids": ids_B, "canvas": canvas_BSS3, "labels": labels_B}
            yield Batch(**{name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()})

    def close(self) -> None:
        """Nothing is kept open."""

    def describe(self) -> str:
        """The pixel class, a field of every cache's key: equal texts promise equal bits."""
        return "libjpeg islow, fancy upsampling"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="quickstart/data", help="dataset folder")
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()

    split = udkd.Dataset(args.data).train
    with (
        udkd.Loader(split, args.batch_size, device="cpu", backend="one_by_one") as custom,
        udkd.Loader(split, args.batch_size, device="cpu", backend="folder") as reference,
    ):
        for batch, expected in zip(custom.epoch(0), reference.epoch(0), strict=True):
            assert torch.equal(batch.ids, expected.ids)
            assert torch.equal(batch.canvas, expected.canvas)
    print(f"{len(split.ids)} canvases equal those of the folder backend")


if __name__ == "__main__":
    main()
