"""An unpacked ILSVRC2012_img_train.tar: a folder of tars, one per class, or a single class tar."""

import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from udkd.data_prep.sources.layout import is_hidden, is_image_path, skip_reason
from udkd.data_prep.sources.named_split import find_files, single_split_in
from udkd.data_prep.sources.source import Entry, EntryTable, Listing, Skipped
from udkd.data_prep.sources.tar_members import is_tar, iter_members, read_at

WNID = re.compile(r"n\d{8}")
MAX_PEEKED = 8


@dataclass(frozen=True)
class ClassTars:
    """A tar of images, without folders and named after a wnid, or a folder with such tars, directly or one level down.

    The name of its folder determines the split of a tar.
    """

    path: Path

    @staticmethod
    def probe(path: Path) -> "ClassTars | None":
        """ClassTars if the first tar is a class tar."""
        first = next(iter(class_tars(path)), None)
        if first is None or not is_tar(first):
            return None
        names = [member.name for member in islice(iter_members(first), MAX_PEEKED)]
        return ClassTars(path) if names and all("/" not in name for name in names) and any(map(is_image_path, names)) else None

    def list(self) -> Listing:
        """All image members. Raises DataError: see `iter_members`."""
        entries, skipped = EntryTable(), Skipped()
        for tar in class_tars(self.path):
            split, stamp = single_split_in(tar.resolve().parent.name), tar.stat().st_mtime_ns
            key = "" if tar == self.path else str(tar.relative_to(self.path))
            for member in iter_members(tar):
                if is_image_path(member.name):
                    entries.append(Entry(split, tar.stem, member.name, key, member.offset, member.size, stamp))
                else:
                    skipped.append(f"{tar.name}/{member.name}", skip_reason(member.name))
        return Listing(entries=entries, skipped=skipped)

    def read(self, entry: Entry) -> bytes:
        """The image's bytes, by offset."""
        return read_at(self.path / entry.key if entry.key else self.path, entry.offset, entry.size)


def class_tars(path: Path) -> list[Path]:
    """The tars named after wnids: the path itself, or those in a folder, directly or one level down."""
    return [tar for tar in find_files(path, ".tar") if WNID.fullmatch(tar.stem) and not is_hidden(tar.name)]
