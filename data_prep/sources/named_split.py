"""Finds splits in the names of files and folders, and container files; turns text labels into class names."""

import re
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Final

from udkd.data_prep.sources.address import Address
from udkd.data_prep.sources.source import Listing, SourceSplit
from udkd.utils.errors import DataError

_WORDS: Final = r"(?:(?P<train>train(?:ing|val)?|trn)|(?P<val>val(?:id|idation)?|dev|eval(?:uation)?)|(?P<test>test(?:ing)?))"
_SPLIT = re.compile(rf"(?<![a-z]){_WORDS}(?:sets?|data|imgs?|images?|splits?)?(?![a-z])")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@lru_cache(maxsize=4096)
def all_splits_in(name: str) -> tuple[SourceSplit, ...]:
    """The splits that occur as words in a name, in order, as in `ILSVRC2012_img_train`, `TestSet`, `val2017`, `train_val`."""
    return tuple(_split(match) for match in _SPLIT.finditer(_HUMP.sub("_", name).lower()))


def single_split_in(name: str) -> SourceSplit | None:
    """The split that occurs in a name; None if there is none or several."""
    splits = set(all_splits_in(name))
    return splits.pop() if len(splits) == 1 else None


def last_split_in(path: PurePath) -> SourceSplit | None:
    """The last split that occurs in a path; None if there is none."""
    splits = all_splits_in(str(path))
    return splits[-1] if splits else None


def _split(match: re.Match[str]) -> SourceSplit:
    return "train" if match["train"] else "val" if match["val"] else "test"


class LabelFolders:
    """Turns text labels into names of class folders, without slashes. path: of the source, for errors."""

    def __init__(self, path: PurePath | Address) -> None:
        self._path = path
        self._label_of: dict[str, str] = {}

    def folder(self, label: str) -> str:
        """The class folder of a label. Raises DataError if another label has the same folder, as classes must not be merged."""
        folder = label.replace("/", "-")
        other = self._label_of.setdefault(folder, label)
        if other != label:
            raise DataError(
                f"{self._path} has the labels {other!r} and {label!r}; expected names that differ in more than a slash; "
                "rename one"
            )
        return folder

    def of_label(self, label: int | str, listing: Listing) -> str:
        """The class of a number, which is noted in the listing, or of a text."""
        return self.folder(listing.class_of_label(label) if isinstance(label, int) else label)


def find_files(path: Path, ending: str) -> list[Path]:
    """Files with a suffix in any case: `path` itself, or those in a folder or one level down, sorted, without hidden ones."""
    if not path.is_dir():
        return [path] if path.suffix.lower() == ending and path.is_file() else []
    any_case = "*" + "".join(f"[{letter}{letter.upper()}]" for letter in ending)
    files = [*path.glob(any_case), *path.glob(f"*/{any_case}")]
    return sorted(file for file in files if not file.name.startswith(".") and file.is_file())
