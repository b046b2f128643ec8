"""10,000 views and their hashes, in a module that a new process imports quickly.

    python -m tests.augment.view_hashes            print, for each of POLICIES, sha256 of the drawn numbers and of the pixels
    python -m tests.augment.view_hashes --write    write them to policy_hashes.json, with which the tests compare
    python -m tests.augment.view_hashes --samples 2500 --views 4 --batch 500 [--compiled]

Write them again when a number or a pixel is meant to change, and raise OPS_VERSION of udkd.augment.views.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from udkd.augment.apply import ViewTable, pixels, view_pixels
from udkd.augment.mixing import pairs_together, partners
from udkd.augment.policies import OpName, ViewOp
from udkd.augment.views import Views, ViewSpec, draw_views

SAMPLES, VIEWS, SIDE = 2_500, 4, 28
SEED = 0
TINY = ViewSpec(size_px=12, resize_px=14, brightness=0.4, contrast=0.4, saturation=0.4)
PLAIN_DIGEST = "8d1866ae7ecd8a4b9cb20a286dd4061280b879466356bac414e0529971dedb01"
"""`digest_of_all` of the 10,000 views of TINY."""

Hashes = dict[tuple[int, int], bytes]
"""The sha256 of a view's pixels, by (view, sample)."""
MakePixels = Callable[[Tensor, ViewTable, ViewSpec, int], Tensor]


@cache
def bank() -> tuple[Tensor, np.ndarray]:
    """Canvases of 2,500 samples, and their sizes: odd ones, one pixel, squashed ones."""
    rng = np.random.default_rng(4)
    canvas = torch.from_numpy(rng.integers(0, 256, (SAMPLES, SIDE, SIDE, 3), dtype=np.uint8))
    stored = rng.integers(1, SIDE + 1, (SAMPLES, 2))
    squashed = rng.random(SAMPLES) < 0.3
    source = np.where(squashed[:, None], rng.integers(1, 500, (SAMPLES, 2)), stored)
    return canvas, np.concatenate([source, np.where(squashed[:, None], SIDE, stored)], axis=1)


def sha256s(views_BOO3: Tensor) -> list[bytes]:
    return [hashlib.sha256(view).digest() for view in views_BOO3.contiguous().numpy()]


def hashes(order: np.ndarray, batch: int, make: object = pixels, *, at_once: bool = True) -> Hashes:
    """sha256 of the uint8 view of every (view, sample). at_once: views drawn for all ids, as training does, or per batch."""
    canvas, sizes = bank()
    hashes_by_pair = {}
    for view in range(VIEWS):
        full = ViewTable.of(draw_views(TINY, SEED, view, np.arange(SAMPLES), sizes)) if at_once else None
        for ids in np.split(order, range(batch, len(order), batch)):
            rows = torch.from_numpy(ids)
            views = full.gather(rows) if full else ViewTable.of(draw_views(TINY, SEED, view, ids, sizes[ids]))
            hashes_by_pair |= {
                (view, int(n)): digest
                for n, digest in zip(ids, sha256s(make(canvas[rows], views, TINY.size_px)), strict=True)  # type: ignore[operator]
            }
    return hashes_by_pair


def digest_of_all(hashes_by_pair: Hashes) -> str:
    return hashlib.sha256(b"".join(hashes_by_pair[pair] for pair in sorted(hashes_by_pair))).hexdigest()


# Operations, erasing and mixing.

_LOWEST = {"blur": 0.1, "rotate": -180, "shear_x": -1, "shear_y": -1, "translate_x": -0.5, "translate_y": -0.5, "hue": -0.5}
_HIGHEST = {"blur": 3.0, "rotate": 180, "shear_x": 1, "shear_y": 1, "translate_x": 0.5, "translate_y": 0.5, "hue": 0.5}
_HIGHEST |= dict.fromkeys(("brightness", "contrast", "saturation", "sharpness"), 3.0)
_HIGHEST |= {"solarize": 256, "solarize_add": 128, "posterize": 8}
OPS = tuple(ViewOp(op=op, prob=0.4, low=_LOWEST.get(op, 0.0), high=_HIGHEST.get(op, 0.0)) for op in get_args(OpName))
PLAIN = ViewSpec(size_px=16, resize_px=18)
STRONG = replace(PLAIN, policy="rand_augment", policy_spread=3.0, erase_prob=0.25, erase_fill="noise", mixup=0.8, cutmix=1.0)
POLICIES: dict[str, ViewSpec] = {
    "none": PLAIN,
    "jitter": replace(PLAIN, jitter="uint8", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2),
    "rand_augment": replace(PLAIN, policy="rand_augment"),
    "timm_rand_augment": replace(
        PLAIN, policy="timm_rand_augment", policy_ops=3, policy_spread=0.5, warp="bilinear", fill=(124, 116, 104)
    ),
    "trivial_augment_wide": replace(PLAIN, policy="trivial_augment_wide"),
    "auto_augment": replace(PLAIN, policy="auto_augment"),
    "three_augment": replace(PLAIN, policy="three_augment"),
    "first_ops": replace(PLAIN, ops=OPS[:9]),
    "last_ops": replace(PLAIN, ops=OPS[9:]),
    "bilinear_ops": replace(PLAIN, ops=OPS[13:], warp="bilinear", fill=(255, 0, 128)),
    "erase_mean": replace(PLAIN, erase_prob=0.8),
    "erase_noise": replace(PLAIN, erase_prob=0.8, erase_fill="noise"),
    "mixup": replace(PLAIN, mixup=0.8),
    "cutmix": replace(PLAIN, cutmix=1.0),
    "strong": STRONG,
    "strong_random_crop": replace(STRONG, scheme="random", mix_prob=0.8, mix_switch_prob=0.3),
}
"""Every policy, every operation, every filling and both ways of mixing."""

