"""ILSVRC2012 as downloaded: a train tar of class tars, a flat val tar, and the ground truth for val."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from udkd.data_prep.sources.class_tars import WNID
from udkd.data_prep.sources.ground_truth import DEVKIT, KAGGLE, find_ground_truth, read_ground_truth
from udkd.data_prep.sources.layout import is_image_path, skip_reason
from udkd.data_prep.sources.source import Entry, EntryTable, Listing, Skipped
from udkd.data_prep.sources.tar_members import TarMember, is_tar, iter_members, read_at
from udkd.utils.errors import DataError

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
VAL_PREFIX = "ILSVRC2012_val_"


@dataclass(frozen=True)
class Ilsvrc:
    """The tars of ILSVRC2012, not unpacked. path: one of the tars or their folder. ground_truth: of the val tar."""

    path: Path
    train: Path | None
    val: Path | None
    ground_truth: Path | None

    @staticmethod
    def probe(path: Path, ground_truth: Path | None = None) -> "Ilsvrc | None":
        """An Ilsvrc if `path` is a folder with one of the tars, a tar of class tars, or a tar of val images.

        ground_truth: the ground truth that the user named; None to look for it beside the val tar.
        """
        if path.is_dir():
            train, val = (tar if (tar := path / name).is_file() else None for name in (TRAIN, VAL))
        elif is_tar(path):
            first = next(iter(iter_members(path)), None)
            train = path if first is not None and _is_class_tar(first) else None
            val = path if first is not None and _is_val_image(first) and _all_val(path, first) else None
        else:
            return None
        if train is None and val is None:
            return None
        return Ilsvrc(path, train, val, ground_truth or (find_ground_truth(val.parent) if val else None))

    def list(self) -> Listing:
        """All images in both tars. Raises DataError: see `iter_members`; also if the ground truth is missing or incomplete."""
        skipped = Skipped()
        return Listing(entries=EntryTable(chain(self._train(skipped), self._val(skipped))), skipped=skipped)

    def _train(self, skipped: Skipped) -> Iterator[Entry]:
        if self.train is None:
            return
        stamp = self.train.stat().st_mtime_ns
        for class_tar in iter_members(self.train):
            if not _is_class_tar(class_tar):
                skipped.append(class_tar.name, skip_reason(class_tar.name))
                continue
            class_name = class_tar.name.rsplit("/", 1)[-1].removesuffix(".tar")
            for member in iter_members(self.train, inside=class_tar):
                if is_image_path(member.name):
                    yield Entry("train", class_name, member.name, self.train.name, member.offset, member.size, stamp)
                else:
                    skipped.append(member.name, skip_reason(member.name))

    def _val(self, skipped: Skipped) -> Iterator[Entry]:
        if self.val is None:
            return
        if self.ground_truth is None:
            raise DataError(
                f"{self.val} has no classes; expected {DEVKIT} or {KAGGLE} beside it; "
                "put one of them there, or name it as another source"
            )
        class_of = read_ground_truth(self.ground_truth)
        stamp = self.val.stat().st_mtime_ns
        for member in iter_members(self.val):
            name = member.name.rsplit("/", 1)[-1]
            if not is_image_path(member.name):
                skipped.append(member.name, skip_reason(member.name))
            elif (class_name := class_of.get(name.split(".")[0])) is None:
                raise DataError(f"{self.ground_truth} does not list {name} of {self.val}; expected every image; fetch it again")
            else:
                yield Entry("val", class_name, name, self.val.name, member.offset, member.size, stamp)

    def read(self, entry: Entry) -> bytes:
        """The image's bytes, by offset."""
        tar = self.train if entry.split == "train" else self.val
        assert tar is not None
        return read_at(tar, entry.offset, entry.size)


def _is_class_tar(member: TarMember) -> bool:
    return member.name.endswith(".tar")


def _all_val(path: Path, first: TarMember) -> bool:
    """Whether all images in a tar are val images. If the first is in a folder, others may hold the training images."""
    return "/" not in first.name or all(_is_val_image(member) for member in iter_members(path) if is_image_path(member.name))


def _is_val_image(member: TarMember) -> bool:
    """Whether a member is a val image outside a class folder. Many scripts sort these into class folders, which `Tar` reads."""
    *folders, name = member.name.split("/")
    return name.startswith(VAL_PREFIX) and not (folders and WNID.fullmatch(folders[-1]))
