"""Sources whose samples have named fields: which of them is the image, which the label, and what a label's value means."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from udkd.utils.errors import DataError

IMAGE_OPTION, LABEL_OPTION = "--image-field", "--label-field"
NO_LABEL = "samples without a label"  # reasons for passing over
NO_IMAGE = "files of samples without an image"
LABEL_LIKE = re.compile(r"(.+[^a-z])?labels?", re.IGNORECASE)
Label = int | str | None
_NUMBER = re.compile(r"([+-]?\d+)(\.0*)?")
_LONGEST_NUMBER = 18  # digits
_LONGEST_NAME = 1_000
_TOO_LARGE = 2**31 - 1  # this and 2**32 - 1 are what -1 becomes elsewhere; no set has as many classes
_SIMILAR = 0.9


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The fields that the user chose by name; None to look."""

    image: str | None = None
    label: str | None = None


DETECT_FIELDS = Fields()


def choose_field(names: Sequence[str], wanted: str | None, *, where: object, what: str, option: str) -> str:
    """The wanted name, or the only one. Raises DataError where it is not there, or where there are several to choose from.

    names: at least one, in the source's order. what: such as `image column`.
    """
    if wanted is None and len(names) == 1:
        return names[0]
    listed = ", ".join(names)
    if wanted is None:
        raise DataError(f"{where} has several {what}s: {listed}; expected to know which; choose with {option} NAME")
    if wanted not in names:
        raise DataError(f"{where} has no {what} {wanted!r}, it has {listed}; expected one of these; change {option}")
    return wanted


def label_of(value: object) -> Label:
    """A class number or a class name; None for what tells of no label: null, -1, NaN, an empty text.

    Raises ValueError for anything else: lists, fractions, numbers that are no class's.
    """
    if isinstance(value, float):
        value = None if value != value else int(value) if value.is_integer() else value
    if value is None or value in (-1, "-1", ""):
        return None
    if isinstance(value, str):
        if len(value) > _LONGEST_NAME:
            raise ValueError(f"holds a text of {len(value):,} characters")
        return value
    if not isinstance(value, int) or not 0 <= value < _TOO_LARGE:
        text = repr(value)
        raise ValueError(f"holds the label {text if len(text) <= 40 else text[:40] + '…'}")
    return int(value)


def label_of_text(text: str) -> Label:
    """See `label_of`; of a text, in which digits are a number, also as `3.0`."""
    number = _NUMBER.fullmatch(text := text.strip())
    if number is None:
        return label_of(text)
    if len(number[1]) > _LONGEST_NUMBER:
        raise ValueError(f"holds the label {text[:_LONGEST_NUMBER]}…")
    return label_of(int(number[1]))


@dataclass(frozen=True)
class LabelAgreement:
    """Whether further fields that look like labels tell the same classes as the one that is taken.

    They do where each class of ours has one value of theirs, and nearly as many values are there as classes: two of ImageNet's
    classes share a name with another. A coarser or finer label, or one of another kind, is another reading.
    """

    _values: dict[tuple[str, str], dict[Hashable, Hashable]] = field(default_factory=dict)

    def take(self, labels: Mapping[str, Label], where: object) -> Label:
        """A sample's label, which is the first that it has; None where it has none.

        labels: by field, those that count first come first. Raises DataError where another field differs.
        """
        known = [(name, label) for name, label in labels.items() if label is not None]
        if not known:
            return None
        (taken, label), *others = known
        for name, value in others:
            if self._values.setdefault((taken, name), {}).setdefault(label, value) != value:
                raise self._differ(where, taken, name)
        return label

    def finish(self, where: object) -> None:
        """Raise DataError where a field tells fewer classes."""
        for names, told in self._values.items():
            if len(set(told.values())) < _SIMILAR * len(told):
                raise self._differ(where, *names)

    @staticmethod
    def _differ(where: object, taken: str, name: str) -> DataError:
        return DataError(
            f"{where} has labels that tell different classes, {taken} and {name}; expected to know which counts; "
            f"choose with {LABEL_OPTION} NAME"
        )
