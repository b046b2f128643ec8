"""The names of classes that a user gives, by label or by class folder: `--class-names FILE`."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from udkd.data.header import ClassName
from udkd.data_prep.classes import WNID, escape_name, imagenet_names, list_text, shorten_names, wnids_of
from udkd.data_prep.sources.source import Listing, class_name_of_label
from udkd.utils.errors import DataError
from udkd.utils.parsing import parse_json

_FORMS = "one name per line in label order, lines of wnid and name, or JSON (a list, or an object by label or class folder)"
_KEYED_LINE = re.compile(r"(n\d{8})\s+(\S.*)|([^\t]+)\t([^\t]+)")


@dataclass(frozen=True, kw_only=True)
class ClassNames:
    """Names of classes. by_label: of classes with a number; by_class: of classes with a name, such as a folder.

    An empty wnid keeps the class's own. where: for errors. partial: the source's labels may end before the names do.
    """

    where: str
    by_label: Mapping[int, ClassName]
    by_class: Mapping[str, ClassName]
    partial: bool = False

    @property
    def digest(self) -> str:
        """The sha256 of the names, in hex."""
        tables = (self.by_label, self.by_class)
        rows = [[[str(key), each.wnid, each.name] for key, each in sorted(table.items())] for table in tables]
        return hashlib.sha256(json.dumps(rows).encode(errors="surrogatepass")).hexdigest()


def class_names_of(
    value: str | PathLike[str] | Sequence[str] | Mapping[str, str] | Mapping[int, str],
    *,
    where: str = "class_names",
    partial: bool = False,
) -> ClassNames:
    """Class names from a file, a list (name i is that of label i) or a mapping by label, wnid or class folder.

    where, partial: see ClassNames, for values other than files. Raises DataError if they are of another form, or if a name is
    empty or occurs twice.
    """
    if isinstance(value, str | PathLike):
        return _read(Path(value))
    names = {str(key): name for key, name in value.items()} if isinstance(value, Mapping) else list(value)
    return replace(_parse(names, where), partial=partial)


def _read(path: Path) -> ClassNames:
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file; expected a file of class names; check --class-names")
    text = list_text(str(path))
    if text.lstrip()[:1] in ("{", "["):
        try:
            return _parse(parse_json(text), str(path))
        except ValueError as error:
            raise error if isinstance(error, DataError) else _fault(str(path), f"is not JSON ({error})") from None
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text.rstrip())]
    keyed = [match for line in lines if (match := _KEYED_LINE.fullmatch(line))]
    if len(keyed) < len(lines):
        return _parse(lines, str(path))
    pairs = [(match[1] or match[3].strip(), match[2] or match[4].strip()) for match in keyed]
    if twice := _first_twice(key for key, _ in pairs):
        raise _fault(str(path), f"has two lines of {twice!r}")
    if all(WNID.fullmatch(wnid) for wnid, _ in pairs):  # underscores as in the list of ImageNet's classes
        classes = [ClassName(wnid=wnid, name=name.replace("_", " ")) for wnid, name in pairs]
        return _named(str(path), dict(enumerate(classes)), {each.wnid: each for each in classes})
    return _parse(dict(pairs), str(path))


def _parse(value: object, where: str) -> ClassNames:
    if isinstance(value, list):
        return _of_list(value, where)
    if not isinstance(value, dict) or not value:
        raise _fault(where, "is neither a list nor an object by class" if value else "names no class")
    by_class = {str(key): _class(name, where) for key, name in value.items()}
    if all(re.fullmatch(r"\d{1,9}", key) for key in by_class):
        by_label = {int(key): each for key, each in by_class.items()}
        if len(by_label) < len(by_class):
            raise _fault(where, "names a label twice")
        return _named(where, by_label, by_class)
    if all(WNID.fullmatch(key) for key in by_class):
        by_class = {key: ClassName(wnid=key, name=each.name) for key, each in by_class.items()}
        in_order = list(by_class) == sorted(by_class)  # otherwise a key's position may or may not be its label
        return _named(where, dict(enumerate(by_class.values())) if in_order else {}, by_class)
    return _named(where, {}, by_class)


def _of_list(names: list[object], where: str) -> ClassNames:
    if not names:
        raise _fault(where, "names no class")
    classes = [_class(name, where) for name in names]
    wnids = sum(bool(each.wnid) for each in classes)
    if wnids not in (0, len(classes)):
        raise _fault(where, f"mixes {wnids} wnids and {len(classes) - wnids} other names")
    known = imagenet_names()
    if len(classes) == len(known) and (ordered := wnids_of([each.name for each in classes])) == sorted(known):
        classes = [ClassName(wnid=wnid, name=known[wnid]) for wnid in ordered]
    by_class = {str(name): each for name, each in zip(names, classes, strict=True)}
    return _named(where, dict(enumerate(classes)), by_class)


def _class(value: object, where: str) -> ClassName:
    """A class from a wnid, a readable name, or both as in Keras's imagenet_class_index.json."""
    if isinstance(value, list) and len(value) == 2 and WNID.fullmatch(str(value[0])) and isinstance(value[1], str):
        return ClassName(wnid=value[0], name=value[1].replace("_", " "))
    if not isinstance(value, str) or not value.strip():
        raise _fault(where, f"holds {value!r} in the place of a name"[:200])
    name = value.strip()
    if WNID.fullmatch(name):
        return ClassName(wnid=name, name=imagenet_names().get(name, name))
    return ClassName(wnid="", name=escape_name(name))


