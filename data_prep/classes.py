"""Reads class lists, and finds the classes that they name."""

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path

from udkd.data.header import ClassName
from udkd.utils.errors import DataError
from udkd.utils.files import read_regular
from udkd.utils.parsing import parse_json

ALL = "all"
LIMIT_BYTES = 1 << 26  # of a class list
MAX_LETTERS = 80  # of a name in a message
BUILT_IN = {"imagenet100": "imagenet100-wnids.txt"}
WNID = re.compile(r"n\d{8}")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def imagenet_names() -> dict[str, str]:
    """The names of the 1,000 ILSVRC2012 classes by wnid, with spaces instead of underscores."""
    text = (resources.files("udkd") / "assets" / "imagenet1k-classes.tsv").read_text(encoding="utf-8")
    return {wnid: name.replace("_", " ") for wnid, name in (line.split("\t") for line in text.splitlines() if line)}


def label_classes(wnids: Iterable[str], readable: Mapping[str, str] | None = None) -> tuple[ClassName, ...]:
    """The classes in label order, sorted by wnid. A folder whose name is not a known wnid keeps its name.

    readable: names by wnid or folder, from --class-names. Raises DataError if two names are equal after escaping.
    """
    names = imagenet_names() | {wnid: escape_name(name) for wnid, name in (readable or {}).items()}
    classes = tuple(ClassName(wnid=escape_name(wnid), name=names.get(wnid, escape_name(wnid))) for wnid in sorted(wnids))
    for first, second in pairwise(sorted(entry.wnid for entry in classes)):
        if first == second:
            raise DataError(
                f"two classes are called {first} once unprintable characters are escaped; expected different names; rename one"
            )
    return classes


def wnids_of(names: Sequence[str]) -> list[str] | None:
    """The wnids of classes given by ImageNet's names (`tench, Tinca tinca`); None if any name is not one of these.

    Two pairs of ImageNet's classes share a name (crane, maillot); only the full list of 1,000 distinguishes them.
    """
    known = {wnid: name.casefold() for wnid, name in imagenet_names().items()}
    first = [name.split(",")[0].strip().replace("_", " ").casefold() for name in names]
    if first == [known[wnid] for wnid in sorted(known)]:
        return sorted(known)
    wnid_of = {name: wnid for wnid, name in known.items()}
    common = Counter(known.values())
    return [wnid_of[name] for name in first] if all(common[name] == 1 for name in first) else None


def escape_name(name: str) -> str:
    """A file name as printable text: undecodable bytes and control characters become backslash escapes.

    A line break in a name must not split a line of a report.
    """
    text = name_bytes(name).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def name_bytes(name: str) -> bytes:
    """The bytes of a name in its file system. Lone surrogates, which JSON can hold, become backslash escapes."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class ListedClass:
    """A line of a class list. names: what may be the class's name, most likely first. first_word: used if none of them is."""

    names: tuple[str, ...]
    first_word: str = ""


def read_class_list(choice: str) -> list[ListedClass] | None:
    """The lines of a built-in list or of a file; None for all classes.

    The names in `sea lion  # comment` are the line, the line without its comment, and the parts before a tab, a comma or a
    trailing number. JSON is read too: a list of names, or an object by class or by number. Raises DataError if the choice is
    neither a built-in list nor a file, or if the file names no class.
    """
    if choice == ALL:
        return None
    if choice in BUILT_IN:
        text = (resources.files("udkd") / "assets" / BUILT_IN[choice]).read_text(encoding="utf-8")
    elif Path(choice).is_file():
        text = list_text(choice)
    else:
        raise DataError(
            f"class list {choice!r} does not exist; expected {', '.join(BUILT_IN)}, {ALL} or a file; check --classes"
        )
    lines = _json_lines(text) or [listed for line in re.split(r"\r\n|\r|\n", text) if (listed := _line(line))]
    if not lines:
        raise DataError(f"class list {choice} names no class; expected one class per line; check the file")
    return lines


