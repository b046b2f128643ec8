"""Targets for a view, computed by one teacher, by several passes with dropout, or by several teachers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from udkd.augment.preprocessing import NetworkInput, Preprocessing
from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder
from udkd.losses.distill import dirichlet
from udkd.losses.estimator import Estimator
from udkd.losses.sample_weight import mean_log_probability, mutual_information, vacuity
from udkd.losses.storage import Storage
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.frozen import FrozenTeacher, require_same_classes
from udkd.teacher.targets import PackedTargets, concat_targets, pack
from udkd.utils.errors import ConfigError
from udkd.utils.rng import Stream, key

_UNROUNDED = Storage(dtype="float32")


@dataclass(frozen=True, kw_only=True)
class TeacherEnsemble:
    """One or more teachers with the same batch shape, precision and device. Several predict the mean of their probabilities."""

    members: tuple[FrozenTeacher, ...]
    estimator: Estimator
    storage: Storage

    @classmethod
    def load(
        cls,
        folders: Sequence[TeacherFolder],
        recipe: Recipe,
        dataset: DatasetFolder,
        device: torch.device,
        *,
        features: bool = False,
    ) -> "TeacherEnsemble":
        """Load teachers of a dataset's classes by a recipe's settings. features: also compute the pooled features.

        MismatchError: other classes. DataError: weights of another architecture. ConfigError: folders that the recipe's
        estimator cannot use, top_k of all classes, or features of anything but one unmodified teacher.
        """
        if features:
            _require_plain(recipe)
        for folder in folders:
            require_same_classes(folder, dataset)
        members = tuple(
            FrozenTeacher.load(
                folder,
                device=device,
                batch=recipe.teacher.batch_size,
                precision=recipe.teacher.precision,
                folded=recipe.teacher.fold_bn,
                compile=recipe.teacher.compile,
                image_px=recipe.teacher_px,
                features=features,
            )
            for folder in folders
        )
        ensemble = cls(members=members, estimator=recipe.teacher.estimator_settings, storage=recipe.teacher.storage)
        ensemble._require_usable()
        return ensemble

    @property
    def input(self) -> NetworkInput:
        """The size and preprocessing of the members' input."""
        return self.members[0].input

    @property
    def num_classes(self) -> int:
        return self.members[0].num_classes

    @property
    def batch(self) -> int:
        """The batch size that the networks always run on; a longer input is split."""
        return self.members[0].batch

    @property
    def num_features(self) -> int:
        """D, the number of pooled features of an image; 0 where they are not computed."""
        return self.members[0].num_features

    @property
    def num_members(self) -> int:
        """M, the number of predictions averaged into a target."""
        return self.estimator.mc_samples if self.estimator.kind == "mc_dropout" else len(self.members)

    def targets(self, x_BCHW: Tensor, ids_B: Tensor, view: int) -> PackedTargets:
        """Packed targets for normalised images [B, 3, H, W] of samples `ids_B` (int64) in view `view`."""
        return self._predict(x_BCHW, ids_B, view, self.storage, torch.float16)

    def predictions(self, x_BCHW: Tensor, ids_B: Tensor, view: int) -> PackedTargets:
        """`targets` before any rounding: float32 logits of all classes, float32 features."""
        return self._predict(x_BCHW, ids_B, view, _UNROUNDED, torch.float32)

    def empty_targets(self, *, unrounded: bool = False) -> PackedTargets:
        """Targets without rows."""
        more = {name: torch.zeros(0) for name in self.estimator.uncertainties[1:]}
        packed = pack(torch.zeros(0, self.num_classes), _UNROUNDED if unrounded else self.storage, more)
        features = torch.zeros(0, self.num_features, dtype=torch.float32 if unrounded else torch.float16)
        return replace(packed, features=features) if self.num_features else packed

    def describe(self) -> dict[str, object]:
        """Everything about the teachers that determines the bits of their targets, by the names of CacheKey's fields."""
        return self.members[0].describe() | {
            "teacher": " + ".join(member.architecture for member in self.members),
            "teacher_sha256": " + ".join(member.weights_sha256 for member in self.members),
            "estimator": self.estimator.text,
            "uncertainties": self.estimator.uncertainties,
            "storage": self.storage.text,
            "features": self.num_features,
        }

    @torch.no_grad()
    def _predict(
        self, x_BCHW: Tensor, ids_B: Tensor, view: int, storage: Storage, features_dtype: torch.dtype
    ) -> PackedTargets:
        parts = []
        for start in range(0, len(x_BCHW), self.batch):
            piece = slice(start, start + self.batch)
            if self.num_features:
                logits_BC, features_BD = self.members[0].logits_and_features(x_BCHW[piece])
                packed = replace(pack(logits_BC, storage), features=features_BD.to(features_dtype))
            else:
                logits_BC, more = self._mean_prediction(x_BCHW[piece], ids_B[piece], view)
                packed = pack(logits_BC, storage, more)
            parts.append(packed[: len(ids_B[piece])])
        return concat_targets(parts)

    def _mean_prediction(self, x_BCHW: Tensor, ids_B: Tensor, view: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Logits [batch, C] of the mean prediction, and its uncertainties except entropy. Rows past the images are padding."""
        first = self.members[0]
        if self.estimator.kind == "plain":
            return first.logits(x_BCHW), {}
        if self.estimator.kind == "evidential":
            alpha_BC = dirichlet(first.logits(x_BCHW))
            return alpha_BC.log(), {"vacuity": vacuity(alpha_BC)}
        if self.estimator.kind == "mc_dropout":
            dropout_keys = [
                int(key(self.estimator.seed, Stream.MC_DROPOUT, view, number)[0] >> 32)
                for number in range(self.estimator.mc_samples)
            ]
            logits_MBC = first.dropout_logits(x_BCHW, ids_B, dropout_keys, self.estimator.p)
        else:
            logits_MBC = torch.stack([member.logits(x_BCHW) for member in self.members])
        log_p_MBC = torch.log_softmax(logits_MBC, dim=-1)
        return mean_log_probability(log_p_MBC), {"mutual_information": mutual_information(log_p_MBC)}

    def _require_usable(self) -> None:
        kind, count = self.estimator.kind, len(self.members)
        if kind == "ensemble" and count < 2:
            raise ConfigError("teacher.estimator is ensemble and 1 teacher was given; expected two or more; add another")
        if kind != "ensemble" and count != 1:
            raise ConfigError(
                f"{count} teachers were given and teacher.estimator is {kind}; expected ensemble for their mean; "
                "add --set teacher.estimator=ensemble, here and in training"
            )
        if kind == "evidential" and not self.members[0].evidential:
            raise ConfigError(
                f"teacher.estimator is evidential and this {self.members[0].architecture} was fitted with cross-entropy; "
                "expected a teacher from udkd teacher fit --loss evidential; fit one or set plain"
            )
        differing = next((member for member in self.members if member.input != self.input), None)
        if differing is not None:
            raise ConfigError(
                f"{differing.architecture} expects {_text(differing.input.preprocessing)} and {self.members[0].architecture} "
                f"{_text(self.input.preprocessing)}; expected one preprocessing for all teachers of an ensemble; "
                "leave one out"
            )
        if self.storage.top_k >= self.num_classes:
            raise ConfigError(
                f"teacher.top_k is {self.storage.top_k} of {self.num_classes} classes; expected fewer; lower it, or 0 for all"
            )


def _text(preprocessing: Preprocessing) -> str:
    return f"mean {preprocessing.mean}, std {preprocessing.std}, {preprocessing.interpolation}"


def _require_plain(recipe: Recipe) -> None:
    """ConfigError unless a recipe's teacher is one network whose modules can be hooked."""
    teacher = recipe.teacher
    if teacher.estimator != "plain" or teacher.fold_bn or teacher.compile:
        raise ConfigError(
            f"features are requested and the teacher is {teacher.estimator}{', folded' * teacher.fold_bn}"
            f"{', compiled' * teacher.compile}; expected one unmodified teacher; "
            "set teacher.estimator to plain, teacher.fold_bn and teacher.compile to false"
        )
