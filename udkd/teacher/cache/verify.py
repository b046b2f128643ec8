"""Recomputes a teacher's predictions for random (sample, view) pairs and compares them with a cache."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from udkd.augment import apply as augment
from udkd.augment import views
from udkd.config.recipe import Recipe
from udkd.data.backends.registry import open_backend
from udkd.data.dataset import DatasetFolder, Split
from udkd.losses.estimator import Estimator
from udkd.losses.sample_weight import sample_weight
from udkd.losses.storage import Storage
from udkd.teacher.cache.key import CacheKey
from udkd.teacher.cache.reader import Cache
from udkd.teacher.ensemble import TeacherEnsemble
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.predict import predict_blocks
from udkd.teacher.targets import PackedTargets
from udkd.utils.environment import set_threads
from udkd.utils.errors import CacheError, ConfigError
from udkd.utils.progress import SILENT, Observer

PROBABILITY_BOUND = 2.5e-4
"""For a float32 teacher: 1.1e-4 from rounding to float16, the rest for the last bits of other kernels or machines."""

WEIGHT_BOUND = 2e-4

FEATURES_BOUND = 1e-3
"""Relative to the row's largest feature: 4.9e-4 from rounding to float16, the rest for other kernels or machines."""

_BATCHES_AT_ONCE = 8
_MAX_THREADS = 1024  # a recipe's limit


@dataclass(kw_only=True)
class CacheComparison:
    """The largest differences between recomputed targets and cached ones.

    probability, weight: absolute; features: relative to the row's largest, 0 where none are stored. worst_probability,
    worst_weight, worst_features: their (view, id). error: for a teacher in bfloat16 or float16, the differences of the
    recomputed targets from float32 ones; two such computations may differ by twice as much. None for a float32 teacher.
    """

    num_pairs: int = 0
    probability: float = 0.0
    weight: float = 0.0
    features: float = 0.0
    worst_probability: tuple[int, int] = (0, 0)
    worst_weight: tuple[int, int] = (0, 0)
    worst_features: tuple[int, int] = (0, 0)
    error: "CacheComparison | None" = field(default=None)

    @property
    def probability_bound(self) -> float:
        return PROBABILITY_BOUND + (2 * self.error.probability if self.error else 0.0)

    @property
    def weight_bound(self) -> float:
        return WEIGHT_BOUND + (2 * self.error.weight if self.error else 0.0)

    @property
    def features_bound(self) -> float:
        return FEATURES_BOUND + (2 * self.error.features if self.error else 0.0)

    @property
    def worst(self) -> tuple[int, int] | None:
        """The (view, id) of a target that exceeds a bound; None where none does."""
        for name in ("probability", "weight", "features"):
            if getattr(self, name) > getattr(self, f"{name}_bound"):
                worst: tuple[int, int] = getattr(self, f"worst_{name}")
                return worst
        return None

    def add(self, view: int, ids: NDArray[np.int64], differences: Mapping[str, torch.Tensor]) -> None:
        """Include the differences of `ids` in a view, [B] by name."""
        self.num_pairs += len(ids)
        # NaN counts as the largest difference.
        for name, values in differences.items():
            values = values.nan_to_num(nan=float("inf"))
            row = int(values.argmax())
            if values[row] > getattr(self, name):
                setattr(self, name, float(values[row]))
                setattr(self, f"worst_{name}", (view, int(ids[row])))


def compare_with_teacher(
    cache: Cache,
    *,
    dataset: DatasetFolder,
    teachers: Sequence[TeacherFolder],
    count: int,
    seed: int,
    device: torch.device,
    backend: str = "auto",
    observer: Observer = SILENT,
) -> CacheComparison:
    """Recompute the targets of `count` random (sample, view) pairs, drawn by `seed`, and compare them with the cache's.

    Batch size, precision, estimator and views are the cache's. MismatchError: another dataset, teacher or pixel class.
    CacheError: a key that no recipe produces, rows that are not the data's, or a batch too large for this machine's memory.
    """
    key, split = cache.key, dataset.split(cache.key.split)
    recipe = _recipe_of(key)
    with contextlib.closing(open_backend(backend, split, device, observer=observer)) as opened:
        cache.require(
            {
                "num_classes": len(dataset.classes),
                "dataset_digest": dataset.digest,
                "pixel_class": opened.describe(),
                "views_version": views.VERSION,
                "augment_version": augment.VERSION,
                "normalisation": teachers[0].info.preprocessing.key_values,
                "teacher": " + ".join(folder.info.architecture for folder in teachers),
                "teacher_sha256": " + ".join(folder.info.weights_sha256 for folder in teachers),
            }
        )
        _require_comparable(cache, split, recipe.teacher_px)
        set_threads(key.threads if device.type == "cpu" else 0)
        ensemble = TeacherEnsemble.load(teachers, recipe, dataset, device, features=key.features > 0)
        reference = None
        if recipe.teacher.precision != "float32":
            reference = TeacherEnsemble.load(
                teachers, _recipe_of(key, precision="float32"), dataset, device, features=key.features > 0
            )
        result, spec = CacheComparison(error=CacheComparison() if reference else None), recipe.views.spec
        observer.start("recomputing targets", count, "images")
        for view, blocks in _pairs(cache, split.ids, count, seed, ensemble.batch * _BATCHES_AT_ONCE):
            recomputed = [
                predict_blocks(each, opened, split, spec, key.seed or 0, view, blocks, unrounded=True)
                for each in (ensemble, reference)
                if each
            ]
            for ids, *targets in zip(blocks, *recomputed, strict=True):
                result.add(view, ids, _differences(targets[0], _stored(cache, view, ids), key))
                if result.error is not None:
                    result.error.add(view, ids, _differences(targets[0], targets[1], key))
                observer.advance(len(ids))
        observer.finish()
    return result


