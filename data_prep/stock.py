"""What there is to convert: every sample of both splits with its id and label, settled before a byte is decoded."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from data_prep.classes import choose_classes, named, printable
from data_prep.prepare import Sample
from data_prep.sources import Entry, Source, SplitName
from udkd.formats.dataset import ClassName
from udkd.words.errors import DataError

SPLITS: tuple[SplitName, ...] = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class Stock:
    """classes[i] is label i; samples["train"] and samples["val"] are in id order.

    That is by class, then by name; sources that are read in sequence keep their own order.
    """

    classes: tuple[ClassName, ...]
    samples: dict[str, list[Sample]]
    warnings: list[str]


def take_stock(sources: Sequence[Source], *, classes: str, hold_out_percent: float | None) -> Stock:
    """List the sources, choose classes, set images aside for validation where asked, and number everything.

    Raises DataError: no images, no train or val and no hold-out, a class list that does not match, two images of one name.
    """
    found: list[tuple[int, Entry]] = []
    ignored: list[str] = []
    sequential = False
    for origin, source in enumerate(sources):
        listing = source.list()
        if not listing.entries:
            raise DataError(
                f"{source.path} holds no images in class folders; expected [train/|val/]<class>/<name>.jpg; "
                "check the path, or say what it is with --layout"
            )
        found += [(origin, entry) for entry in listing.entries]
        ignored += listing.ignored
        sequential |= listing.sequential
    warnings = []
    if ignored:
        example = printable(min(ignored))
        warnings.append(f"passed over {len(ignored):,} files that are no images in class folders, such as {example}")
    chosen = choose_classes((entry.class_name for _, entry in found), classes)
    label_of = {name: label for label, name in enumerate(chosen)}
    kept = [(origin, entry) for origin, entry in found if entry.class_name in label_of]
    groups = _split(kept, sources, hold_out_percent)
    warnings += _check_classes(groups, chosen, hold_out_percent)
    return Stock(
        classes=named(chosen),
        samples={name: _number(name, group, label_of, sources, sequential) for name, group in groups.items()},
        warnings=warnings,
    )


def _split(
    found: list[tuple[int, Entry]], sources: Sequence[Source], hold_out_percent: float | None
) -> dict[str, list[tuple[int, Entry]]]:
    groups: dict[str | None, list[tuple[int, Entry]]] = defaultdict(list)
    for origin, entry in found:
        groups[entry.split].append((origin, entry))
    where = ", ".join(str(source.path) for source in sources)
    if groups[None] and (groups["train"] or groups["val"]):
        loose = sources[groups[None][0][0]].path
        raise DataError(f"{loose} has no train/ and val/ folders, other sources have; expected one layout; convert them apart")
    if groups["val"] and hold_out_percent is not None:
        raise DataError(f"{where} holds val/ images already; expected none beside --hold-out; leave --hold-out away")
    if groups["val"] and not groups["train"]:
        raise DataError(f"{where} holds val/ only; expected train/ images too; add the source that holds them")
    if groups["val"]:
        return {name: groups[name] for name in SPLITS}
    if hold_out_percent is None:
        lacks = "train/ but no val/ images" if groups["train"] else "no train/ and val/ folders"
        raise DataError(
            f"{where} has {lacks}; expected both; add the source that holds them, "
            "or give --hold-out PERCENT to set that share of the images aside for validation"
        )
    held: dict[str, list[tuple[int, Entry]]] = {name: [] for name in SPLITS}
    for origin, entry in groups["train"] + groups[None]:
        held["val" if _hash_percent(entry) < hold_out_percent else "train"].append((origin, entry))
    for name, group in held.items():
        if not group:
            raise DataError(
                f"--hold-out {hold_out_percent:g} leaves {name} without images ({len(found)} in all); change the percentage"
            )
    return held


def _hash_percent(entry: Entry) -> float:
    """Uniform in [0, 100), a function of class and name alone: more images or another order move none to the other side."""
    name = f"{entry.class_name}/{entry.name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2**64 * 100


def _check_classes(groups: dict[str, list[tuple[int, Entry]]], chosen: list[str], hold_out_percent: float | None) -> list[str]:
    """What to warn of. Raises DataError for a val/ class that train/ lacks: most often val/ is a flat folder."""
    warnings = []
    counts = {name: Counter(entry.class_name for _, entry in group) for name, group in groups.items()}
    untrained = [name for name in chosen if not counts["train"][name]]
    unvalidated = [name for name in chosen if not counts["val"][name]]
    if untrained and hold_out_percent is None:
        raise DataError(
            f"val/ holds {len(untrained)} classes that train/ lacks, such as {printable(untrained[0])}; "
            "expected val/<class>/ folders of the same names; sort the images into class folders or give --classes"
        )
    for lacking, what in ((untrained, "train"), (unvalidated, "val")):
        if lacking:
            warnings.append(f"{len(lacking)} of {len(chosen)} classes have no {what} image, such as {printable(lacking[0])}")
    return warnings


def _number(
    split: str,
    group: list[tuple[int, Entry]],
    label_of: dict[str, int],
    sources: Sequence[Source],
    sequential: bool,
) -> list[Sample]:
    by_name = sorted(group, key=lambda pair: (pair[1].class_name, pair[1].name))
    for (origin, entry), (other_origin, other) in pairwise(by_name):
        if (entry.class_name, entry.name) == (other.class_name, other.name):
            name = printable(f"{split}/{entry.class_name}/{entry.name}")
            raise DataError(
                f"{name} is there twice, in {sources[origin].path} and {sources[other_origin].path}; "
                "expected each image once; leave one source away"
            )
    return [
        Sample(label_of[entry.class_name], printable(f"{entry.class_name}/{entry.name}"), origin, entry)
        for origin, entry in (group if sequential else by_name)
    ]