GOLDEN = Path(__file__).parent / "policy_hashes.json"
GOLDEN_SAMPLES, GOLDEN_VIEWS = 40, 2


def drawn(spec: ViewSpec, view: int, ids: np.ndarray, samples: int) -> Views:
    """A view of `ids`, of the first `samples` of the bank, among which the partners are."""
    partner = partners(SEED, view, np.arange(samples), samples)[ids] if spec.mixes else None
    return draw_views(spec, SEED, view, ids, bank()[1][ids], partner)


def numbers_digest(spec: ViewSpec, samples: int, views: int) -> str:
    """sha256 of all numbers of the views: names, dtypes, shapes and little-endian bytes."""
    digest = hashlib.sha256()
    for view in range(views):
        numbers = drawn(spec, view, np.arange(samples), samples)
        for field in fields(numbers):
            array = getattr(numbers, field.name)
            if array is not None:
                digest.update(f"{field.name} {array.dtype} {array.shape}".encode())
                digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def policy_hashes(
    spec: ViewSpec,
    order: np.ndarray,
    batch: int,
    make: MakePixels = view_pixels,
    *,
    samples: int = SAMPLES,
    views: int = VIEWS,
    at_once: bool = True,
) -> Hashes:
    """sha256 of the uint8 view of the samples in `order`, in batches: as `hashes`, with operations, erasing and mixing.

    Where samples are mixed, the order is that of `pairs_together`, and `batch` even; so the order must hold all samples.
    """
    canvas, _ = bank()
    hashes_by_pair: Hashes = {}
    for view in range(views):
        full = ViewTable.of(drawn(spec, view, np.arange(samples), samples)) if at_once else None
        ordered = order
        if spec.mixes:
            assert batch % 2 == 0, "pairs are not split"
            ordered = pairs_together(order, partners(SEED, view, np.arange(samples), samples))
        for ids in np.split(ordered, range(batch, len(order), batch)):
            rows = torch.from_numpy(ids)
            table = full.gather(rows) if full else ViewTable.of(drawn(spec, view, ids, samples))
            if spec.mixes and full is None:
                table = table.paired(rows)
            with torch.no_grad():
                done_BOO3 = make(canvas[rows], table, spec, spec.size_px)
            hashes_by_pair |= {(view, int(n)): digest for n, digest in zip(ids, sha256s(done_BOO3), strict=True)}
    return hashes_by_pair


def all_digests(samples: int, views: int, batch: int = 64, make: MakePixels = view_pixels) -> dict[str, dict[str, str]]:
    """For each of POLICIES, the digest of its numbers and of its pixels, in shuffled order."""
    order = np.random.default_rng(9).permutation(samples)
    return {
        name: {
            "numbers": numbers_digest(spec, samples, views),
            "pixels": digest_of_all(policy_hashes(spec, order, batch, make, samples=samples, views=views)),
        }
        for name, spec in POLICIES.items()
    }


def compiled() -> MakePixels:
    """view_pixels by inductor, without a graph break."""
    return torch.compile(view_pixels, fullgraph=True, dynamic=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=GOLDEN_SAMPLES)
    parser.add_argument("--views", type=int, default=GOLDEN_VIEWS)
    parser.add_argument("--batch", type=int, default=64, help="even; a multiple of it saves compilations")
    parser.add_argument("--compiled", action="store_true", help="by inductor")
    parser.add_argument("--write", action="store_true", help=f"write {GOLDEN.name}")
    arguments = parser.parse_args()
    digests = all_digests(
        arguments.samples, arguments.views, arguments.batch, compiled() if arguments.compiled else view_pixels
    )
    for name, digest in digests.items():
        print(name, digest["numbers"], digest["pixels"])
    if arguments.write:
        assert (arguments.samples, arguments.views) == (GOLDEN_SAMPLES, GOLDEN_VIEWS), "the tests' own number of views"
        GOLDEN.write_text(json.dumps(digests, indent=2) + "\n")


if __name__ == "__main__":
    main()
