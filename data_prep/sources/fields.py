"""Chooses the image and the label in sources whose samples have named fields, and parses labels."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from udkd.utils.errors import DataError

IMAGE_OPTION, LABEL_OPTION = "--image-field", "--label-field"
NO_LABEL = "samples without a label"  # reasons for skipping
NO_IMAGE = "files of samples without an image"
SPLIT_COLUMN_ADVICE = (
    "the column {name} of {file} may name the validation rows, but is not read: write a file for each split, or give "
    "--hold-out PERCENT if it does not"
)
LABEL_LIKE = re.compile(r"(.+[^a-z])?labels?", re.IGNORECASE)
Label = int | str | None
_NUMBER = re.compile(r"([+-]?\d+)(\.0*)?")
_MAX_NUMBER = 18  # digits
_MAX_NAME = 1_000  # characters
_TOO_LARGE = 2**31 - 1  # other programs turn -1 into this or 2**32 - 1; no dataset has as many classes
_SIMILAR = 0.9


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The names of the fields to read; None to detect them."""

    image: str | None = None
    label: str | None = None


DETECT_FIELDS = Fields()


def choose_field(names: Sequence[str], requested: str | None, *, where: object, what: str, option: str) -> str:
    """The requested name, or the only one. Raises DataError if it is missing, or if the user must choose.

    names: at least one, in the order of the source. where, what, option: for the error, such as `image column` for `what`.
    """
    if requested is None and len(names) == 1:
        return names[0]
    listed = ", ".join(names)
    if requested is None:
        raise DataError(f"{where} has several {what}s: {listed}; expected one; choose with {option} NAME")
    if requested not in names:
        raise DataError(f"{where} has no {what} {requested!r}, it has {listed}; expected one of these; change {option}")
    return requested


def label_of(value: object) -> Label:
    """Parse a class number or a class name; null, -1, NaN and an empty text are no label, None.

    Raises ValueError for other values: lists, fractions, numbers out of range.
    """
    if isinstance(value, float):
        value = None if value != value else int(value) if value.is_integer() else value
    if value is None or value in (-1, "-1", ""):
        return None
    if isinstance(value, str):
        if len(value) > _MAX_NAME:
            raise ValueError(f"holds a text of {len(value):,} characters")
        return value
    if not isinstance(value, int) or not 0 <= value < _TOO_LARGE:
        text = repr(value)
        raise ValueError(f"holds the label {text if len(text) <= 40 else text[:40] + '…'}")
    return int(value)


def label_of_text(text: str) -> Label:
    """`label_of` for a text, in which `3` and `3.0` are numbers."""
    number = _NUMBER.fullmatch(text := text.strip())
    if number is None:
        return label_of(text)
    if len(number[1]) > _MAX_NUMBER:
        raise ValueError(f"holds the label {text[:_MAX_NUMBER]}…")
    return label_of(int(number[1]))


@dataclass(frozen=True)
class LabelAgreement:
    """Checks that other label-like fields agree with the field that is read.

    A field agrees if it has a single value for each class, and nearly as many values as there are classes (two pairs of
    ImageNet's classes share a name). Coarser, finer or unrelated labels do not agree.
    """

    _values: dict[tuple[str, str], dict[Hashable, Hashable]] = field(default_factory=dict)

    def take(self, labels: Mapping[str, Label], where: object) -> Label:
        """The first label of a sample; None if it has none.

        labels: the labels by field, in order of priority. Raises DataError if another field disagrees.
        """
        known = [(name, label) for name, label in labels.items() if label is not None]
        if not known:
            return None
        (chosen, label), *others = known
        for name, value in others:
            if self._values.setdefault((chosen, name), {}).setdefault(label, value) != value:
                raise self._disagreement(where, chosen, name)
        return label

    def finish(self, where: object) -> None:
        """Raise DataError if another field distinguishes fewer classes than the one that is read."""
        for names, value_of in self._values.items():
            if len(set(value_of.values())) < _SIMILAR * len(value_of):
                raise self._disagreement(where, *names)

    @staticmethod
    def _disagreement(where: object, chosen: str, name: str) -> DataError:
        return DataError(
            f"{where} has labels that disagree, {chosen} and {name}; expected one; choose with {LABEL_OPTION} NAME"
        )
