"""`udkd.convert`, of paths and of map-style datasets: the same canvases as those of the same images in folders."""

import inspect
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset
from torchvision.datasets import CIFAR10, FakeData, ImageFolder
from torchvision.transforms import v2

import udkd
from tests.data_prep.helpers import contents, converted, encoded, photo, picture, small_set, write_tree
from udkd.data.dataset import DatasetFolder, Split
from udkd.data_prep import cli
from udkd.data_prep.convert import ITEMS_LOCK_NAME, ITEMS_NAME
from udkd.utils.errors import ConfigError, DataError

PICTURES = [
    picture(n, 20 + 3 * n, 52 - 4 * n, mode) for n, mode in enumerate(("RGB", "L", "P", "RGBA", "RGB", "L", "RGB", "1"))
]
LABELS = [1, 0, 2, 1, 0, 2, 2, 0]


class Pairs(Dataset[Any]):
    """Images and labels; it cannot be pickled, and counts how often each item is read."""

    def __init__(self, images: list[Any], labels: list[Any] | None = None, **attributes: object) -> None:
        self.images = images
        self.labels = list(range(len(images))) if labels is None else labels
        self.reads = [0] * len(images)
        self.no_pickle = iter(())
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        self.reads[index] += 1
        if isinstance(self.images[index], Exception):
            raise self.images[index]
        return self.images[index], self.labels[index]

    def __reduce__(self) -> Any:
        raise TypeError("not picklable")


def convert(source: Any, out: Path, **options: Any) -> udkd.Dataset:
    return udkd.convert(source, out, **{"side": 40, "workers": 1, "formats": "none"} | options)


def png_tree(root: Path, images: list[Image.Image], labels: list[int]) -> Path:
    files = {
        f"{split}/{label:04d}/{n:03d}.png": encoded(image, "PNG")
        for split in ("train", "val")
        for n, (image, label) in enumerate(zip(images, labels, strict=True))
    }
    return write_tree(root, files)


def canvases(split: Split) -> dict[int, np.ndarray]:
    """By the number of the image, which the source's name begins with."""
    return {int(split.source[n].split("/")[1][:3].rstrip("-.")): split.pixels(n) for n in split.ids.tolist()}


