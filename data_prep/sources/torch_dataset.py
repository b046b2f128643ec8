"""A map-style `torch.utils.data.Dataset` of (image, label) as a source."""

import contextlib
import operator
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from udkd.data.image_files import BadImage, to_rgb
from udkd.data_prep.sources.source import Entry, Listing, SourceSplit, class_name_of_label
from udkd.data_prep.sources.tar_members import read_at
from udkd.utils.crc32c import crc32c
from udkd.utils.errors import DataError
from udkd.utils.progress import SILENT, Observer

if TYPE_CHECKING:  # the workers, which only read, need neither
    from torch.utils.data import Dataset

    from udkd.data_prep.class_names import ClassNames

_FILE, _ITEM, _BAD = "file", "item", "bad"
_EXPECTED = "a PIL image or uint8 ([C, H, W] tensor, [H, W, C] array; 1 or 3 channels)"


@dataclass(frozen=True)
class TorchDataset:
    """Datasets by split (None: without splits). path: a file for the pixels of items, which the user of this class removes.

    The files of an ImageFolder without transforms are read as they are. Items of other datasets are read once, in order, in
    this process, so that a dataset need be neither picklable nor safe to fork; `path` holds their pixels, uncompressed.
    exif_transpose: apply the orientation of PIL images.
    """

    path: Path
    datasets: Mapping[SourceSplit | None, "Dataset[Any]"] = field(default_factory=dict)
    exif_transpose: bool = False
    observer: Observer = SILENT

    def __getstate__(self) -> dict[str, object]:
        """What the workers need to read entries."""
        return {"path": self.path}

    def class_names(self) -> "ClassNames | None":
        """The classes that the datasets name by label; None if they have no names, or those of the class folders.

        Raises DataError if the names cannot be used, differ between the splits, or are those before a target_transform.
        """
        from udkd.data_prep.class_names import class_names_of

        if any(_changes_labels(dataset) and _classes(dataset) for dataset in self.datasets.values()):
            raise DataError(
                "the dataset has a target_transform, and its classes name the labels before it; expected names of the labels "
                "that it gives; pass class_names, a list in label order (dataset.classes if the labels stay the same)"
            )
        names = None if self._by_folder() else self._names()
        return None if names is None else class_names_of(names, where="the dataset's classes", partial=True)

    def list(self) -> Listing:
        """All items. Raises DataError, naming the index, for one that is not an image and a label."""
        listing = Listing(sequential=any(_files(each) is None for each in self.datasets.values()))
        own_names = self._names()
        names = own_names if self._by_folder() else None
        with self.path.open("wb") as pixels:
            for split, dataset in self.datasets.items():
                files = _files(dataset)
                rows = self._items(split, dataset, pixels) if files is None else _file_rows(files, _root(dataset))
                for label, row in rows:
                    if names is not None and label >= len(names):
                        raise DataError(
                            f"the dataset holds the label {label} and names {len(names)} classes; expected a name for each "
                            "label; correct its classes"
                        )
                    if files is not None and own_names is not None:
                        _check_folder(row.name, label, own_names)
                    class_name = class_name_of_label(label) if names is None else names[label]
                    listing.labels[class_name] = label
                    name = row.name.removeprefix(f"{class_name}/")
                    listing.entries.append(Entry(split, class_name, name, row.key, row.offset, row.size, row.stamp))
        return listing

    def read(self, entry: Entry) -> bytes:
        """The bytes of a file, or an item as a PPM image. Raises BadImage for an item that could not be decoded."""
        kind, _, file = entry.key.partition(":")
        if kind == _FILE:
            return Path(file).read_bytes()
        data = read_at(self.path, entry.offset, entry.size)
        if kind == _BAD:
            raise BadImage(data.decode())
        return data

    def _names(self) -> Sequence[str] | None:
        """The names by label; None if there are none, or if a target_transform gives other labels."""
        if any(map(_changes_labels, self.datasets.values())):
            return None
        named = [names for dataset in self.datasets.values() if (names := _classes(dataset)) is not None]
        if any(names != named[0] for names in named):
            raise DataError("the two datasets have different classes; expected the same, in the same order; correct one")
        return named[0] if named else None

    def _by_folder(self) -> bool:
        """Whether classes are called like their folders, as in a conversion of the folders: then labels are in this order."""
        names = self._names()
        files = all(_files(dataset) is not None for dataset in self.datasets.values())
        return names is not None and files and list(names) == sorted(set(names))

    def _items(self, split: SourceSplit | None, dataset: "Dataset[Any]", pixels: BinaryIO) -> "Iterator[tuple[int, _Row]]":
        count = len(dataset)  # type: ignore[arg-type]
        self.observer.start(f"read {split or 'dataset'}", count, "items")
        for index in range(count):
            where = f"item {index} of the {split} dataset" if split else f"item {index} of the dataset"
            image, label = _item(dataset, index, where)
            try:
                kind, data = _ITEM, _ppm(image, where, exif_transpose=self.exif_transpose)
            except BadImage as error:
                kind, data = _BAD, str(error).encode()
            checksum, offset = crc32c(data), pixels.tell()
            pixels.write(data)
            # The checksum in the name tells items of other pixels apart: they have no modification time.
            name = f"{index:0{len(str(count - 1))}d}-{checksum:08x}"
            yield label, _Row(name, kind, offset, len(data), checksum)
            self.observer.advance(1)
        pixels.flush()
        self.observer.finish()


