"""A teacher whose predictions are always the same bits.

Kernels round differently for different batch shapes, so the network always runs on one shape: longer inputs are split into
blocks and the last block is padded. A prediction then does not depend on the other samples in its block, so cached and live
targets are the same bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from udkd.augment.preprocessing import NetworkInput
from udkd.data.dataset import DatasetFolder
from udkd.models.build import build, first_difference, load_weights, sample_dropout
from udkd.models.features import pooled, stages
from udkd.models.module_swaps import fold_batch_norm
from udkd.models.state_dicts import first_not_finite
from udkd.teacher.folder import TeacherFolder, require_classes
from udkd.teacher.targets import PackedTargets, concat_targets, pack
from udkd.utils.autocast import autocast
from udkd.utils.compile import compiled
from udkd.utils.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class FrozenTeacher:
    """A teacher in evaluation mode, without gradients.

    model: the network on `device`. input: the size of its images and their preprocessing. batch: the one batch shape.
    precision: "float32", "bfloat16" or "float16" (autocast).
    evidential: it was fitted with the evidential loss.
    pool: name of the module with the deepest feature map; the map's spatial mean is an image's `num_features` features.
    "" and 0 without features. folded: batch norm is folded into the convolutions. compiled: by torch.compile. Both change
    the last bits.
    """

    model: nn.Module
    input: NetworkInput
    architecture: str
    weights_sha256: str
    num_classes: int
    device: torch.device
    batch: int
    precision: str
    channels_last: bool
    evidential: bool = False
    folded: bool = False
    compiled: bool = False
    pool: str = ""
    num_features: int = 0

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
        folded: bool = False,
        compile: bool = False,
        features: bool = False,
    ) -> "FrozenTeacher":
        """Build the network and load its weights. features: prepare `logits_and_features`.

        Raises DataError where the weights do not fit the architecture, ConfigError where it has no feature maps.
        """
        model = build(folder.info.architecture, len(folder.info.classes), image_px=image_px, seed=0)
        weights = folder.weights()
        expected = model.state_dict()
        difference = first_difference(weights, expected) or _invalid_values(weights, expected)
        if difference and image_px != folder.info.image_px:
            raise DataError(
                f"the teacher in {folder.path} has weights for {folder.info.image_px} px images and gets {image_px} px "
                f"({difference}); expected its own size; set teacher.size_px={folder.info.image_px}"
            )
        if difference:
            raise DataError(f"{folder.path}: weights do not fit {folder.info.architecture} ({difference}); make it again")
        load_weights(model, weights)
        model.eval().requires_grad_(False).to(device)
        if folded:
            model = fold_batch_norm(model)
        if channels_last:
            model.to(memory_format=torch.channels_last)
        deepest = stages(model, image_px)[-1] if features else None
        return cls(
            pool=deepest.module if deepest else "",
            num_features=deepest.channels if deepest else 0,
            model=compiled(model) if compile else model,
            input=NetworkInput(size_px=image_px, preprocessing=folder.info.preprocessing),
            architecture=folder.info.architecture,
            weights_sha256=folder.info.weights_sha256,
            num_classes=len(folder.info.classes),
            device=device,
            batch=batch,
            precision=precision,
            channels_last=channels_last,
            evidential=folder.info.loss == "evidential",
            folded=folded,
            compiled=compile,
        )

    @torch.no_grad()
    def targets(self, x_BCHW: Tensor) -> PackedTargets:
        """Targets for normalised images [B, 3, H, W] by one pass in evaluation mode, packed as in a cache."""
        parts = [x_BCHW[start : start + self.batch] for start in range(0, len(x_BCHW), self.batch)]
        return concat_targets([pack(self.logits(part))[: len(part)] for part in parts])

    def logits(self, x_BCHW: Tensor) -> Tensor:
        """Logits float32 [batch, C] of up to `batch` images; rows beyond the images are padding."""
        with self._autocast():
            logits_BC: Tensor = self.model(self._padded(x_BCHW))
        return logits_BC.float()

    def logits_and_features(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """`logits`, and the pooled features, float32 [batch, num_features]."""
        maps: list[Tensor] = []
        hook = self.model.get_submodule(self.pool).register_forward_hook(lambda module, inputs, map_BCHW: maps.append(map_BCHW))
        try:
            logits_BC = self.logits(x_BCHW)
        finally:
            hook.remove()
        return logits_BC, pooled(maps[-1])

    def dropout_logits(self, x_BCHW: Tensor, ids_B: Tensor, dropout_keys: list[int], p: float) -> Tensor:
        """Logits float32 [M, batch, C] of up to `batch` images with dropout of probability `p` before the head.

        ids_B: int64, sample ids. dropout_keys: of the M passes. The rest of the network runs once, without dropout.
        ConfigError: a network that does not end in a linear layer.
        """
        ids_B = torch.nn.functional.pad(ids_B, (0, self.batch - len(ids_B)))
        head, features_BF = self._head(x_BCHW)
        masks = (sample_dropout(ids_B, dropout_key, features_BF.shape[1], p) for dropout_key in dropout_keys)
        with self._autocast():
            return torch.stack([head(features_BF * mask_BF.to(features_BF.dtype)).float() for mask_BF in masks])

    def describe(self) -> dict[str, object]:
        """Everything about the teacher that determines the bits of its predictions, by the names of CacheKey's fields."""
        return {
            "teacher": self.architecture,
            "teacher_sha256": self.weights_sha256,
            "num_classes": self.num_classes,
            "normalisation": self.input.preprocessing.key_values,
            "precision": precision_text(self.precision, folded=self.folded, compiled=self.compiled),
            "device": self.device.type,
            "threads": torch.get_num_threads() if self.device.type == "cpu" else 0,
            "channels_last": self.channels_last,
            "teacher_batch": self.batch,
        }

    def _head(self, x_BCHW: Tensor) -> tuple[nn.Linear, Tensor]:
        """The last linear layer and its input, [batch, F]."""
        linear_calls: list[tuple[nn.Linear, Tensor, Tensor]] = []

        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(module, nn.Linear)
            linear_calls.append((module, inputs[0], output))

        hooks = [module.register_forward_hook(record) for module in self.model.modules() if isinstance(module, nn.Linear)]
        try:
            with self._autocast():
                logits_BC = self.model(self._padded(x_BCHW))
        finally:
            for hook in hooks:
                hook.remove()
        if not linear_calls or linear_calls[-1][2] is not logits_BC or linear_calls[-1][1].dim() != 2:
            raise ConfigError(
                f"{self.architecture} does not end in a linear layer; expected one, as dropout is applied to its input; "
                "set teacher.estimator to plain or use another architecture"
            )
        return linear_calls[-1][0], linear_calls[-1][1]

    def _padded(self, x_BCHW: Tensor) -> Tensor:
        assert len(x_BCHW) <= self.batch, f"{len(x_BCHW)} images for a batch of {self.batch}"
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        if len(x_BCHW) == self.batch:
            return x_BCHW.contiguous(memory_format=layout)
        block = torch.zeros((self.batch, *x_BCHW.shape[1:]), device=x_BCHW.device).to(memory_format=layout)
        block[: len(x_BCHW)] = x_BCHW
        return block

    def _autocast(self) -> torch.autocast:
        return autocast(self.device.type, self.precision)