def _named(where: str, by_label: dict[int, ClassName], by_class: dict[str, ClassName]) -> ClassNames:
    """The names, checked. Two of ImageNet's classes share a name, so only names without a wnid must differ."""
    for classes in (by_label.values(), by_class.values()):
        if twice := _first_twice(each.wnid or each.name for each in classes):
            raise _fault(where, f"names two classes {twice!r}")
    return ClassNames(where=where, by_label=by_label, by_class=by_class)


def _first_twice(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _fault(where: str, found: str) -> DataError:
    return DataError(f"{where} {found}; expected {_FORMS}, without duplicates; correct it")


def rename_classes(listings: Sequence[Listing], names: ClassNames) -> tuple[dict[str, str], list[str]]:
    """Give the classes in `listings` their wnids. Returns readable names by class, and warnings.

    Classes are looked up by label, if the source has one, and by their own name. Raises DataError for a label without a name,
    and if the names are clearly those of other labels.
    """
    label_of = {name: label for listing in listings for name, label in listing.labels.items()}
    if not names.by_class.keys() >= label_of.keys():
        _check_labels(label_of, names)
    readable: dict[str, str] = {}
    for listing in listings:
        classes = listing.entries.classes.values
        for n, own in enumerate(classes):
            by_label, by_class = names.by_label.get(listing.labels.get(own, -1)), names.by_class.get(own)
            if by_label and by_class and by_label != by_class:
                raise DataError(
                    f"{names.where} names label {listing.labels[own]} {by_label.name!r}, which is {own!r} in the source; "
                    "expected the order of its labels; correct it"
                )
            if named := by_label or by_class:
                classes[n] = named.wnid or own
                readable[classes[n]] = named.name
    absent = [each.name for label, each in sorted(names.by_label.items()) if label not in label_of.values()]
    if not label_of or not absent or names.partial:
        return readable, []
    of = f"{len(absent)} of the {len(names.by_label)} classes of {names.where}"
    return readable, [f"{of} have no image: {shorten_names(absent)}"]


def _check_labels(label_of: Mapping[str, int], names: ClassNames) -> None:
    """Raise DataError if labels, by class, have no names, or if there are more names than labels."""
    labels, named = set(label_of.values()), len(names.by_label)
    if not named and any(name == class_name_of_label(label) for name, label in label_of.items()):
        raise DataError(
            f"{names.where} names classes by folder, and the source's classes have only numbers; expected a name for each "
            "label; list the names in label order"
        )
    missing = sorted(labels - names.by_label.keys()) if named else []
    if missing:
        raise DataError(
            f"{names.where} names {named:,} classes and none of label {missing[0]}, the source's labels are {min(labels)} to "
            f"{max(labels)}; expected a name for each, the first for label 0; correct it"
        )
    count = max(labels) + 1
    if named and len(labels) == count <= max(names.by_label) and not names.partial:
        raise DataError(
            f"{names.where} names {named:,} classes and the source has {count:,}, labels 0 to {count - 1}; expected as many "
            "names; remove those of other classes"
        )


def order_warning(chosen: Sequence[str], names: ClassNames) -> list[str]:
    """A warning if the classes, which are sorted, are not in the order of the names."""
    label_of = {each.wnid or each.name: label for label, each in names.by_label.items()}
    before = [label_of[name] for name in chosen if name in label_of]
    moved = next((n for n, (label, order) in enumerate(zip(before, sorted(before), strict=True)) if label != order), None)
    if moved is None:
        return []
    what = f"{chosen[moved]} is label {before[moved]} of {names.where} and now {moved}"
    return [f"labels are in the order of the sorted classes: {what}"]


def require_named(chosen: Sequence[str], readable: Mapping[str, str], names: ClassNames) -> None:
    """Raise DataError if a class of the source has no name."""
    missing = [name for name in chosen if name not in readable]
    if missing:
        raise DataError(
            f"{names.where} does not name {len(missing)} of the source's {len(chosen)} classes: {shorten_names(missing)}; "
            "expected each; give JSON or lines of class, tab, name, with the source's own class names"
        )