def _require_comparable(cache: Cache, split: Split, size_px: int) -> None:
    """CacheError unless a cache has the split's rows, and its threads and batch size are possible on this machine."""
    key = cache.key
    cache.require_rows(len(split.labels), split.ids, key.num_classes)
    needed, free = key.teacher_batch * 3 * size_px * size_px * 4, psutil.virtual_memory().available
    if not len(split.ids) or key.threads > _MAX_THREADS or needed > free:
        raise CacheError(
            f"{cache.folder} was built with {key.threads} threads in batches of {key.teacher_batch} images of {size_px} px, "
            f"{needed / 1e9:.3g} GB for their pixels alone; expected at most {_MAX_THREADS} threads and {free / 1e9:.3g} GB, "
            "and some images; verify it where it was built"
        )


def _pairs(
    cache: Cache, ids: NDArray[np.int64], count: int, seed: int, rows: int
) -> Iterator[tuple[int, list[NDArray[np.int64]]]]:
    """Random pairs without repetition: for each view the ids, ascending, in pieces of `rows`."""
    total = len(ids) * len(cache.views)
    drawn = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False, shuffle=False))
    for index, view in enumerate(cache.views):
        chosen = ids[drawn[drawn // len(ids) == index] % len(ids)]
        if len(chosen):
            yield view, [chosen[start : start + rows] for start in range(0, len(chosen), rows)]


def _stored(cache: Cache, view: int, ids: NDArray[np.int64]) -> PackedTargets:
    arrays = {name: torch.from_numpy(array[ids]) for name, array in cache.view_file(view).arrays.items() if name != "classes"}
    classes = cache.view_file(view).arrays.get("classes")
    return PackedTargets(
        logits=arrays["logits"],
        uncertainties={name: arrays[name] for name in cache.key.uncertainties},
        classes=None if classes is None else torch.from_numpy(classes[ids].astype(np.int64)),
        tail=arrays.get("tail"),
        features=arrays.get("features"),
    )


def _differences(fresh: PackedTargets, other: PackedTargets, key: CacheKey) -> dict[str, torch.Tensor]:
    """Largest absolute differences of probabilities and weights, largest relative difference of features: float64 [B] each.

    In the top-k form the classes that were not kept count as one class: only their sum is stored.
    """
    p_BC = torch.softmax(fresh.logits.double(), dim=-1)
    q_BC = torch.softmax(other.dense(key.num_classes).double(), dim=-1)
    if other.classes is not None:
        p_BC, q_BC = (_with_tail(each_BC, other.classes) for each_BC in (p_BC, q_BC))
    weight_differences = [(_weight(name, fresh, key) - _weight(name, other, key)).abs() for name in key.uncertainties]
    largest = {"probability": (p_BC - q_BC).abs().amax(-1), "weight": torch.stack(weight_differences).amax(0).double()}
    if fresh.features is not None and other.features is not None:
        largest_B = fresh.features.double().abs().amax(-1).clamp(min=torch.finfo(torch.float16).tiny)
        largest["features"] = (fresh.features.double() - other.features.double()).abs().amax(-1) / largest_B
    return largest


def _with_tail(p_BC: torch.Tensor, classes_Bk: torch.Tensor) -> torch.Tensor:
    kept_Bk = p_BC.gather(1, classes_Bk)
    return torch.cat([kept_Bk, 1 - kept_Bk.sum(1, keepdim=True)], dim=1)


def _weight(uncertainty: str, targets: PackedTargets, key: CacheKey) -> torch.Tensor:
    """The sample weights that are named after an uncertainty."""
    logits_BC, uncertainty_B = targets.dense(key.num_classes), targets.uncertainties[uncertainty]
    return sample_weight(uncertainty, logits_BC, uncertainty_B, None, num_members=key.num_members)


def _recipe_of(key: CacheKey, **teacher: object) -> Recipe:
    """A recipe with the teacher settings of the cache's build. CacheError where no recipe has them."""
    estimator, storage = Estimator.parse(key.estimator), Storage.parse(key.storage)
    settings: dict[str, object] = {
        "batch_size": key.teacher_batch,
        "precision": key.precision.split(", ")[0],
        "logits_dtype": storage.dtype,
        "top_k": storage.top_k,
        "size_px": key.teacher_size_px,
        "estimator": estimator.kind,
    }
    flags = {"fold_bn": "batch norm folded" in key.precision, "compile": "compiled" in key.precision}
    settings |= {name: True for name, is_set in flags.items() if is_set}
    if estimator.kind == "mc_dropout":
        settings |= {"mc_samples": estimator.mc_samples, "dropout": estimator.p, "dropout_seed": estimator.seed}
    settings["views"] = "eval" if key.policy == "canonical" else 1  # their number decides no target
    views = {
        "views": {name: value for name, value in key.views.items() if name != "ops_version"} | {"seed": key.seed or 0},
        "evaluation": {"resize_px": key.views.get("size_px")},
    }
    try:
        return Recipe.from_dict(views | {"teacher": settings | teacher}, "the cache's key")
    except ConfigError as error:
        raise CacheError(f"{error}: no recipe leads to such a cache; expected what a build writes; build it again") from None
