"""Draws the views of all samples of a split in a thread, one table per view number, and applies them to batches."""

from collections.abc import Sequence
from concurrent.futures import Future
from threading import Thread

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udkd.augment.apply import ViewTable, apply_each
from udkd.augment.mixing import MixedLabels, pairs_together, partners
from udkd.augment.preprocessing import IMAGENET, NetworkInput, Preprocessing
from udkd.augment.views import Views, ViewSpec, draw_shares, draw_views
from udkd.data.batch import Batch
from udkd.data.dataset import Split
from udkd.utils.environment import resolve_device
from udkd.utils.errors import ConfigError

_KEPT = 2


class EpochViews:
    """Draws and keeps tables of views, one view for each of a split's N ids.

    130,000 ids take about 0.15 s and 10 MB; with RandAugment, erasing and mixing 0.3 s and 20 MB.
    """

    def __init__(self, spec: ViewSpec, seed: int, split: Split, device: torch.device) -> None:
        self.spec = spec
        self._seed = seed
        self._device = device
        self._ids = np.arange(split.num_samples, dtype=np.int64)
        self._kept = split.ids
        # Excluded rows have size 0, for which no view can be drawn; any other size will do, as no order contains them.
        self._sizes = np.where(split.excluded[:, None], 1, split.sizes)
        self._tables: dict[tuple[int, ViewSpec], ViewTable] = {}
        self._drawn: dict[tuple[int, ViewSpec], Future[Views]] = {}

    def table(self, view: int, spec: ViewSpec | None = None) -> ViewTable:
        """View number `view` of all N samples, indexed by sample id. Two tables are kept. spec: overrides self.spec."""
        key = (view, spec or self.spec)
        if key not in self._tables:
            self.prepare(view, spec)
            self._tables[key] = ViewTable.of(self._drawn.pop(key).result(), self._device)
            for old in list(self._tables)[:-_KEPT]:
                del self._tables[old]
        return self._tables[key]

    def prepare(self, view: int, spec: ViewSpec | None = None) -> None:
        """Start drawing a table in a thread, for a later call of `table`."""
        spec = spec or self.spec
        key = (view, spec)
        if key in self._tables or key in self._drawn:
            return
        future: Future[Views] = Future()
        self._drawn = {key: future}  # one ahead is enough; an unused one is dropped

        def work() -> None:
            try:
                future.set_result(self._draw(spec, view))
            except BaseException as error:
                future.set_exception(error)

        Thread(target=work, name=f"draw view {view}", daemon=True).start()

    def _draw(self, spec: ViewSpec, view: int) -> Views:
        partner = self.partner(view) if spec.mixes else None
        return draw_views(spec, self._seed, view, self._ids, self._sizes, partner)

    def partner(self, view: int) -> NDArray[np.int64]:
        """Whom each sample is mixed with in view number `view`, int64 [N]; see udkd.augment.mixing.partners."""
        return partners(self._seed, view, self._kept, len(self._ids))


class EpochLabels:
    """The labels of all of a split's N ids in a view, on the CPU: `labels = epoch_labels(view)`."""

    def __init__(self, spec: ViewSpec, seed: int, split: Split) -> None:
        self._spec, self._seed, self._kept = spec, seed, split.ids
        self._labels_N = torch.from_numpy(split.labels.astype(np.int64))

    def __call__(self, view: int) -> Tensor | MixedLabels:
        """int64 [N], the same tensor for every view, or those of the mixed samples."""
        if not self._spec.mixes:
            return self._labels_N
        ids = np.arange(len(self._labels_N), dtype=np.int64)
        partner = partners(self._seed, view, self._kept, len(ids))
        share = draw_shares(self._spec, self._seed, view, ids, partner)
        return MixedLabels(own=self._labels_N, other=self._labels_N[torch.from_numpy(partner)], share=torch.from_numpy(share))


