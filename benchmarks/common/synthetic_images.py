"""An ImageFolder tree of synthetic JPEGs of ImageNet's most common size: smooth colour with grain, about 100 KB each."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 375, 500


def image_folder(folder: Path, count: int, *, classes: int = 10, val: int = 10) -> Path:
    """Write `count` training and `val` validation images; equal arguments give equal bytes."""
    rng = np.random.default_rng(0)
    for split, images in (("train", count), ("val", val)):
        for number in range(images):
            class_folder = folder / split / f"class-{number % classes:03d}"
            class_folder.mkdir(parents=True, exist_ok=True)
            (class_folder / f"{number:06d}.jpg").write_bytes(jpeg(rng))
    return folder


def jpeg(rng: np.random.Generator) -> bytes:
    """One image, quality 92 at 4:2:0 like most of ImageNet's."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = rng.normal(0, 12, (HEIGHT, WIDTH, 1)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92, subsampling=2)
    return buffer.getvalue()
