"""PackedTargets: a teacher's predictions as a cache stores them.

Cached and live targets both go through `pack`, so that they are the same bits. Letters: B batch, C classes, k kept classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from udkd.losses.sample_weight import entropy
from udkd.losses.storage import LOWEST, Storage, dense_logits

_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class PackedTargets:
    """A teacher's predictions for B views.

    logits:  float16 (float32 on request) [B, C], with each row's maximum subtracted; in the top-k form [B, k], best first.
    uncertainties: float32 [B] by name, of the unrounded prediction; "entropy", in nats, is always the first.
    features: float16 [B, D], pooled, where they are computed.
    classes, tail: of the top-k form: int64 [B, k], and float32 [B], the exact probability of the classes that were not kept.
    """

    logits: Tensor
    uncertainties: Mapping[str, Tensor]
    classes: Tensor | None = None
    tail: Tensor | None = None
    features: Tensor | None = None

    @property
    def entropy(self) -> Tensor:
        return self.uncertainties["entropy"]

    @property
    def arrays(self) -> dict[str, Tensor]:
        """All arrays, by the names and in the order of a cache's arrays."""
        kept = {} if self.classes is None or self.tail is None else {"classes": self.classes, "tail": self.tail}
        more = {} if self.features is None else {"features": self.features}
        return {"logits": self.logits, **kept, **self.uncertainties, **more}

    def dense(self, num_classes: int) -> Tensor:
        """Logits [B, C]: as stored, or float32 rebuilt from the top-k form."""
        if self.classes is None or self.tail is None:
            return self.logits
        return dense_logits(self.logits, self.classes, self.tail, num_classes)

    def to(self, device: torch.device | str) -> "PackedTargets":
        return _from_arrays({name: array.to(device) for name, array in self.arrays.items()})

    def __getitem__(self, rows: slice) -> "PackedTargets":
        return _from_arrays({name: array[rows] for name, array in self.arrays.items()})


def pack(logits_BC: Tensor, storage: Storage | None = None, uncertainties: Mapping[str, Tensor] | None = None) -> PackedTargets:
    """Round a prediction's logits [B, C] to what a cache stores; no row depends on another.

    storage: float16, all classes by default. uncertainties: those to store in addition to the entropy of these logits.
    Subtracting the row's maximum leaves the softmax unchanged and spends float16's precision on the probable classes: an
    error of at most 1.1e-4 in any probability (bfloat16: 7.5e-3).
    """
    storage = storage or Storage()
    logits_BC = logits_BC.float()
    centred_BC = logits_BC - logits_BC.amax(dim=-1, keepdim=True)
    # Beyond float16's range the probability is 0 either way.
    rounded_BC = centred_BC.clamp(min=LOWEST).to(_DTYPES[storage.dtype])
    more = {"entropy": entropy(logits_BC), **(uncertainties or {})}
    if not storage.top_k:
        return PackedTargets(logits=rounded_BC, uncertainties=more)
    # Stable: of equal logits the lower class is kept, whatever else is in the batch.
    order_BC = torch.sort(logits_BC, dim=-1, descending=True, stable=True).indices
    best_Bk, rest_BR = order_BC[:, : storage.top_k], order_BC[:, storage.top_k :]
    tail_B = (torch.logsumexp(centred_BC.gather(1, rest_BR), -1) - torch.logsumexp(centred_BC, -1)).exp()
    return PackedTargets(logits=rounded_BC.gather(1, best_Bk), uncertainties=more, classes=best_Bk, tail=tail_B)


def concat_targets(parts: Sequence[PackedTargets]) -> PackedTargets:
    """The rows of several targets, concatenated."""
    return _from_arrays({name: torch.cat([part.arrays[name] for part in parts]) for name in parts[0].arrays})


def _from_arrays(arrays: Mapping[str, Tensor]) -> PackedTargets:
    optional = {name: arrays.get(name) for name in ("classes", "tail", "features")}
    uncertainties = {name: array for name, array in arrays.items() if name != "logits" and name not in optional}
    return PackedTargets(logits=arrays["logits"], uncertainties=uncertainties, **optional)