@pytest.fixture(scope="module")
def as_png(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    root = tmp_path_factory.mktemp("png")
    return converted(png_tree(root / "tree", PICTURES, LABELS), root / "data", side=40, formats=())


KINDS: dict[str, Callable[[Image.Image], object]] = {
    "PIL": lambda image: image,
    "PIL, not yet decoded": lambda image: Image.open(io.BytesIO(encoded(image, "PNG"))),
    "array": lambda image: np.asarray(image if image.mode == "L" else image.convert("RGB")),
    "tensor": lambda image: v2.functional.pil_to_tensor(image if image.mode == "L" else image.convert("RGB")),
    "tv_tensor": lambda image: v2.functional.to_image(image if image.mode == "L" else image.convert("RGB")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_canvases_are_those_of_the_same_images_as_png_files(tmp_path: Path, as_png: DatasetFolder, kind: str) -> None:
    """Some are larger than the canvas, so they are scaled down too. Ids are in the order of the dataset."""
    train, val = (Pairs([KINDS[kind](image) for image in PICTURES], LABELS) for _ in range(2))
    data = convert(train, tmp_path / "d", val=val, on_bad="fail")
    assert train.reads == val.reads == [1] * len(PICTURES)
    assert data.classes == as_png.classes
    for ours, png in ((data.train, as_png.split("train")), (data.val, as_png.split("val"))):
        assert ours.labels.tolist() == LABELS
        expected = canvases(png)
        for n in range(len(PICTURES)):
            assert np.array_equal(ours.pixels(n), expected[n]), n
    assert not {ITEMS_NAME, ITEMS_LOCK_NAME} & set(os.listdir(data.path))


def test_an_image_folder_becomes_what_its_path_becomes(tmp_path: Path) -> None:
    """The files are read as they are, with any number of workers; also through a Subset."""
    tree = write_tree(tmp_path / "t", small_set(train=3, val=2))
    train, val = ImageFolder(tree / "train"), ImageFolder(tree / "val")
    data = convert(Subset(train, range(len(train))), tmp_path / "d", val=val, workers=2)
    expected = converted(tree, tmp_path / "e", side=40, formats=())
    assert data.digest == expected.digest
    assert {name: file for name, file in contents(data.path).items() if name != "report.json"} == {
        name: file for name, file in contents(expected.path).items() if name != "report.json"
    }
    held = convert(train, tmp_path / "h", hold_out=40)
    assert held.digest == converted(tree / "train", tmp_path / "i", side=40, formats=(), hold_out_percent=40).digest


def test_transforms_and_loaders_of_an_image_folder_apply(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", {f"{name}/1.png": encoded(picture(name), "PNG") for name in ("cat", "dog")})
    grey = ImageFolder(tree, transform=v2.Grayscale(1))
    data = convert(grey, tmp_path / "d", val=ImageFolder(tree, loader=lambda path: picture("other")))
    assert np.ptp(data.train.pixels(0), axis=2).max() == 0
    other = converted(png_tree(tmp_path / "o", [picture("other")], [0]), tmp_path / "oo", side=40, formats=())
    assert np.array_equal(data.val.pixels(1), other.split("val").pixels(0))
    assert [entry.name for entry in data.classes] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("attributes", "options", "expected"),
    [
        ({}, {}, [("0000", "0000"), ("0001", "0001"), ("0002", "0002")]),
        ({"classes": ["ship", "car", "bird"]}, {}, [("0000", "ship"), ("0001", "car"), ("0002", "bird")]),
        ({"classes": ("a", "b", "c", "no image")}, {}, [("0000", "a"), ("0001", "b"), ("0002", "c")]),
        ({"classes": ["a", "b", "c"]}, {"class_names": ["d", "e", "f"]}, [("0000", "d"), ("0001", "e"), ("0002", "f")]),
        (
            {"classes": [("tench", "Tinca tinca")] * 3, "wnids": ["n01440764", "n01443537", "n01484850"]},
            {},
            [("n01440764", "tench"), ("n01443537", "goldfish"), ("n01484850", "great white shark")],
        ),
    ],
)
def test_classes_are_named_by_the_dataset_or_the_user(
    tmp_path: Path, attributes: dict[str, Any], options: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    data = convert(Pairs(PICTURES, LABELS, **attributes), tmp_path / "d", val=Pairs(PICTURES, LABELS), **options)
    assert [(entry.wnid, entry.name) for entry in data.classes] == expected
    assert data.train.labels.tolist() == LABELS


def test_names_of_an_image_folder_by_label_or_folder(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", {f"{name}/1.jpg": photo(name) for name in ("cat", "dog")})
    for n, names in enumerate((["house cat", "hound"], {"cat": "house cat", "dog": "hound"})):
        data = convert(ImageFolder(tree), tmp_path / f"d{n}", val=ImageFolder(tree), class_names=names)
        assert [(entry.wnid, entry.name) for entry in data.classes] == [("cat", "house cat"), ("dog", "hound")]
    refused: tuple[tuple[Any, str], ...] = (
        (["dog", "cat"], "names label 0 'dog', which is 'cat' in the source"),
        (["a"], "none of label 1"),
        (["a", "b", "c"], "names 3 classes and the source has 2"),
        ({"cat": "house cat"}, "does not name 1 of the source's 2 classes: dog"),
    )
    for names, text in refused:
        with pytest.raises(DataError, match=f"class_names .*{text}"):
            convert(ImageFolder(tree), tmp_path / "d", val=ImageFolder(tree), class_names=names)


class Reversed(ImageFolder):
    """An order of classes that only half of its attributes know."""

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        names, _ = super().find_classes(directory)
        return names, {name: n for n, name in enumerate(reversed(names))}


@pytest.fixture
def cat_dog(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "t", {f"{name}/1.jpg": photo(name) for name in ("cat", "dog")})


def test_labels_that_are_not_those_of_the_classes_are_not_named_by_them(tmp_path: Path, cat_dog: Path) -> None:
    """A target_transform, edited samples and class_to_idx change labels, and leave `classes` as it is."""

    def swapped(root: Path) -> ImageFolder:
        return ImageFolder(root, target_transform=lambda label: 1 - label)

    edited = ImageFolder(cat_dog)
    edited.samples = [(path, 1 - label) for path, label in edited.samples]
    refused: tuple[tuple[Any, str], ...] = (
        (swapped(cat_dog), "has a target_transform, and its classes name the labels before it; .*pass class_names"),
        (Subset(swapped(cat_dog), [0, 1]), "has a target_transform"),
        (ConcatDataset([ImageFolder(cat_dog), swapped(cat_dog)]), "has a target_transform"),
        (edited, "file cat/1.jpg has the label 1, which its classes call dog"),
        (Reversed(cat_dog), "classes have 'cat' at 0, and its class_to_idx says 1"),
    )
    for dataset, text in refused:
        with pytest.raises(DataError, match=text):
            convert(dataset, tmp_path / "d", val=ImageFolder(cat_dog))
    data = convert(swapped(cat_dog), tmp_path / "d", val=swapped(cat_dog), class_names=["hound", "house cat"])
    assert [entry.name for entry in data.classes] == ["hound", "house cat"]
    assert data.train.labels.tolist() == [1, 0]


def test_parts_of_a_concat_dataset_share_their_classes(tmp_path: Path, cat_dog: Path) -> None:
    part = ImageFolder(cat_dog)
    other = ImageFolder(write_tree(tmp_path / "o", {f"{name}/1.jpg": photo(name) for name in ("cow", "hen")}))
    data = convert(ConcatDataset([part, Subset(part, [1])]), tmp_path / "d", val=ConcatDataset([part]))
    assert ([entry.name for entry in data.classes], data.train.labels.tolist()) == (["cat", "dog"], [0, 1, 1])
    with pytest.raises(
        DataError, match="parts of a ConcatDataset have different classes, so that one label stands for several"
    ):
        convert(ConcatDataset([part, other]), tmp_path / "e", hold_out=50)


def test_cifar10(tmp_path: Path) -> None:
    """torchvision's class on a file of its format."""
    import pickle

    from torchvision.datasets.utils import calculate_md5

    class Small(CIFAR10):
        pass

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": pixels, "labels": [n % 10 for n in range(12)]}))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    Small.train_list = Small.test_list = [["data_batch_1", calculate_md5(folder / "data_batch_1")]]
    Small.meta = Small.meta | {"md5": calculate_md5(folder / "batches.meta")}
    data = convert(Small(tmp_path), tmp_path / "d", val=Small(tmp_path, train=False), side=32, quality=100)
    assert [entry.name for entry in data.classes] == names
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.abs(data.train.pixels(7).astype(int) - images[7]).mean() < 3


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


GOOD = PICTURES[0]


@pytest.mark.parametrize(
    ("item", "label", "text"),
    [
        (torch.rand(3, 8, 8), 0, r"holds a Tensor of torch\.float32; expected a PIL image or uint8 .* without ToTensor"),
        (np.zeros((8, 8, 3)), 0, r"holds a ndarray of float64; expected a PIL image or uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), 0, r"holds a Tensor of torch\.int64"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), 0, r"has the shape \[8, 8, 3\]; expected"),
        (np.zeros((3, 8, 8), np.uint8), 0, r"has the shape \[3, 8, 8\]"),
        (np.zeros((8, 8, 4), np.uint8), 0, r"has the shape \[8, 8, 4\]"),
        (np.zeros((0, 8, 3), np.uint8), 0, "has an image of 0 x 8 pixels"),
        ("photo.jpg", 0, "holds a str; expected a PIL image"),
        (GOOD, "cat", "has the label 'cat'; expected an integer from 0"),
        (GOOD, -1, "has the label -1"),
        (GOOD, 1.5, r"has the label 1\.5"),
        (GOOD, True, "has the label True"),
        (GOOD, torch.zeros(3, 3, dtype=torch.int64), r"has the label tensor"),
        (KeyError("no such\nkey"), 0, r"cannot be read \(KeyError: 'no such"),
    ],
)
def test_items_that_are_not_an_image_and_a_label_are_named(tmp_path: Path, item: Any, label: Any, text: str) -> None:
    with pytest.raises(DataError, match=f"^item 1 of the train dataset {text}") as error:
        convert(Pairs([GOOD, item], [0, label]), tmp_path / "d", val=Pairs([GOOD]))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "d").exists(), "nothing is left"


@pytest.mark.parametrize(
    ("source", "options", "text"),
    [
        (Pairs([GOOD]), {}, "no splits of its own; expected val, a second Dataset, or hold_out"),
        (Pairs([GOOD]), {"val": Pairs([GOOD]), "hold_out": 10}, "both val and hold_out are given"),
        (Pairs([GOOD]), {"val": "test"}, "no splits of its own"),
        (Pairs([GOOD]), {"val": Pairs([])}, "the dataset Pairs is empty"),
        (Endless(), {"hold_out": 10}, "Endless has no length or no items by index; expected a path or a map-style Dataset"),
        (7, {"hold_out": 10}, "int has no length"),
        (Pairs([GOOD]), {"hold_out": 10, "layout": "parquet"}, "layout is 'parquet' and source is a Dataset"),
        (Pairs([GOOD], classes=["a"]), {"val": Pairs([GOOD], classes=["b"])}, "the two datasets have different classes"),
        (Pairs([GOOD], classes=["a", "a"]), {"val": Pairs([GOOD])}, "the dataset's classes names two classes 'a'"),
        (Pairs([GOOD], [3], classes=["a"]), {"val": Pairs([GOOD])}, "classes names 1 classes and none of label 3"),
        (Pairs([(GOOD, 1)]), {"val": Pairs([GOOD])}, "item 0 of the train dataset holds a tuple"),
        ("nowhere", {"val": Pairs([GOOD])}, "val is a Dataset and source is a path"),
        ("nowhere", {}, "does not exist"),
    ],
)
def test_other_refusals(tmp_path: Path, source: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(udkd.UserError, match=text) as error:
        convert(source, tmp_path / "d", **options)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ConfigError | DataError)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("item", "found"), [((GOOD, 0, 1), "tuple of 3"), ({"image": GOOD, "label": 0}, "dict of 2"), (7, "int")]
)
def test_items_of_other_forms_are_refused(tmp_path: Path, item: object, found: str) -> None:
    class Items(Pairs):
        def __getitem__(self, index: int) -> Any:
            return item

    with pytest.raises(DataError, match=rf"item 0 of the dataset is a {found}; expected \(image, label\)"):
        convert(Items([GOOD]), tmp_path / "d", hold_out=10)


def test_images_that_do_not_decode_follow_on_bad(tmp_path: Path) -> None:
    """As for files: the dataset's item is there, its pixels are not."""
    cut = encoded(picture(1), "PNG")[:900]
    train = Pairs([GOOD, Image.open(io.BytesIO(cut)), PICTURES[2]], [0, 0, 1])
    with pytest.raises(DataError, match="1 of 5 images cannot be used"):
        convert(train, tmp_path / "d", val=Pairs(PICTURES[:2]))
    assert ITEMS_NAME not in os.listdir(tmp_path / "d")
    train.images[1] = Image.open(io.BytesIO(cut))
    data = convert(train, tmp_path / "d", val=Pairs(PICTURES[:2]), on_bad="skip")
    assert data.train.ids.tolist() == [0, 2]
    assert "cannot be decoded" in data.train.note[1]


def test_the_orientation_of_images_is_applied_on_request(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(io.BytesIO(encoded(picture(3, 20, 40), "PNG", exif=exif.tobytes())))
    for choice, size in (("ignore", [20, 40]), ("apply", [40, 20])):
        data = convert(Pairs([turned]), tmp_path / choice, val=Pairs([GOOD]), exif=choice)
        assert data.train.sizes[0, :2].tolist() == size


def test_a_finished_folder_of_other_items_is_refused_and_one_of_the_same_kept(tmp_path: Path) -> None:
    def again(images: list[Image.Image], **options: Any) -> udkd.Dataset:
        return convert(Pairs(images), tmp_path / "d", val=Pairs(PICTURES[:3]), **options)

    first = again(PICTURES[:3])
    before = contents(first.path)
    assert again(PICTURES[:3]).digest == first.digest
    assert contents(first.path) == before
    with pytest.raises(DataError, match="holds a finished dataset"):
        again([PICTURES[0], PICTURES[1], PICTURES[4]])
    assert contents(first.path) == before
    other = again([PICTURES[0], PICTURES[1], PICTURES[4]], overwrite=True)
    assert other.digest != first.digest


def test_an_interrupted_conversion_resumes(tmp_path: Path) -> None:
    """A killed one leaves its items, which the next one replaces."""
    source, val = FakeData(4, (3, 24, 24), 2), Pairs(PICTURES[:2])
    complete = convert(source, tmp_path / "complete", val=val)
    out = tmp_path / "d"
    (out / "train").mkdir(parents=True)
    (out / ITEMS_NAME).write_bytes(b"of a killed process")
    (out / ITEMS_LOCK_NAME).write_bytes(b"1")
    (out / "unfinished.json").write_bytes(b"{}")
    with pytest.raises(udkd.UserError, match="the unfinished conversion"):
        convert(source, out, val=val)
    (out / "unfinished.json").unlink()
    (out / "train").rmdir()
    assert convert(source, out, val=val).digest == complete.digest
    assert contents(out) == contents(complete.path)


def test_paths_and_options_are_those_of_the_command(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", small_set(2, 1))
    assert convert(str(tree), tmp_path / "d").digest == convert([tree / "train", tree / "val"], tmp_path / "e").digest
    command, function = (inspect.signature(each).parameters for each in (cli.convert, udkd.convert))
    assert set(command) - {"sources", "folder"} == set(function) - {"source", "out", "observer"}
    for name in set(command) - {"sources", "folder"}:
        assert command[name].default == function[name].default, name