def list_text(path: str) -> str:
    """The text of a class list in UTF-8, or in UTF-16 as Windows writes it, without its byte order mark."""
    try:
        data = read_regular(Path(path), LIMIT_BYTES)
        return data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8").lstrip("\ufeff")
    except UnicodeDecodeError:
        raise DataError(f"class list {path} is not text; expected one class per line; check the path") from None
    except ValueError as error:
        raise DataError(f"class list {path} cannot be read ({error}); expected one class per line; check the path") from None


def _json_lines(text: str) -> list[ListedClass]:
    """The strings of a JSON list, or the keys and values of an object; empty if the text is not JSON.

    Objects are Kaggle's Labels.json, `{"n01440764": "tench"}`, and Keras's and others' `{"0": ["n01440764", "tench"]}`.
    """
    if text.lstrip()[:1] not in ("{", "["):
        return []
    try:
        value = parse_json(text)
    except ValueError:
        return []
    if isinstance(value, dict):
        return [ListedClass((key, *_texts(each))) for key, each in value.items() if key]
    return [ListedClass((name,)) for name in _texts(value)]


def _texts(value: object) -> list[str]:
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str) and each]


def _line(line: str) -> ListedClass | None:
    """The class in a line of a class list; None for a blank line and a comment."""
    line, cut = line.strip(), line.split("#")[0].strip()
    if not cut:
        return None
    bare = re.sub(r"\s#.*", "", line).strip()
    first = re.split(r"[\t,]", bare)[0].strip()
    numbered = re.sub(r"\s+\d+", "", bare) if re.fullmatch(r"\D+\s\d+", bare) else bare  # `sea lion 150`, as Caffe lists
    return ListedClass(tuple(dict.fromkeys((line, bare, bare.rstrip("/"), first, cut, numbered))), cut.split()[0])


def choose_classes(folders: Iterable[str], choice: str, readable: Mapping[str, str] | None = None) -> list[str]:
    """The class folders to convert, sorted. A line is a folder's name, else a readable name, else its first word is a folder.

    readable: names by folder, from --class-names; wnids have ImageNet's names. Raises DataError if any class of the list is
    missing, and for a readable name of two classes.
    """
    present = sorted(set(folders))
    lines = read_class_list(choice)
    if lines is None:
        return present
    if len(lines) == len(imagenet_names()) and (wnids := wnids_of([listed.names[0] for listed in lines])):
        lines = [ListedClass((wnid,)) for wnid in wnids]  # only the full list tells the classes of one name apart
    index = _FolderIndex(present, imagenet_names() | dict(readable or {}))
    matched = {listed: index.find(listed, choice) for listed in lines}
    _check_one_a_line(matched, set(present), choice)
    _check_first_words(matched, choice)
    chosen = sorted({folder for folder in matched.values() if folder is not None})
    absent = [listed.names[0] for listed, folder in matched.items() if folder is None]
    missing = sorted({name.split("#")[0].strip() or name for name in absent})
    if not chosen:
        raise DataError(
            f"class list {choice} matches nothing: it names {shorten_names(missing)}, the source holds "
            f"{shorten_names(present)}; {index.case_hint(missing)}expected the source's folder names; check --classes"
        )
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(matched)} classes of {choice} are not in the source: {shorten_names(missing)}; "
            f"{index.case_hint(missing)}expected all; add the source that holds them, or list the classes you want in a file"
        )
    return chosen


def _check_one_a_line(matched: Mapping[ListedClass, str | None], present: Collection[str], choice: str) -> None:
    """Raise DataError if a line names other folders, too, after commas, or wnids after blanks."""
    for listed, folder in matched.items():
        line = re.sub(r"\s#.*", "", listed.names[0])
        if folder is None or line in present:
            continue
        parts = {*map(str.strip, re.split(r"[\t,]", line)), *filter(WNID.fullmatch, re.split(r"[\s,]+", line))}
        if other := min((part for part in parts if part in present and part != folder), default=None):
            raise DataError(
                f"class list {choice} names {folder!r} and {other!r} in one line; expected one class per line; write each in a "
                "line of its own"
            )


