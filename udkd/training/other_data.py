"""Other data to evaluate a run on: a test set of the run's classes, in any order, or of some of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udkd.data.batch import Backend, Batch
from udkd.data.dataset import DatasetFolder, Split
from udkd.training.run_folder import RunFolder
from udkd.utils.errors import ConfigError, DataError, RunError
from udkd.utils.printable import printable

SplitName = Literal["val", "train"]
_MAX_NAME_BYTES = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class OtherData:
    """A split of a dataset folder and what its labels are to a run.

    name: of the results. outputs: int64 [labels], the index of each label's class among the run's. classes_present: how many
    classes have images in the split.
    """

    name: str
    dataset: DatasetFolder
    split: Split
    outputs: Tensor
    classes_present: int

    @classmethod
    def of(cls, dataset: DatasetFolder, classes: Sequence[str], split: SplitName | None, name: str) -> "OtherData":
        """A split by name; None for val, or train where there are no images in val. name: "" for the folder's.

        classes: wnid or folder name of each of the run's outputs. DataError: a class that the run lacks, no such split, no
        images. ConfigError: a name that a file cannot have.
        """
        outputs = _outputs(dataset, classes)
        chosen = split or ("val" if "val" in dataset.splits and len(dataset.val.ids) else "train")
        samples = dataset.split(chosen)
        if not len(samples.ids):
            raise DataError(f"{dataset.path} has no {chosen} images; expected some to evaluate on; choose another --split")
        default = dataset.path.resolve().name + ("-train" if split == "train" else "")
        return cls(
            name=_checked_name(name or default),
            dataset=dataset,
            split=samples,
            outputs=torch.from_numpy(outputs),
            classes_present=len(np.unique(samples.labels[samples.ids])),
        )

    def require_no_others(self, run: RunFolder) -> None:
        """RunError where the run has results of this name on other images."""
        earlier = run.other_evaluation(self.name)
        if earlier is None:
            return
        stored, wanted = (earlier["dataset_digest"], earlier["split"]), (self.dataset.digest, self.split.name)
        if stored != wanted:
            raise RunError(
                f"{run.other_evaluation_path(self.name)} is of other images ({stored[1]}, digest {stored[0][:12]}…); "
                f"expected {wanted[1]}, digest {wanted[0][:12]}…, to replace it; give another --name, or remove it"
            )


class RelabelledBackend:
    """A backend whose labels are the run's outputs. outputs: int64, of each label."""

    def __init__(self, backend: Backend, outputs: Tensor) -> None:
        self._backend, self._outputs = backend, outputs
        self.num_samples, self.describe, self.close = backend.num_samples, backend.describe, backend.close

    def epoch(self, order: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """See `Backend.epoch`."""
        for batch in self._backend.epoch(order, batch_size):
            yield replace(batch, labels=self._outputs.to(batch.labels.device)[batch.labels])


def _outputs(dataset: DatasetFolder, classes: Sequence[str]) -> NDArray[np.int64]:
    """The index among `classes` of each class of a dataset."""
    index = {wnid: output for output, wnid in enumerate(classes)}
    unknown = [entry.wnid for entry in dataset.classes if entry.wnid not in index]
    if unknown:
        raise DataError(
            f"{dataset.path} has the class {printable(unknown[0], 60)}, which the run lacks ({len(unknown)} of its "
            f"{len(dataset.classes)} classes are unknown); expected such as {printable(classes[0], 60)}; convert only those"
        )
    return np.array([index[entry.wnid] for entry in dataset.classes], np.int64)


def _checked_name(name: str) -> str:
    if "/" in name or name.startswith(".") or printable(name, None) != name or not 0 < len(name.encode()) <= _MAX_NAME_BYTES:
        raise ConfigError(
            f"the results are named {printable(name, 60)!r}, and a file is named after it; expected up to "
            f"{_MAX_NAME_BYTES} bytes without a slash or a leading dot; give another --name"
        )
    return name
