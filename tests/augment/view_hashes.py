"""10,000 views and their hashes, in a module that a new process imports quickly."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from udkd.augment.apply import ViewTable, pixels
from udkd.augment.views import ViewSpec, draw_views

SAMPLES, VIEWS, SIDE = 2_500, 4, 28
TINY = ViewSpec(size_px=12, resize_px=14, brightness=0.4, contrast=0.4, saturation=0.4)


def bank() -> tuple[Tensor, np.ndarray]:
    """Canvases of 2,500 samples, and their sizes: odd ones, one pixel, squashed ones."""
    rng = np.random.default_rng(4)
    canvas = torch.from_numpy(rng.integers(0, 256, (SAMPLES, SIDE, SIDE, 3), dtype=np.uint8))
    stored = rng.integers(1, SIDE + 1, (SAMPLES, 2))
    squashed = rng.random(SAMPLES) < 0.3
    source = np.where(squashed[:, None], rng.integers(1, 500, (SAMPLES, 2)), stored)
    return canvas, np.concatenate([source, np.where(squashed[:, None], SIDE, stored)], axis=1)


def sha256s(views_BOO3: Tensor) -> list[bytes]:
    return [hashlib.sha256(view).digest() for view in views_BOO3.numpy()]


def hashes(order: np.ndarray, batch: int, make: object = pixels, *, at_once: bool = True) -> dict[tuple[int, int], bytes]:
    """sha256 of the uint8 view of every (view, sample). at_once: views drawn for all ids, as training does, or per batch."""
    canvas, sizes = bank()
    hashes_by_pair = {}
    for view in range(VIEWS):
        full = ViewTable.of(draw_views(TINY, 0, view, np.arange(SAMPLES), sizes)) if at_once else None
        for ids in np.split(order, range(batch, len(order), batch)):
            rows = torch.from_numpy(ids)
            views = full.gather(rows) if full else ViewTable.of(draw_views(TINY, 0, view, ids, sizes[ids]))
            hashes_by_pair |= {
                (view, int(n)): digest
                for n, digest in zip(ids, sha256s(make(canvas[rows], views, TINY.size_px)), strict=True)  # type: ignore[operator]
            }
    return hashes_by_pair


def digest_of_all(hashes_by_pair: dict[tuple[int, int], bytes]) -> str:
    return hashlib.sha256(b"".join(hashes_by_pair[pair] for pair in sorted(hashes_by_pair))).hexdigest()
