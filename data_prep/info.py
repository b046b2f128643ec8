"""`udkd-prep info`: the contents of a dataset folder as lines of text."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from udkd.data.dataset import DatasetFolder, Split
from udkd.data_prep.report import skipped_lines

EXAMPLES = 5


def info_lines(folder: Path) -> Iterator[str]:
    """Lines about a folder and its splits. Raises DataError if it cannot be opened."""
    dataset = DatasetFolder.open(folder)
    encoder = ", ".join(f"{name} {value}" for name, value in dataset.encoder.items())
    yield f"folder   {dataset.path}"
    yield f"digest   {dataset.digest}"
    yield f"canvas   {dataset.side} x {dataset.side} px, fit {dataset.fit} ({encoder})"
    yield f"formats  {', '.join(dataset.formats)}"
    names = ", ".join(entry.name for entry in dataset.classes[:EXAMPLES])
    yield f"classes  {len(dataset.classes)} ({names}{', …' if len(dataset.classes) > EXAMPLES else ''})"
    for split in dataset.splits.values():
        yield from _split_lines(split, len(dataset.classes))
    for line in skipped_lines(folder):
        yield f"         {line}"


def _split_lines(split: Split, num_classes: int) -> Iterator[str]:
    kept = split.ids
    if not len(kept):
        yield f"{split.name:<8} no usable images, {split.num_samples:,} excluded"
        return
    per_class = np.bincount(split.labels[kept], minlength=num_classes)
    stored = int(split.size[kept].sum())
    median = np.median(split.sizes[kept, :2], axis=0).astype(int).tolist()
    fixed = Counter(split.note[n] for n in kept.tolist() if split.note[n])
    yield (
        f"{split.name:<8} {len(kept):,} images, {per_class.min():,} to {per_class.max():,} per class, "
        f"{len(np.unique(split.shard[kept])):,} shards, {stored / 1e6:,.1f} MB, median source {median[1]} x {median[0]} px"
    )
    if split.excluded.any():
        yield f"         {int(split.excluded.sum()):,} excluded:"
        yield from (
            f"           {split.source[n]}: {split.note[n]}" for n in np.flatnonzero(split.excluded)[:EXAMPLES].tolist()
        )
    for note, count in fixed.most_common():
        yield f"         {count:,} fixed: {note}"
