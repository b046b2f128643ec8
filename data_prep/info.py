"""`udkd data info`: the contents of a dataset folder, as values and as lines of text."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from udkd.data.dataset import DatasetFolder, Split
from udkd.data_prep.report import skipped_files

EXAMPLES = 5


def describe(folder: Path) -> dict[str, Any]:
    """The contents of a folder as plain values. Raises DataError if it cannot be opened.

    Of each split: excluded lists names in the source and reasons; fixed counts images by note; images_per_class is in the
    order of the classes; bytes are those of the stored images; median_source_px is [height, width], null without images.
    """
    dataset = DatasetFolder.open(folder)
    return {
        "data": str(dataset.path),
        "digest": dataset.digest,
        "side": dataset.side,
        "fit": dataset.fit,
        "encoder": dict(dataset.encoder),
        "formats": list(dataset.formats),
        "classes": [{"wnid": entry.wnid, "name": entry.name} for entry in dataset.classes],
        "splits": {split.name: _split_values(split, len(dataset.classes)) for split in dataset.splits.values()},
        "skipped": skipped_files(folder),
    }


def _split_values(split: Split, num_classes: int) -> dict[str, Any]:
    kept = split.ids
    median = np.median(split.sizes[kept, :2], axis=0).astype(int).tolist() if len(kept) else None
    return {
        "images": len(kept),
        "images_per_class": np.bincount(split.labels[kept], minlength=num_classes).tolist(),
        "shards": len(np.unique(split.shard[kept])),
        "bytes": int(split.size[kept].sum()),
        "median_source_px": median,
        "excluded": [{"source": split.source[n], "reason": split.note[n]} for n in np.flatnonzero(split.excluded).tolist()],
        "fixed": dict(Counter(split.note[n] for n in kept.tolist() if split.note[n]).most_common()),
    }


def info_lines(folder: Path) -> Iterator[str]:
    """The same as lines for people."""
    values = describe(folder)
    encoder = ", ".join(f"{name} {value}" for name, value in values["encoder"].items())
    classes = values["classes"]
    yield f"folder   {values['data']}"
    yield f"digest   {values['digest']}"
    yield f"canvas   {values['side']} x {values['side']} px, fit {values['fit']} ({encoder})"
    yield f"formats  {', '.join(values['formats'])}"
    names = ", ".join(entry["name"] for entry in classes[:EXAMPLES])
    yield f"classes  {len(classes)} ({names}{', …' if len(classes) > EXAMPLES else ''})"
    for name, split in values["splits"].items():
        yield from _split_lines(name, split)
    skipped = values["skipped"]
    if skipped:
        yield f"         {sum(each['files'] for each in skipped):,} files skipped:"
    yield from (f"           {each['files']:,} {each['reason']}, such as {each['first']}" for each in skipped)


def _split_lines(name: str, split: dict[str, Any]) -> Iterator[str]:
    excluded, per_class = split["excluded"], split["images_per_class"]
    if not split["images"]:
        yield f"{name:<8} no usable images, {len(excluded):,} excluded"
        return
    height, width = split["median_source_px"]
    yield (
        f"{name:<8} {split['images']:,} images, {min(per_class):,} to {max(per_class):,} per class, "
        f"{split['shards']:,} shards, {split['bytes'] / 1e6:,.1f} MB, median source {width} x {height} px"
    )
    if excluded:
        yield f"         {len(excluded):,} excluded:"
        yield from (f"           {each['source']}: {each['reason']}" for each in excluded[:EXAMPLES])
    for note, count in split["fixed"].items():
        yield f"         {count:,} fixed: {note}"
