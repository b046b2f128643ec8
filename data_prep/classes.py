"""Class lists, and the names people read."""

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path

from udkd.data.header import ClassName
from udkd.utils.errors import DataError
from udkd.utils.files import read_regular
from udkd.utils.parsing import parse_json

ALL = "all"
LIMIT_BYTES = 1 << 26  # of a class list
MAX_LETTERS = 80  # letters of a name in a message
BUILT_IN = {"imagenet100": "imagenet100-wnids.txt"}
WNID = re.compile(r"n\d{8}")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def imagenet_names() -> dict[str, str]:
    """Wnid to name for the 1,000 ILSVRC2012 classes, spaces for underscores."""
    text = (resources.files("udkd") / "assets" / "imagenet1k-classes.tsv").read_text()
    return {wnid: name.replace("_", " ") for wnid, name in (line.split("\t") for line in text.splitlines() if line)}


def label_classes(wnids: Iterable[str]) -> tuple[ClassName, ...]:
    """The classes in label order (sorted by wnid), a folder that is no known wnid under its own name.

    Raises DataError where two of them read alike.
    """
    names = imagenet_names()
    found = tuple(ClassName(wnid=escape_name(wnid), name=names.get(wnid, escape_name(wnid))) for wnid in sorted(wnids))
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
    known = {wnid: name.casefold() for wnid, name in imagenet_names().items()}
    first = [name.split(",")[0].strip().replace("_", " ").casefold() for name in names]
    if first == [known[wnid] for wnid in sorted(known)]:
        return sorted(known)
    wnid_of = {name: wnid for wnid, name in known.items()}
    common = Counter(known.values())
    return [wnid_of[name] for name in first] if all(common[name] == 1 for name in first) else None


def escape_name(name: str) -> str:
    """A file name as text that any file format and any line takes: what is no text becomes backslash escapes.

    That is undecodable bytes, and control characters: a line break in a name must not break a line of a report in two.
    """
    text = name_bytes(name).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def name_bytes(name: str) -> bytes:
    """A name's bytes, as its file system has them; lone surrogates, which JSON can hold, as backslash escapes."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace")


def read_class_list(choice: str) -> list[tuple[str, ...]] | None:
    """The lines of a built-in list or of a file, each as the names it may mean, the likeliest first; None for all classes.

    Of a line `sea lion  # comment` these are the line, the line without its comment, what stands before a tab, a comma or a
    number at its end, and the first word. A JSON list, or an object with a key per class, is read as well. Raises DataError
    where the choice is neither a built-in list nor a file, or the file names no class.
    """
    if choice == ALL:
        return None
    if choice in BUILT_IN:
        text = (resources.files("udkd") / "assets" / BUILT_IN[choice]).read_text(encoding="utf-8")
    elif Path(choice).is_file():
        text = _list_text(choice)
    else:
        raise DataError(f"class list {choice!r} is not there; expected {', '.join(BUILT_IN)}, {ALL} or a file; check --classes")
    lines = _json_names(text) or [found for line in re.split(r"\r\n|\r|\n", text) if (found := _names(line))]
    if not lines:
        raise DataError(f"class list {choice} names no class; expected one class per line; check the file")
    return lines


def _list_text(path: str) -> str:
    """A class list's text: UTF-8, or UTF-16 as Windows writes it; a byte order mark is none of it."""
    try:
        data = read_regular(Path(path), LIMIT_BYTES)
        return data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8").lstrip("\ufeff")
    except UnicodeDecodeError:
        raise DataError(f"class list {path} is not text; expected one class per line; check the path") from None
    except ValueError as error:
        raise DataError(f"class list {path} cannot be read ({error}); expected one class per line; check the path") from None


def _json_names(text: str) -> list[tuple[str, ...]]:
    """The keys of a JSON object, such as Kaggle's Labels.json, or the texts of a list; nothing where it is no JSON."""
    if text.lstrip()[:1] not in ("{", "["):
        return []
    try:
        value = parse_json(text)
    except ValueError:
        return []
    return [(name,) for name in value if isinstance(name, str) and name] if isinstance(value, dict | list) else []