@dataclass(frozen=True, slots=True)
class _Row:
    """What an Entry holds beside split and class."""

    name: str
    key: str
    offset: int
    size: int
    stamp: int


def require_map_style(dataset: Any) -> None:
    """Raise DataError unless a dataset has items by index, and at least one."""
    from torch.utils.data import IterableDataset

    kind = type(dataset).__name__
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise DataError(f"{kind} has no length or no items by index; expected a path or a map-style Dataset; wrap it in one")
    if not len(dataset):
        raise DataError(f"the dataset {kind} is empty; expected at least one item; check how it is made")


def _item(dataset: "Dataset[Any]", index: int, where: str) -> tuple[Any, int]:
    """The image and the label of an item. Raises DataError."""
    try:
        item = dataset[index]
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(
            f"{where} cannot be read ({type(error).__name__}: {text}); expected (image, label); mend it, or leave it out with "
            "torch.utils.data.Subset"
        ) from error
    if not isinstance(item, Sequence) or isinstance(item, str) or len(item) != 2:
        found = f"{type(item).__name__} of {len(item)}" if isinstance(item, Sequence | Mapping) else type(item).__name__
        raise DataError(f"{where} is a {found}; expected (image, label); wrap the dataset in one that returns this")
    image, label = item
    number = None
    with contextlib.suppress(TypeError, ValueError, RuntimeError):  # a text, a fraction, a tensor of several elements
        number = None if isinstance(label, bool) else operator.index(label)
    if number is None or not 0 <= number < 2**31 - 1:
        shown = " ".join(repr(label).split())[:60]
        raise DataError(f"{where} has the label {shown}; expected an integer from 0; correct it, such as with target_transform")
    return image, number


def _ppm(image: Any, where: str, *, exif_transpose: bool) -> bytes:
    """An image as PPM or PGM: the pixels, uncompressed. Raises DataError for another type, BadImage for a damaged file."""
    if isinstance(image, Image.Image):
        rgb, _ = to_rgb(image)  # which also decodes an image that is still a file
        if exif_transpose:
            image = ImageOps.exif_transpose(image)
            rgb, _ = to_rgb(image)
        pixels = np.asarray(image if image.mode == "L" else rgb)
    else:
        pixels = _pixels(image, where)
    height, width = pixels.shape[:2]
    if not (height and width):
        raise DataError(f"{where} has an image of {height} x {width} pixels; expected at least one pixel; leave it out")
    kind = "P5" if pixels.ndim == 2 else "P6"
    return f"{kind} {width} {height} 255\n".encode() + pixels.tobytes()


def _pixels(image: Any, where: str) -> NDArray[np.uint8]:
    """A tensor or an array as uint8 [H, W, 3] or [H, W]. Raises DataError."""
    from torch import Tensor, uint8

    is_tensor = isinstance(image, Tensor)
    array: Any = image.cpu().numpy() if is_tensor and image.dtype == uint8 else image
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        found = f"{type(image).__name__} of {image.dtype}" if hasattr(image, "dtype") else type(image).__name__
        raise DataError(f"{where} holds a {found}; expected {_EXPECTED}; pass the dataset without ToTensor/Normalize")
    if array.ndim == 3 and is_tensor:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] != 3):
        raise DataError(f"{where} has the shape {list(image.shape)}; expected {_EXPECTED}; change the order of its axes")
    pixels: NDArray[np.uint8] = array
    return pixels


