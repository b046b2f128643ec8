"""A view's targets for training: copied to a device, or gathered from the memory-mapped file.

Letters: N ids of the split, B ids of a batch, C classes.
"""

from collections.abc import Mapping
from typing import Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udkd.augment.mixing import MixedLabels
from udkd.losses.sample_weight import SampleWeighting, sample_weight, uncertainty_of
from udkd.losses.storage import dense_logits, rest_logit, scatter_logits
from udkd.teacher.cache.view_file import ViewFile
from udkd.utils.rng import Stream, permutation

_ROWS_AT_ONCE = 1 << 16
_MEMORY_FRACTION = 0.5  # of a device's free memory for one view: networks and gradients need the rest


class TargetTable(Protocol):
    """The targets of one view."""

    def lookup(self, ids_B: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher logits [B, C] and weight float32 [B] of int64 ids [B], all on the table's device.

        CacheError: a damaged block. An excluded id fails an assertion where the file is mapped. Where the targets are on the
        device, it has a NaN weight, because a check would synchronise the device.
        """

    def features(self, ids_B: Tensor) -> Tensor:
        """The teacher's pooled features of int64 ids [B], float16 [B, D], on the table's device; only if opened with them."""


def open_table(
    file: ViewFile,
    device: torch.device,
    weighting: SampleWeighting,
    labels_N: Tensor | MixedLabels | None,
    *,
    features: bool = False,
    in_memory: bool = False,
    into: "DeviceTable | None" = None,
) -> TargetTable:
    """The fastest table that fits. features: include the teacher's.

    labels_N: int64 [N], or those of the view's mixed samples, for weights that need them.
    in_memory: a DeviceTable on any device, whether it fits or not. into: another view's table, to be overwritten.
    """
    wanted = ("logits", "classes", "tail", *(("features",) if features else ()))
    num_bytes = sum(array.nbytes for name, array in file.arrays.items() if name in wanted)
    mapped = MappedTable(file, device, weighting, labels_N)
    is_large = device.type == "cuda" and num_bytes > _MEMORY_FRACTION * torch.cuda.mem_get_info(device)[0]
    if into is None and not in_memory and (device.type == "cpu" or is_large):
        return mapped
    for block in range(file.header.num_blocks):
        file.require_block(block)
    rows = {
        name: torch.from_numpy(array.astype(np.int32) if name == "classes" else array)
        for name, array in file.arrays.items()
        if name in wanted
    }
    # On the device where a live teacher's weights are computed: a division rounds differently on another one.
    weight_N = mapped.all_weights()
    if into is not None:
        into.overwrite(rows, weight_N)
        return into
    on_device = {name: array.to(device, copy=True) for name, array in rows.items()}
    return DeviceTable(on_device, weight_N, file.header.key.num_classes)


@final
class MappedTable:
    """Gathers rows from the mapped file; a block is verified when a lookup first touches it.

    Weights are computed per batch, so that the table needs no memory per id. Exception: for the top-k form on a CPU it keeps
    one float32 per id, the logit of the classes that were not kept: without it small batches take three times as long to
    rebuild. For caches larger than a GPU's memory: ids are copied to the host and rows to the device.

    labels_N: for weights that need them; they may be set to None while no weight is looked up.
    """

    def __init__(
        self, file: ViewFile, device: torch.device, weighting: SampleWeighting, labels_N: Tensor | MixedLabels | None
    ) -> None:
        self._file = file
        self._device = device
        self._weighting = weighting
        self.labels_N = labels_N
        self._uncertainty = uncertainty_of(weighting.kind)
        self._arrays = {name: torch.from_numpy(array) for name, array in file.arrays.items() if name != "classes"}
        self._verified: NDArray[np.bool_] = np.zeros(file.header.num_blocks, np.bool_)
        self._unverified = file.header.num_blocks
        keeps_rest = device.type == "cpu" and "classes" in file.arrays
        self._rest_logit_N = torch.empty(file.header.num_rows) if keeps_rest else None  # filled as blocks are verified
        self._source_N = self._shuffled() if weighting.control == "shuffled" else None
        self._mean = self._mean_weight() if weighting.control == "equal_mean" or weighting.mean_one else 1.0

    def lookup(self, ids_B: Tensor) -> tuple[Tensor, Tensor]:
        """See TargetTable."""
        rows_B = ids_B.cpu()
        logits_BC = self.logits(rows_B)
        if self._weighting.control == "equal_mean":
            weight_B = torch.full(rows_B.shape, self._mean, device=self._device)
        elif self._source_N is not None:
            weight_B = self.weight(self._source_N[rows_B].long())
        else:
            weight_B = self.weight(rows_B, logits_BC)
        return logits_BC, weight_B / self._mean if self._weighting.mean_one else weight_B

    def logits(self, rows_B: Tensor) -> Tensor:
        """Logits [B, C], on the table's device, of ids on the host."""
        self._verify(rows_B.numpy())
        logits, num_classes = self._gathered("logits", rows_B), self._file.header.key.num_classes
        if "classes" not in self._file.arrays:
            return logits
        classes = torch.from_numpy(self._file.arrays["classes"][rows_B.numpy()].astype(np.int64)).to(self._device)
        if self._rest_logit_N is not None:
            return scatter_logits(logits, classes, self._rest_logit_N.index_select(0, rows_B), num_classes)
        return dense_logits(logits, classes, self._gathered("tail", rows_B), num_classes)

    def features(self, ids_B: Tensor) -> Tensor:
        """See TargetTable."""
        rows_B = ids_B.cpu()
        self._verify(rows_B.numpy())
        return self._gathered("features", rows_B)

    def weight(self, rows_B: Tensor, logits_BC: Tensor | None = None) -> Tensor:
        """Weight [B] before any control, on the table's device, of ids on the host. logits_BC: of these ids, if known."""
        if logits_BC is None:
            logits_BC = self.logits(rows_B)
        uncertainty_B = None if self._uncertainty is None else self._gathered(self._uncertainty, rows_B)
        labels_B = self._labels(rows_B)
        members = self._file.header.key.num_members
        return sample_weight(self._weighting.kind, logits_BC, uncertainty_B, labels_B, num_members=members)

    def _labels(self, rows_B: Tensor) -> Tensor | MixedLabels | None:
        if isinstance(self.labels_N, MixedLabels):
            return MixedLabels(*(values_N[rows_B].to(self._device) for values_N in self.labels_N))
        return None if self.labels_N is None else self.labels_N[rows_B].to(self._device)

    def all_weights(self) -> Tensor:
        """Weight [N] of every id as `lookup` gives it, on the table's device; NaN for excluded ids."""
        weight_N = torch.full((self._file.header.num_rows,), torch.nan, device=self._device)
        for rows_B in self._kept_ids():
            weight_N[rows_B.to(self._device)] = self.lookup(rows_B)[1]
        return weight_N

    def _gathered(self, name: str, rows_B: Tensor) -> Tensor:
        return self._arrays[name].index_select(0, rows_B).to(self._device)

    def _kept_ids(self) -> list[Tensor]:
        """The ids that are not excluded, in chunks."""
        entropy_N = self._file.uncertainties["entropy"]
        starts = range(0, len(entropy_N), _ROWS_AT_ONCE)
        chunks = (np.flatnonzero(~np.isnan(entropy_N[start : start + _ROWS_AT_ONCE])) + start for start in starts)
        return [torch.from_numpy(chunk) for chunk in chunks]

    def _mean_weight(self) -> float:
        chunks = self._kept_ids()
        return sum(float(self.weight(rows_B).double().sum()) for rows_B in chunks) / max(1, sum(map(len, chunks)))

    def _shuffled(self) -> Tensor:
        """The id whose weight each id gets, int32 [N]: its successor in a shuffled cycle, so that no id keeps its weight."""
        ids = torch.cat(self._kept_ids()).numpy()
        cycle = permutation(ids, self._weighting.seed, Stream.WEIGHT_SHUFFLE)
        source_N = np.zeros(self._file.header.num_rows, np.int32)
        source_N[cycle] = np.roll(cycle, -1)
        return torch.from_numpy(source_N)

    def _verify(self, rows_B: NDArray[np.int64]) -> None:
        if self._unverified:
            blocks = rows_B // self._file.header.key.block_rows
            for block in np.unique(blocks[~self._verified[blocks]]).tolist():
                self._file.require_block(block)
                if self._rest_logit_N is not None:
                    rows, num_classes = slice(*self._file.header.block_range(block)), self._file.header.key.num_classes
                    self._rest_logit_N[rows] = rest_logit(self._arrays["logits"][rows], self._arrays["tail"][rows], num_classes)
                self._verified[block] = True
                self._unverified -= 1
        assert not np.isnan(self._file.uncertainties["entropy"][rows_B]).any(), "lookup of an excluded id"


@final
class DeviceTable:
    """All targets on the device: a lookup is one gather for the logits and one for the weights.

    rows: by name, logits float16 or float32 [N, C], or of the top-k form logits [N, k], classes int32 [N, k], tail [N];
    features float16 [N, D] where they are needed.
    weight: float32 [N].
    """

    def __init__(self, rows: Mapping[str, Tensor], weight_N: Tensor, num_classes: int) -> None:
        self._rows = rows
        self._num_classes = num_classes
        self.weight = weight_N

    def overwrite(self, rows: Mapping[str, Tensor], weight_N: Tensor) -> None:
        """Copy another view's rows and weights into the same memory, from which a CUDA graph reads."""
        for name, array in rows.items():
            self._rows[name].copy_(array)
        self.weight.copy_(weight_N)

    def lookup(self, ids_B: Tensor) -> tuple[Tensor, Tensor]:
        """See TargetTable."""
        rows = {name: array.index_select(0, ids_B) for name, array in self._rows.items() if name != "features"}
        logits = rows["logits"]
        if "classes" in rows:
            logits = dense_logits(logits, rows["classes"], rows["tail"], self._num_classes)
        return logits, self.weight.index_select(0, ids_B)

    def features(self, ids_B: Tensor) -> Tensor:
        """See TargetTable."""
        return self._rows["features"].index_select(0, ids_B)
