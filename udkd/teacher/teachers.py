"""The teacher of a training loop: `targets = teacher(batch, epoch)`, from a cache or computed in every step."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal, final

from udkd.augment.view_table import Augment, EpochLabels
from udkd.data.batch import Batch
from udkd.data.header import read_header
from udkd.data.loader import Loader
from udkd.losses.estimator import Estimator
from udkd.losses.sample_weight import SampleWeighting, needs_labels, uncertainty_of
from udkd.losses.storage import Storage
from udkd.teacher.cache.key import CacheKey, Differing
from udkd.teacher.cache.reader import Cache
from udkd.teacher.ensemble import TeacherEnsemble
from udkd.teacher.folder import TeacherFolder, require_classes
from udkd.teacher.frozen import FrozenTeacher
from udkd.teacher.sources import CachedTargets, LiveTargets
from udkd.teacher.target import TeacherTargets
from udkd.teacher.target_key import input_fields
from udkd.utils.errors import ConfigError, MismatchError


@final
class CachedTeacher:
    """The cached teacher logits and weights of a batch: `targets = teacher(batch, epoch)`.

    A cache of augmented views must have the augmentation's spec and seed. Epoch e uses view e; to reuse K views in turn, pass
    epoch % num_views to teacher and augmentation, also to its `keep_pairs` and `labels`. A cache of evaluation views fits any
    augmentation that mixes no samples. Of imported logits a warning lists what nothing can check.
    sample_weight: a kind of udkd.losses.sample_weight; "constant" is weight 1.

    Raises CacheError: no cache, a damaged one, or a missing view. MismatchError: targets of other data, pixels or views; it
    names both values of each field. ConfigError: an unknown sample_weight.

        teacher = udkd.CachedTeacher("quickstart/cache", loader, augment)
        targets = teacher(batch, epoch)  # logits [B, C], float16 or float32; weight float32 [B]
    """

    def __init__(self, path: str | Path, loader: Loader, augment: Augment, *, sample_weight: str = "entropy") -> None:
        split = loader.split
        if (augment.split.digest, augment.split.name) != (split.digest, split.name):
            fields = [("dataset_digest", augment.split.digest, split.digest), ("split", augment.split.name, split.name)]
            differing = [field for field in fields if field[1] != field[2]]
            raise MismatchError("the augmentation", differing, "give Augment and Loader the same split")
        cache = Cache.open(Path(path))
        expected = input_fields(split.digest, split.name, loader.pixel_class)
        if cache.key.policy == "views":
            expected |= {"views": augment.spec.key_values, "seed": augment.seed}
        elif augment.spec.mixes:
            raise ConfigError(
                f"the augmentation mixes samples and {cache.folder} holds targets of evaluation views, which show one of them; "
                "expected targets of the mixed views; build the cache with teacher.views = K"
            )
        cache.require(expected, remedy=_remedy)
        if cache.unchecked:
            warnings.warn(cache.unchecked, stacklevel=2)
        cache.require_rows(split.num_samples, split.ids, cache.num_classes)
        cache.require_uncertainty(sample_weight)
        self._mixed = augment.spec.mixes
        self._num_views = len(cache.views) if cache.key.policy == "views" else None
        self._targets = CachedTargets(
            cache,
            loader.device,
            SampleWeighting(kind=sample_weight),
            EpochLabels(augment.spec, augment.seed, split) if needs_labels(sample_weight) else None,
            ids=split.ids,
        )

    @property
    def num_views(self) -> int | None:
        """The number K of cached augmented views; None for a cache of evaluation views, which every epoch uses."""
        return self._num_views

    def __call__(self, batch: Batch, epoch: int) -> TeacherTargets:
        """Targets for the views that the augmentation makes of `batch` in `epoch`."""
        return replace(self._targets(batch, batch.canvas, epoch), mixed=self._mixed)


def _remedy(key: CacheKey, differing: Differing) -> str:
    parts = {
        "dataset_digest": "open the data set of the cache",
        "split": "load the split of the cache",
        "pixel_class": "give Loader another backend",
        "views": "give Augment the ViewSpec of the cache",
        "seed": "give Augment the seed of the cache",
    }
    advice = dict.fromkeys(parts[group] for name, _, _ in differing if (group := name.split(".")[0]) in parts)
    return f"{', '.join([*advice, 'or build'] if advice else ['build'])} a cache for these settings"


@final
class LiveTeacher:
    """A teacher that runs in every step, on the views that the students see: `targets = teacher(batch, epoch)`.

    Its targets have the same bits as a cache of these views that was built with equal batch_size, precision and, on a CPU,
    threads. batch_size: images per forward pass, whatever the loader's. precision: "bfloat16" and "float16" are autocast.
    size_px: side of the teacher's input; 0 for the augmentation's. Interpolation and normalisation are the teacher's own.
    sample_weight: see CachedTeacher. For targets of the evaluation view, pass an augmentation of that view, and epoch 0.

    Raises DataError: no teacher, or weights that do not fit. MismatchError: a teacher of other classes.
    ConfigError: an unknown sample_weight, or one that a single network cannot compute.

        teacher = udkd.LiveTeacher("quickstart/teacher", augment)
    """

    def __init__(
        self,
        path: str | Path,
        augment: Augment,
        *,
        precision: Literal["float32", "bfloat16", "float16"] = "float32",
        batch_size: int = 64,
        size_px: int = 0,
        sample_weight: str = "entropy",
    ) -> None:
        if (needed := uncertainty_of(sample_weight)) not in (None, "entropy"):
            raise ConfigError(
                f"sample_weight {sample_weight} is computed from {needed}, and one network gives only entropy; "
                "expected another sample_weight; change it, or use a cache that stores it"
            )
        if size_px < 0:
            raise ConfigError(f"size_px {size_px}; expected a number of pixels, or 0 for the augmentation's; change it")
        folder, data = TeacherFolder.open(Path(path)), augment.split.path.parent
        remedy = f"use a teacher for the classes of {data}, in their order"
        classes = [entry.wnid for entry in read_header(data).classes]
        require_classes(f"the teacher in {folder.path}", folder.info.classes, classes, remedy)
        network = FrozenTeacher.load(
            folder, device=augment.device, batch=batch_size, precision=precision, image_px=size_px or augment.spec.size_px
        )
        ensemble = TeacherEnsemble(members=(network,), estimator=Estimator(), storage=Storage())
        self._augment = augment
        self._targets = LiveTargets(ensemble, None, SampleWeighting(kind=sample_weight))

    def __call__(self, batch: Batch, epoch: int) -> TeacherTargets:
        """Targets for the views that the augmentation makes of `batch` in `epoch`; without gradient."""
        (x_BCHW,) = self._augment.each(batch, epoch, [self._targets.input])
        targets = self._targets(batch, x_BCHW, epoch, self._augment.labels(batch, epoch))
        return replace(targets, mixed=self._augment.spec.mixes)
