"""Class lists, and the names people read."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path

from udkd.formats.dataset import ClassName
from udkd.words.errors import DataError

ALL = "all"
BUILT_IN = {"imagenet100": "imagenet100-wnids.txt"}
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def class_names() -> dict[str, str]:
    """Wnid to name for the 1,000 ILSVRC2012 classes, spaces for underscores."""
    text = (resources.files("udkd") / "data" / "imagenet1k-classes.tsv").read_text()
    return {wnid: name.replace("_", " ") for wnid, name in (line.split("\t") for line in text.splitlines() if line)}


def named(wnids: Iterable[str]) -> tuple[ClassName, ...]:
    """The classes in label order (sorted by wnid), a folder that is no known wnid under its own name.

    Raises DataError where two of them read alike.
    """
    names = class_names()
    found = tuple(ClassName(wnid=printable(wnid), name=names.get(wnid, printable(wnid))) for wnid in sorted(wnids))
    for one, other in pairwise(sorted(entry.wnid for entry in found)):
        if one == other:
            raise DataError(
                f"two classes read {one} once unprintable letters are written out; expected names apart; rename one"
            )
    return found


def wnids_of(names: Sequence[str]) -> list[str] | None:
    """The wnids of classes that go by ImageNet's names (`tench, Tinca tinca`); None where any is not one of these.

    Two pairs of ImageNet's classes share a name (crane, maillot): these are told apart only in the whole list of 1,000.
    """
    known = {wnid: name.casefold() for wnid, name in class_names().items()}
    first = [name.split(",")[0].strip().replace("_", " ").casefold() for name in names]
    if first == [known[wnid] for wnid in sorted(known)]:
        return sorted(known)
    wnid_of = {name: wnid for wnid, name in known.items()}
    common = Counter(known.values())
    return [wnid_of[name] for name in first] if all(common[name] == 1 for name in first) else None


def printable(name: str) -> str:
    """A file name as text that any file format and any line takes: what is no text becomes backslash escapes.

    That is undecodable bytes, and control characters: a line break in a name must not break a line of a report in two.
    """
    text = utf8(name).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def utf8(name: str) -> bytes:
    """A name's bytes, as its file system has them; lone surrogates, which JSON can hold, as backslash escapes."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace")


def wanted_classes(choice: str) -> list[str] | None:
    """The wnids of a built-in list or of a file (the first word of each line; `#` starts a comment); None for all classes.

    Raises DataError where the choice is neither a built-in list nor a file, or the file names no class.
    """
    if choice == ALL:
        return None
    if choice in BUILT_IN:
        text = (resources.files("udkd") / "data" / BUILT_IN[choice]).read_text()
    elif Path(choice).is_file():
        try:
            text = Path(choice).read_text()
        except UnicodeDecodeError:
            raise DataError(f"class list {choice} is not text; expected one class per line; check the path") from None
    else:
        raise DataError(f"class list {choice!r} is not there; expected {', '.join(BUILT_IN)}, {ALL} or a file; check --classes")
    words = [line.split("#")[0].split() for line in text.splitlines()]
    wnids = sorted({line[0] for line in words if line})
    if not wnids:
        raise DataError(f"class list {choice} names no class; expected one class per line; check the file")
    return wnids


def choose_classes(found: Iterable[str], choice: str) -> list[str]:
    """The classes to convert, sorted. Raises DataError where the list matches nothing, or only a part of it is there."""
    there = sorted(set(found))
    wanted = wanted_classes(choice)
    if wanted is None:
        return there
    missing = sorted(set(wanted) - set(there))
    if len(missing) == len(wanted):
        raise DataError(
            f"class list {choice} matches nothing: it names {_few(wanted)}, the source holds {_few(there)}; "
            "expected the source's folder names; check --classes"
        )
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(wanted)} classes of {choice} are not in the source: {_few(missing)}; "
            "expected all; add the source that holds them, or list the classes you want in a file"
        )
    return wanted


def _few(names: list[str], count: int = 5) -> str:
    shown = ", ".join(names[:count])
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"