def _check_first_words(matched: Mapping[ListedClass, str | None], choice: str) -> None:
    """Raise DataError if two lines match one folder, one of them by its first word only. A wnid may be a first word."""
    lines: dict[str, list[ListedClass]] = {}
    for listed, folder in matched.items():
        if folder is not None and not WNID.fullmatch(folder):
            lines.setdefault(folder, []).append(listed)
    for folder, several in lines.items():
        texts = [listed.names[0] for listed in several]
        by_word = [each for each in several if folder not in each.names and _composed(each.first_word) == _composed(folder)]
        short = next((each.names[0] for each in by_word if _is_several_words(each.names[0])), None)
        if short is not None and len(several) > 1:
            other = next(text for text in texts if text != short)
            raise DataError(
                f"class list {choice} names {short!r} and {other!r}, which both match the folder {folder!r} by the first word; "
                "expected the source's folder names; check --classes"
            )


def _is_several_words(line: str) -> bool:
    """Whether the name in a line, which ends at a tab, a comma, a hash or a trailing number, has several words."""
    return len(re.sub(r"\s\d+$", "", re.split(r"[\t,#]", line)[0].strip()).split()) > 1


class _FolderIndex:
    """Finds class folders by name. Composed and decomposed letters (NFC, NFD) compare equal. readable: names by folder."""

    def __init__(self, names: Sequence[str], readable: Mapping[str, str]) -> None:
        self._names = set(names)
        self._by_composed: dict[str, list[str]] = {}
        self._by_case: dict[str, str] = {}
        self._by_readable: dict[str, list[str]] = {}
        for name in names:
            self._by_composed.setdefault(_composed(name), []).append(name)
            self._by_case.setdefault(_composed(name).casefold(), name)
        for folder, name in readable.items():
            self._by_readable.setdefault(_readable(name), []).append(folder)

    def find(self, listed: ListedClass, choice: str) -> str | None:
        """The folder of a line. Raises DataError if it is one of two folders: in NFC and NFD, or of one readable name."""
        for find, names in ((self._folder, listed.names), (self._named, listed.names), (self._folder, (listed.first_word,))):
            if folder := next((folder for name in names if name and (folder := find(name, choice))), None):
                return folder
        return None

    def _folder(self, name: str, choice: str) -> str | None:
        if name in self._names:
            return name
        matches = self._by_composed.get(_composed(name), [])
        if len(matches) > 1:
            raise DataError(
                f"class list {choice} names {name!a}, and the source holds {', '.join(map(ascii, matches))}, which differ "
                "only in how letters are composed (NFC, NFD); expected one; rename or merge them"
            )
        return matches[0] if matches else None

    def _named(self, name: str, choice: str) -> str | None:
        folders = self._by_readable.get(_readable(name), [])
        if len(folders) > 1 and self._names.intersection(folders):
            raise DataError(
                f"class list {choice} names {name!r}, which is the name of {' and '.join(folders)}; expected one class; write "
                "the one that you want instead"
            )
        return folders[0] if folders and folders[0] in self._names else None

    def case_hint(self, missing: Sequence[str]) -> str:
        """A clause naming the first missing class that matches a folder except for case; empty if none does."""
        near = next(((name, other) for name in missing if (other := self._by_case.get(_composed(name).casefold()))), None)
        return f"{near[0]!r} differs from the folder {near[1]!r} only in upper and lower case; " if near else ""


def similar_names(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Pairs of names that people could confuse, with a text about the difference."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(" ".join(_composed(name).casefold().split()), []).append(name)
    return [(first, second, _difference(first, second)) for group in groups.values() for first, second in pairwise(group)]


def _difference(first: str, second: str) -> str:
    if _composed(first) == _composed(second):
        return "how letters are composed (NFC, NFD)"
    return "upper and lower case" if _composed(first).casefold() == _composed(second).casefold() else "blanks"


def _readable(name: str) -> str:
    return " ".join(_composed(name).replace("_", " ").casefold().split())


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def shorten_names(names: Sequence[str], count: int = 5) -> str:
    """The first names, and the number of the others."""
    shown = ", ".join(name if len(name) <= MAX_LETTERS else f"{name[:MAX_LETTERS]}…" for name in names[:count])
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"
