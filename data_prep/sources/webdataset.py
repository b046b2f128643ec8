"""An existing WebDataset: tars in which the files of a sample follow each other and share their name up to the first dot."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from data_prep.sources.layout import IMAGE_ENDINGS
from data_prep.sources.members import Member, is_tar, members, read_at
from data_prep.sources.named_split import Folders, class_of_label, files_below, split_of
from data_prep.sources.source import Entry, EntryTable, Listing, PassedOver
from udkd.words.errors import DataError

LABEL_ENDINGS = ("cls", "json")
JSON_KEYS = ("label", "cls", "class", "class_id", "wnid", "class_name")
LABEL_BYTES = 1 << 20  # what a label file may have
LONGEST_NUMBER = 18  # digits
LOOKED_AT = 8  # members that decide whether a tar is a WebDataset


@dataclass(frozen=True)
class WebDataset:
    """One tar, or a folder with tars in it or in its folders. Splits are told by the names of tars and folders.

    Labels come from `.cls` (a number or a name), else from `.json` (JSON_KEYS). A dataset folder of udkd is one, too: its
    classes keep their names.
    """

    path: Path

    @staticmethod
    def probe(path: Path) -> "WebDataset | None":
        """A WebDataset where the first tar holds images and labels side by side."""
        tars = _tars(path)
        if not tars or not is_tar(tars[0]):
            return None
        endings = {_key(member.name)[1].split(".")[-1] for member in islice(members(tars[0]), LOOKED_AT)}
        return WebDataset(path) if endings & set(LABEL_ENDINGS) and endings & IMAGES else None

    def list(self) -> Listing:
        """All samples that have an image. Raises DataError: see `members`; a sample without a label."""
        entries, ignored, folders = EntryTable(), PassedOver(), Folders(self.path)
        names = _own_classes(self.path)
        for tar in _tars(self.path):
            if not is_tar(tar):
                raise DataError(f"{tar} is no tar; expected shards of a WebDataset; fetch it again")
            for entry in self._samples(tar, names, folders, ignored):
                entries.append(entry)
        return Listing(entries=entries, ignored=ignored)

    def _samples(self, tar: Path, names: tuple[str, ...] | None, folders: Folders, ignored: PassedOver) -> Iterator[Entry]:
        key = "" if tar == self.path else str(tar.relative_to(self.path))
        split, stamp = split_of(Path(key or tar.name)), tar.stat().st_mtime_ns
        for stem, group in groupby(members(tar), lambda member: _key(member.name)[0]):
            files = {_key(member.name)[1].lower(): member for member in group}
            image = next((files[ending] for ending in files if ending.split(".")[-1] in IMAGES), None)
            if image is None:
                for member in files.values():
                    ignored.append(member.name)
                continue
            label = _label(tar, files)
            if label is None:
                raise DataError(
                    f"{tar}: sample {stem} has no label; expected .cls, or .json with one of {', '.join(JSON_KEYS)}; "
                    "choose another source"
                )
            if isinstance(label, int):
                label = names[label] if names and 0 <= label < len(names) else class_of_label(label)
            name = f"{tar.stem}/{image.name}"
            yield Entry(split, folders.of(label), name, key, image.offset, image.size, stamp)

    def read(self, entry: Entry) -> bytes:
        """The image's bytes, by offset."""
        return read_at(self.path / entry.key if entry.key else self.path, entry.offset, entry.size)


IMAGES = {ending.removeprefix(".") for ending in IMAGE_ENDINGS}


def _tars(path: Path) -> list[Path]:
    return files_below(path, ".tar")


def _key(name: str) -> tuple[str, str]:
    """A sample's name and a file's ending: WebDataset parts them at the first dot of the last part."""
    at = name.find(".", name.rfind("/") + 1)
    return (name, "") if at < 0 else (name[:at], name[at + 1 :])


def _label(tar: Path, files: dict[str, Member]) -> int | str | None:
    """The label as a number where it is one, else as text."""
    found = next((ending for ending in LABEL_ENDINGS if ending in files), None)
    if found is None or files[found].size > LABEL_BYTES:
        return None
    text = read_at(tar, files[found].offset, files[found].size).decode(errors="replace").strip()
    value: object = text
    if found == "json":
        try:
            record = json.loads(text)
            value = next((record[key] for key in JSON_KEYS if key in record), None)
        except (ValueError, TypeError, RecursionError):
            return None
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        return None
    if not str(value).isdecimal():
        return str(value)
    return int(value) if len(str(value)) <= LONGEST_NUMBER else None


def _own_classes(path: Path) -> tuple[str, ...] | None:
    """The wnids of a dataset folder of ours, by label."""
    from udkd.formats.dataset import read_header  # heavy, and workers need it not

    try:
        return tuple(entry.wnid for entry in read_header(path).classes)
    except DataError:
        return None