def _names(line: str) -> tuple[str, ...]:
    """What a line of a class list may name; nothing for an empty one and a comment."""
    line, cut = line.strip(), line.split("#")[0].strip()
    bare = re.sub(r"\s#.*", "", line).strip()
    first = re.split(r"[\t,]", bare)[0].strip()
    numbered = re.sub(r"\s+\d+", "", bare) if re.fullmatch(r"\D+\s\d+", bare) else bare  # `sea lion 150`, as Caffe lists
    return tuple(dict.fromkeys((line, bare, bare.rstrip("/"), first, cut, numbered, cut.split()[0]))) if cut else ()


def choose_classes(found: Iterable[str], choice: str) -> list[str]:
    """The classes to convert, sorted. Raises DataError where the list matches nothing, or only a part of it is there."""
    there = sorted(set(found))
    lines = read_class_list(choice)
    if lines is None:
        return there
    folders = _FolderIndex(there)
    matched = {names: folders.of(names, choice) for names in lines}
    _check_first_words(matched, choice)
    chosen = sorted({folder for folder in matched.values() if folder is not None})
    missing = sorted({names[0].split("#")[0].strip() or names[0] for names, folder in matched.items() if folder is None})
    if not chosen:
        raise DataError(
            f"class list {choice} matches nothing: it names {_shorten(missing)}, the source holds {_shorten(there)}; "
            f"{folders.hint(missing)}expected the source's folder names; check --classes"
        )
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(matched)} classes of {choice} are not in the source: {_shorten(missing)}; "
            f"{folders.hint(missing)}expected all; add the source that holds them, or list the classes you want in a file"
        )
    return chosen


def _check_first_words(matched: Mapping[tuple[str, ...], str | None], choice: str) -> None:
    """Raise DataError where a line's first word is a folder that is another line's, too; wnids stand before any name."""
    lines: dict[str, list[tuple[str, ...]]] = {}
    for names, folder in matched.items():
        if folder is not None and not WNID.fullmatch(folder):
            lines.setdefault(folder, []).append(names)
    for folder, several in lines.items():
        short = next((names[0] for names in several if folder not in names[:-1] and _has_words(names[0])), None)
        if short is not None and len(several) > 1:
            other = next(names[0] for names in several if names[0] != short)
            raise DataError(
                f"class list {choice} names {short!r} and {other!r}, which both lead to the folder {folder!r}, the first word; "
                "expected the source's folder names; check --classes"
            )


def _has_words(line: str) -> bool:
    """Whether a line's name, without what may follow a tab, a comma, a hash or a blank and a number, has several words."""
    return len(re.sub(r"\s\d+$", "", re.split(r"[\t,#]", line)[0].strip()).split()) > 1


class _FolderIndex:
    """The class folders that are there, to be found by name; composed and decomposed letters (NFC, NFD) are the same."""

    def __init__(self, names: Sequence[str]) -> None:
        self._there = set(names)
        self._by_composed: dict[str, list[str]] = {}
        self._by_case: dict[str, str] = {}
        for name in names:
            self._by_composed.setdefault(_composed(name), []).append(name)
            self._by_case.setdefault(_composed(name).casefold(), name)

    def of(self, names: Sequence[str], choice: str) -> str | None:
        """The first of the names that is a folder. Raises DataError where letters alone do not decide between two."""
        for name in names:
            if name in self._there:
                return name
            same = self._by_composed.get(_composed(name), [])
            if len(same) > 1:
                raise DataError(
                    f"class list {choice} names {name!a}, and the source holds {', '.join(map(ascii, same))}, which differ "
                    "only in how letters are composed (NFC, NFD); expected one; rename or merge them"
                )
            if same:
                return same[0]
        return None

    def hint(self, missing: Sequence[str]) -> str:
        """Which of them are there but for upper and lower case."""
        near = next(((name, other) for name in missing if (other := self._by_case.get(_composed(name).casefold()))), None)
        return f"{near[0]!r} differs from the folder {near[1]!r} only in upper and lower case; " if near else ""


def similar_names(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Pairs of names that people read as one, and in what they differ."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(" ".join(_composed(name).casefold().split()), []).append(name)
    return [(one, other, _difference(one, other)) for group in groups.values() for one, other in pairwise(group)]


def _difference(one: str, other: str) -> str:
    if _composed(one) == _composed(other):
        return "how letters are composed (NFC, NFD)"
    return "upper and lower case" if _composed(one).casefold() == _composed(other).casefold() else "blanks"


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _shorten(names: Sequence[str], count: int = 5) -> str:
    shown = ", ".join(name if len(name) <= MAX_LETTERS else f"{name[:MAX_LETTERS]}…" for name in names[:count])
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"
