"""Listing images: trees, tars, class lists, hold-out and ids."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from prep_helpers import converted, photo, small_set, write_tar, write_tree

from data_prep.classes import choose_classes, named
from data_prep.sources import open_sources
from data_prep.sources.layout import OUTSIDE, arrange
from data_prep.stock import Stock, take_stock
from udkd.words.errors import DataError

JPEG = photo(0, 8, 8)


def stock_of(*paths: Path, classes: str = "all", hold_out: float | None = None) -> Stock:
    return take_stock(open_sources(paths), classes=classes, hold_out_percent=hold_out)


def listed(stock: Stock) -> dict[str, list[str]]:
    return {split: [sample.source for sample in samples] for split, samples in stock.samples.items()}


@pytest.mark.parametrize(
    ("paths", "root", "expected"),
    [
        (["train/a/1", "val/a/2"], "x", [("train", "a", "1"), ("val", "a", "2")]),
        (["p/q/train/a/1", "p/q/validation/a/s/2"], "x", [("train", "a", "1"), ("val", "a", "s/2")]),
        (["a/1", "b/2"], "x", [(None, "a", "1"), (None, "b", "2")]),
        (["a/1", "b/2"], "train", [("train", "a", "1"), ("train", "b", "2")]),
        (["p/q/a/1", "p/q/b/2", "loose"], "x", [(None, "a", "1"), (None, "b", "2"), OUTSIDE]),
        (["a/1"], "x", [(None, "a", "1")]),
        (["p/a/1", "p/a/2"], "x", [(None, "a", "1"), (None, "a", "2")]),
        (["train/1", "car/2"], "x", [(None, "train", "1"), (None, "car", "2")]),
        (["train/a/1", "test/images/2"], "x", [("train", "a", "1"), ("test", "images", "2")]),
        (["loose"], "x", [OUTSIDE]),
        ([], "x", []),
    ],
)
def test_places(paths: list[str], root: str, expected: list[object]) -> None:
    assert list(arrange(paths, root).places) == expected


def test_tree_and_tars_list_the_same(tmp_path: Path) -> None:
    files = small_set()
    tree = write_tree(tmp_path / "tree", files)
    whole = write_tar(tmp_path / "all.tar", files, prefix="some-set/v1/")
    names = list(files)
    parts = [
        write_tar(tmp_path / f"part{n}.tar", {name: files[name] for name in names[n::3]}, prefix=f"{'./' * n}x/")
        for n in range(3)
    ]
    first = listed(stock_of(tree))
    assert first == listed(stock_of(whole)) == listed(stock_of(*parts)) == listed(stock_of(*reversed(parts)))
    assert first["train"] == sorted(first["train"])
    assert len(first["train"]) == 12
    assert first == listed(stock_of(tree / "train", tree / "val"))
    for split, samples in stock_of(*parts).samples.items():
        for sample in samples:
            assert open_sources(parts)[sample.origin].read(sample.entry) == files[f"{split}/{sample.source}"]


def test_what_is_no_image_is_passed_over_and_said(tmp_path: Path) -> None:
    files = small_set() | {
        "train/n01440764/boxes.txt": b"x",
        "train/n01440764/._a.JPEG": b"x",
        "test/images/1.JPEG": JPEG,
        ".hidden/train/a/1.jpg": JPEG,
        "readme": b"",
    }
    for path in (write_tree(tmp_path / "tree", files), write_tar(tmp_path / "a.tar", files)):
        stock = stock_of(path)
        assert len(stock.samples["train"]) == 12
        assert any("passed over 5 files" in line for line in stock.warnings)


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    files = small_set()
    real = write_tree(tmp_path / "real", files)
    tree = tmp_path / "tree"
    tree.mkdir()
    for split in ("train", "val"):
        (tree / split).symlink_to(real / split)
    (real / "train" / "loop").symlink_to(real / "train")
    found = listed(stock_of(tree))["train"]
    assert [name for name in found if not name.startswith("loop")] == listed(stock_of(write_tree(tmp_path / "b", files)))[
        "train"
    ]


def test_links_that_lead_nowhere_are_bad_images(tmp_path: Path) -> None:
    files = small_set(train=3, val=1)
    tree = write_tree(tmp_path / "t", files)
    (tree / "train" / "n01440764" / "gone.JPEG").symlink_to("nowhere.JPEG")
    (tree / "train" / "n01440764" / "itself.JPEG").symlink_to("itself.JPEG")
    with pytest.raises(DataError, match="2 of 10 images cannot be used"):
        converted(tree, tmp_path / "d")
    folder = converted(tree, tmp_path / "d", on_bad="skip")
    train = folder.split("train")
    assert sorted(train.source[n] for n in np.flatnonzero(train.excluded)) == [
        "n01440764/gone.JPEG",
        "n01440764/itself.JPEG",
    ]
    assert {train.note[n] for n in np.flatnonzero(train.excluded)} == {"a link that leads nowhere"}


def damaged_tar(path: Path, member: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in small_set().items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        archive.addfile(member)
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("/etc/train/a/1.jpg", tarfile.REGTYPE),
        ("train/../../a/1.jpg", tarfile.REGTYPE),
        ("train/a/link.jpg", tarfile.SYMTYPE),
        ("train/a/hard.jpg", tarfile.LNKTYPE),
        ("train/a/dev.jpg", tarfile.CHRTYPE),
        ("train/a/fifo.jpg", tarfile.FIFOTYPE),
    ],
)
def test_tars_that_leave_their_place_are_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = "/etc/passwd"
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        stock_of(damaged_tar(tmp_path / "a.tar", member))


def test_cut_and_damaged_tars_are_refused_wherever_they_are_cut(tmp_path: Path) -> None:
    files = small_set(train=2, val=1)
    whole = write_tar(tmp_path / "a.tar", files).read_bytes()
    content = len(whole.rstrip(b"\0"))
    for cut in [*range(512, content, 512 * 3 + 100), *range(512, content, 1024)]:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cut\.tar"):
            stock_of(tmp_path / "cut.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        third = archive.getmembers()[2].offset
    data = bytearray(whole)
    data[third + 20] ^= 1
    (tmp_path / "cut.tar").write_bytes(data)
    with pytest.raises(DataError, match="cut or damaged at byte"):
        stock_of(tmp_path / "cut.tar")


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        stock_of(tmp_path / "nowhere")
    (tmp_path / "text").write_text("x")
    with pytest.raises(DataError, match="no known kind"):
        stock_of(tmp_path / "text")
    (tmp_path / "no.tar").write_text("x" * 2000)
    with pytest.raises(DataError, match="no whole tar"):
        stock_of(tmp_path / "no.tar")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"compressed \(gzip\)"):
        stock_of(tmp_path / "a.tar.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        stock_of(tmp_path / "empty")
    with pytest.raises(DataError, match="holds no images"):
        stock_of(write_tar(tmp_path / "empty.tar", {}))
    with pytest.raises(DataError, match="holds no images"):
        stock_of(write_tree(tmp_path / "flat", {"a.jpg": JPEG, "b.jpg": JPEG}))


def test_images_of_one_name_are_refused(tmp_path: Path) -> None:
    first = write_tree(tmp_path / "a", small_set())
    with pytest.raises(DataError, match=r"train/n01440764/n01440764_0\.JPEG is there twice"):
        stock_of(first, write_tree(tmp_path / "b", small_set(val=0)))


def test_hold_out(tmp_path: Path) -> None:
    files = {f"c{n % 4}/{n}.jpg": JPEG for n in range(400)}
    tree = write_tree(tmp_path / "t", files)
    with pytest.raises(DataError, match=r"no train/ and val/ folders.*--hold-out PERCENT"):
        stock_of(tree)
    stock = listed(stock_of(tree, hold_out=25))
    assert 70 <= len(stock["val"]) <= 130
    assert sorted(stock["train"] + stock["val"]) == sorted(files)
    fewer = listed(stock_of(write_tar(tmp_path / "fewer.tar", dict(list(files.items())[:200]), prefix="p/"), hold_out=25))
    assert set(fewer["val"]) <= set(stock["val"])
    assert set(fewer["train"]) <= set(stock["train"])
    assert set(listed(stock_of(tree, hold_out=10))["val"]) < set(stock["val"])
    with pytest.raises(DataError, match="leaves val without images"):
        stock_of(tree, hold_out=0)
    train_only = write_tree(tmp_path / "u" / "train", files)
    with pytest.raises(DataError, match="train/ but no val/ images"):
        stock_of(train_only)
    assert listed(stock_of(train_only, hold_out=25)) == stock
    with pytest.raises(DataError, match="leave --hold-out away"):
        stock_of(write_tree(tmp_path / "v", small_set()), hold_out=10)
    with pytest.raises(DataError, match="expected one layout"):
        stock_of(tree, write_tree(tmp_path / "w", small_set()))
    with pytest.raises(DataError, match="holds val/ only"):
        stock_of(write_tree(tmp_path / "x", small_set(train=0)))


def test_val_classes_that_train_lacks(tmp_path: Path) -> None:
    flat = small_set(val=0) | {f"val/images/{n}.JPEG": JPEG for n in range(3)}
    with pytest.raises(DataError, match="classes that train/ lacks, such as images"):
        stock_of(write_tree(tmp_path / "a", flat))
    stock = stock_of(write_tree(tmp_path / "b", small_set() | {"train/zzz/1.jpg": JPEG}))
    assert any("1 of 3 classes have no val image, such as zzz" in line for line in stock.warnings)


def test_class_lists(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", small_set(classes=("n01440764", "n01443537", "n01484850")))
    chosen = tmp_path / "list.txt"
    chosen.write_text("# mine\nn01484850 great white shark\n\nn01440764\n")
    stock = stock_of(tree, classes=str(chosen))
    assert [entry.wnid for entry in stock.classes] == ["n01440764", "n01484850"]
    assert [entry.name for entry in stock.classes] == ["tench", "great white shark"]
    assert {sample.label for sample in stock.samples["train"]} == {0, 1}
    chosen.write_text("n01440764\nn99999999\n")
    with pytest.raises(DataError, match=r"1 of the 2 classes of .* are not in the source: n99999999"):
        stock_of(tree, classes=str(chosen))
    with pytest.raises(DataError, match=r"imagenet100 matches nothing.*the source holds n01440764"):
        stock_of(tree, classes="imagenet100")
    chosen.write_text("#\n")
    with pytest.raises(DataError, match="names no class"):
        stock_of(tree, classes=str(chosen))
    chosen.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not text"):
        stock_of(tree, classes=str(chosen))
    with pytest.raises(DataError, match="expected imagenet100, all or a file"):
        stock_of(tree, classes="imagenet101")


def test_class_names() -> None:
    assert [entry.name for entry in named(["n01484850", "dogs"])] == ["dogs", "great white shark"]
    everything = [f"n{n:08d}" for n in range(100)]
    assert choose_classes(everything, "all") == everything


def test_undecodable_names_are_kept_readable(tmp_path: Path) -> None:
    files = small_set()
    tree = write_tree(tmp_path / "t", files)
    odd = tree / "train" / "n01440764" / b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    odd.write_bytes(JPEG)
    assert r"n01440764/caf\xe9.jpg" in listed(stock_of(tree))["train"]