class Augment:
    """Turns batches of a split into network input: `x_BCHW = augment(batch, epoch)`.

    The view of a sample is a pure function of (seed, epoch, sample id): the same bits in any batch, order and process.
    Epoch e uses the same views as view e of a cache that was built with the same spec and seed.

    split: the split that the batches come from. device: the device of the batches; ConfigError for a batch on another.
    preprocessing: interpolation and normalisation, ImageNet's by default.

    A spec that mixes samples needs both of a pair in one batch: give Loader arrange=augment.keep_pairs and an even batch_size,
    and the loss augment.labels(batch, epoch). ConfigError for a batch without a sample's partner.

        augment = udkd.Augment(udkd.ViewSpec(size_px=48), data.train, seed=0)
        x = augment(batch, epoch)  # float32 [B, 3, 48, 48], normalised, channels_last
    """

    def __init__(
        self,
        spec: ViewSpec,
        split: Split,
        *,
        seed: int = 0,
        device: torch.device | str = "auto",
        preprocessing: Preprocessing = IMAGENET,
    ) -> None:
        self.spec = spec
        self.preprocessing = preprocessing
        self.split = split
        self.seed = seed
        self.device = resolve_device(device)
        self._views = EpochViews(spec, seed, split, self.device)
        self._checked_epoch = -1

    def __call__(self, batch: Batch, epoch: int) -> Tensor:
        """Normalised input, float32 [B, 3, size_px, size_px], channels_last. The first call of an epoch draws all its views."""
        network = NetworkInput(size_px=self.spec.size_px, preprocessing=self.preprocessing)
        return self.each(batch, epoch, [network])[0]

    def each(self, batch: Batch, epoch: int, networks: Sequence[NetworkInput]) -> list[Tensor]:
        """The same views for several networks, each in its own size, interpolation and normalisation: one input for each."""
        if batch.canvas.device.type != self.device.type:
            found = f"the batch is on {batch.canvas.device} and the augmentation on {self.device}"
            raise ConfigError(f"{found}; expected one device; give Loader and Augment the same")
        return apply_each(batch.canvas, self._of(batch, epoch), networks, self.spec)

    def labels(self, batch: Batch, epoch: int) -> Tensor | MixedLabels:
        """The labels of the batch's views: `batch.labels`, or those of the mixed samples, which DistillationLoss takes."""
        return self._of(batch, epoch).labels(batch.labels) if self.spec.mixes else batch.labels

    def keep_pairs(self, order: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """The ids of an epoch's order, int64 [n], with the samples that are mixed side by side: see Loader's `arrange`.

        ConfigError: an order that lacks a sample's partner.
        """
        if not self.spec.mixes:
            return order
        partner = self._views.partner(epoch)
        present = np.zeros(len(partner), np.bool_)
        present[order] = True
        if not present[partner[order]].all():
            raise ConfigError(
                f"the order holds {len(order)} of the split's {len(self.split.ids)} samples, and not the partners of all; "
                "expected all samples of the split, among which pairs are drawn; arrange them all, then take a part"
            )
        return pairs_together(order, partner)

    def _of(self, batch: Batch, epoch: int) -> ViewTable:
        """The views of a batch's samples."""
        table = self._views.table(epoch)
        self._views.prepare(epoch + 1)
        # On a GPU this waits: once an epoch is enough to find an order without its pairs, and `paired` asserts the rest.
        if table.partner is not None and (batch.ids.device.type == "cpu" or self._checked_epoch != epoch):
            self._checked_epoch = epoch
            missing = ~torch.isin(table.partner[batch.ids], batch.ids)
            if missing.any():
                sample = int(batch.ids[missing][0])
                raise ConfigError(
                    f"sample {sample} is mixed with sample {int(table.partner[sample])}, which is not in its batch; expected "
                    "pairs in one batch; give Loader arrange=augment.keep_pairs and an even batch_size"
                )
        return table.gather(batch.ids)
