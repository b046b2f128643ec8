"""A cache of computed targets, without a teacher or images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from udkd.augment.views import ViewSpec
from udkd.teacher.cache.key import CacheKey
from udkd.teacher.cache.writer import CacheWriter

CLASSES = 11
KEY = CacheKey(
    dataset_digest="d" * 64,
    split="train",
    pixel_class="libjpeg islow, fancy upsampling",
    policy="views",
    views=ViewSpec(size_px=48).key_values,
    views_version=1,
    seed=7,
    augment_version=1,
    normalisation={"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    num_classes=CLASSES,
    teacher="resnet18",
    teacher_sha256="a" * 64,
    precision="float32",
    device="cpu",
    threads=1,
    channels_last=False,
    teacher_batch=4,
    block_rows=8,
)
ROWS = 45
EXCLUDED = np.isin(np.arange(ROWS), [0, 13, 40, 41, 42, 43, 44])


def synthetic_targets(view: int, ids: np.ndarray, key: CacheKey = KEY) -> tuple[np.ndarray, np.ndarray]:
    """Targets that are a function of (view, id), as a teacher's are."""
    rows = [np.random.default_rng((view, int(i))).normal(size=key.num_classes) * 4 for i in ids]
    logits = np.array(rows, np.float32).reshape(len(ids), key.num_classes)
    entropy = np.abs(np.array([np.random.default_rng((view, int(i), 1)).random() for i in ids], np.float32))
    return (logits - logits.max(axis=1, keepdims=True)).astype(key.storage), entropy


def build(
    folder: Path, views: Sequence[int], key: CacheKey = KEY, excluded: np.ndarray = EXCLUDED, backwards: bool = False
) -> None:
    with CacheWriter(folder, key, excluded) as writer:
        for number in sorted(set(views) - set(writer.finished)):
            with writer.view(number) as view:
                for block in sorted(view.unfinished, reverse=backwards):
                    view.write(block, *synthetic_targets(number, view.ids(block), key))
                view.finish()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}