def _classes(dataset: Any) -> Sequence[str] | None:
    """The names by label of a dataset or of those that it wraps: wnids, where torchvision's ImageNet has both.

    Raises DataError if `classes` has another order than `class_to_idx`, or if the parts of a ConcatDataset differ.
    """
    names = getattr(dataset, "wnids", None) or getattr(dataset, "classes", None)
    if names is None:
        if _changes_labels(dataset):  # the labels of parts may differ before they are changed
            return next(filter(None, map(_classes, _wrapped(dataset))), None)
        named = [part for part in map(_classes, _wrapped(dataset)) if part is not None]
        if any(part != named[0] for part in named):
            raise DataError(
                "the parts of a ConcatDataset have different classes, so that one label stands for several; expected the same, "
                "in the same order; give the parts one numbering, such as with target_transform, and class_names"
            )
        return named[0] if named else None
    if not isinstance(names, Sequence) or isinstance(names, str):
        return None
    numbers = getattr(dataset, "class_to_idx", None) if names is not getattr(dataset, "wnids", None) else None
    for label, name in enumerate(names):
        other = numbers.get(name, label) if isinstance(numbers, Mapping) and isinstance(name, str) else label
        if other != label:
            raise DataError(
                f"the dataset's classes have {name!r} at {label}, and its class_to_idx says {other}; expected one numbering; "
                "correct one of them"
            )
    return list(names)


def _wrapped(dataset: Any) -> Sequence[Any]:
    """The datasets that a Subset or a ConcatDataset is made of."""
    from torch.utils.data import ConcatDataset

    if type(dataset) is ConcatDataset:
        return list(dataset.datasets)
    return [dataset.dataset] if _is_subset(dataset) else []


def _changes_labels(dataset: Any) -> bool:
    """Whether a dataset, or one that it wraps, has a target_transform, so that its labels may not be those of its classes."""
    return getattr(dataset, "target_transform", None) is not None or any(map(_changes_labels, _wrapped(dataset)))


def _check_folder(path: str, label: int, names: Sequence[str]) -> None:
    """Raise DataError if a file is in the folder of another class than that of its label."""
    folder = path.split("/", 1)[0]
    if folder in names and label < len(names) and names[label] != folder:
        raise DataError(
            f"the dataset's file {path} has the label {label}, which its classes call {names[label]}; expected the class of "
            "its folder; correct its classes or its samples"
        )


def _is_subset(dataset: Any) -> bool:
    from torch.utils.data import Subset

    return type(dataset) is Subset


def _root(dataset: Any) -> str:
    return _root(dataset.dataset) if _is_subset(dataset) else os.fspath(dataset.root)


def _files(dataset: Any) -> Sequence[tuple[str, int]] | None:
    """The files and labels of torchvision's DatasetFolder, or of a Subset of one; None if items are not just decoded files."""
    if _is_subset(dataset):
        files = _files(dataset.dataset)
        return None if files is None else [files[index] for index in dataset.indices]
    torchvision: Any = sys.modules.get("torchvision.datasets.folder")  # loaded if the dataset is one of its own
    plain = (
        torchvision is not None
        and isinstance(dataset, torchvision.DatasetFolder)
        and type(dataset).__getitem__ is torchvision.DatasetFolder.__getitem__
        and dataset.loader is torchvision.default_loader
        and dataset.transform is None
        and dataset.target_transform is None
    )
    return dataset.samples if plain else None


def _file_rows(files: Sequence[tuple[str, int]], root: str) -> Iterator[tuple[int, _Row]]:
    """Names are paths in the dataset's folder, as in a conversion of that folder."""
    for path, label in files:
        status = os.stat(path)
        name = os.path.relpath(path, root)
        yield int(label), _Row(name, f"{_FILE}:{os.path.abspath(path)}", 0, status.st_size, status.st_mtime_ns)
