"""A teacher that always answers in the same bits.

Kernels round differently for different batch shapes, so the network only ever runs on one: longer inputs are cut into
blocks, the last is padded. Who shares a block does not matter then; a cache and a live teacher agree bit for bit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from udkd.formats.dataset import DatasetFolder
from udkd.formats.teacher import TeacherFolder, require_classes
from udkd.operations.models import build, first_difference
from udkd.operations.targets import PackedTargets, pack
from udkd.words.errors import DataError


@dataclass(frozen=True, kw_only=True)
class FrozenTeacher:
    """A teacher in evaluation mode, without gradients.

    model: the network on `device`. batch: the one batch shape. precision: "float32" or "bfloat16" (autocast).
    """

    model: nn.Module
    architecture: str
    weights_sha256: str
    num_classes: int
    device: torch.device
    batch: int
    precision: str
    channels_last: bool

    @classmethod
    def load(
        cls,
        folder: TeacherFolder,
        *,
        device: torch.device,
        batch: int,
        precision: str,
        image_px: int,
        channels_last: bool = True,
    ) -> "FrozenTeacher":
        """Build the network and load its weights. Raises DataError where they do not belong to the architecture."""
        model = build(folder.info.architecture, len(folder.info.classes), image_px=image_px, seed=0)
        weights = folder.weights()
        difference = first_difference(weights, model.state_dict())
        if difference:
            raise DataError(f"{folder.path}: weights do not fit {folder.info.architecture} ({difference}); make it again")
        model.load_state_dict(weights)
        model.eval().requires_grad_(False).to(device)
        if channels_last:
            model.to(memory_format=torch.channels_last)
        return cls(
            model=model,
            architecture=folder.info.architecture,
            weights_sha256=folder.info.weights_sha256,
            num_classes=len(folder.info.classes),
            device=device,
            batch=batch,
            precision=precision,
            channels_last=channels_last,
        )

    @torch.no_grad()
    def targets(self, x_BCHW: Tensor) -> PackedTargets:
        """What the teacher says of normalised images [B, 3, H, W], packed as the cache packs it."""
        blocks = [self._block(x_BCHW[start : start + self.batch]) for start in range(0, len(x_BCHW), self.batch)]
        return PackedTargets(
            logits=torch.cat([block.logits for block in blocks]), entropy=torch.cat([block.entropy for block in blocks])
        )

    def _block(self, x_BCHW: Tensor) -> PackedTargets:
        count = len(x_BCHW)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        block = torch.zeros((self.batch, *x_BCHW.shape[1:]), device=x_BCHW.device).to(memory_format=layout)
        block[:count] = x_BCHW
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits_BC = self.model(block)
        packed = pack(logits_BC.float())
        return PackedTargets(logits=packed.logits[:count], entropy=packed.entropy[:count])

    def describe(self) -> dict[str, object]:
        """What of the teacher decides the bits of its targets, by the names of CacheKey's fields."""
        return {
            "teacher": self.architecture,
            "teacher_sha256": self.weights_sha256,
            "num_classes": self.num_classes,
            "precision": self.precision,
            "device": self.device.type,
            "threads": torch.get_num_threads() if self.device.type == "cpu" else 0,
            "channels_last": self.channels_last,
            "teacher_batch": self.batch,
        }


def require_same_classes(teacher: TeacherFolder, dataset: DatasetFolder) -> None:
    """MismatchError unless output i of the teacher is label i of the dataset, for every i."""
    wanted = [entry.wnid for entry in dataset.classes]
    remedy = f"take a teacher for the classes of {dataset.path}, in their order"
    require_classes(f"the teacher in {teacher.path}", teacher.info.classes, wanted, remedy)