def _invalid_values(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The first weight of another dtype or with values that are not finite, described; or ""."""
    for name, value in weights.items():
        if value.dtype != expected[name].dtype:
            return f"{name} is of {value.dtype}, expected {expected[name].dtype}"
    name = first_not_finite(weights)
    return f"{name} is not finite" if name else ""


def precision_text(precision: str, *, folded: bool, compiled: bool) -> str:
    """A cache key's "precision": the settings that change a teacher's last bits."""
    parts = ((precision, True), ("batch norm folded", folded), ("compiled", compiled))
    return ", ".join(part for part, is_set in parts if is_set)


def require_same_classes(teacher: TeacherFolder, dataset: DatasetFolder) -> None:
    """MismatchError unless output i of the teacher is label i of the dataset, for every i."""
    expected = [entry.wnid for entry in dataset.classes]
    remedy = f"use a teacher for the classes of {dataset.path}, in their order"
    require_classes(f"the teacher in {teacher.path}", teacher.info.classes, expected, remedy)


def require_several_classes(dataset: DatasetFolder) -> None:
    """DataError unless there are at least two classes: with one, losses and weights are 0 divided by 0."""
    if len(dataset.classes) < 2:
        raise DataError(
            f"{dataset.path} has one class ({dataset.classes[0].wnid}); expected two or more; "
            "often the wrong folder level was converted: convert the folder whose children are the classes"
        )
