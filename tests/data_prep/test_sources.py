"""Listing images: trees, tars, class lists, hold-out and ids."""

import gzip
import io
import json
import os
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from tests.data_prep.helpers import converted, photo, small_set, write_tar, write_tree
from udkd.data_prep.classes import choose_classes, imagenet_names, label_classes
from udkd.data_prep.listing import SampleListing, list_samples
from udkd.data_prep.sources import open_sources
from udkd.data_prep.sources.layout import ARCHIVES, HIDDEN, OUTSIDE_CLASSES, OUTSIDE_SPLITS, UNREAD, parse_paths
from udkd.data_prep.sources.source import OTHER_FILES, TEST_IMAGES
from udkd.utils.errors import DataError

JPEG = photo(0, 8, 8)


def listing_of(*paths: Path, classes: str = "all", hold_out: float | None = None) -> SampleListing:
    return list_samples(open_sources(paths), classes=classes, hold_out_percent=hold_out)


def listed(listing: SampleListing) -> dict[str, list[str]]:
    return {split: [sample.source for sample in samples] for split, samples in listing.samples.items()}


@pytest.mark.parametrize(
    ("paths", "root", "expected"),
    [
        (["train/a/1", "val/a/2"], "x", [("train", "a", "1"), ("val", "a", "2")]),
        (["p/q/train/a/1", "p/q/validation/a/s/2"], "x", [("train", "a", "1"), ("val", "a", "s/2")]),
        (["a/1", "b/2"], "x", [(None, "a", "1"), (None, "b", "2")]),
        (["a/1", "b/2"], "train", [("train", "a", "1"), ("train", "b", "2")]),
        (["p/q/a/1", "p/q/b/2", "loose"], "x", [(None, "a", "1"), (None, "b", "2"), OUTSIDE_CLASSES]),
        (["a/1"], "x", [(None, "a", "1")]),
        (["p/a/1", "p/a/2"], "x", [(None, "a", "1"), (None, "a", "2")]),
        (["train/1", "car/2"], "x", [(None, "train", "1"), (None, "car", "2")]),
        (["train/a/1", "test/images/2"], "x", [("train", "a", "1"), ("test", "images", "2")]),
        (["loose"], "x", [OUTSIDE_CLASSES]),
        ([], "x", []),
    ],
)
def test_placements(paths: list[str], root: str, expected: list[object]) -> None:
    assert list(parse_paths(paths, root).placements) == expected


SPLIT_NAMES = [
    ("Training", "Validation"),
    ("train", "valid"),
    ("training", "validation"),
    ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
    ("train2017", "val2017"),
    ("my-train", "my-val"),
    ("TrainImages", "ValImages"),
    ("trainset", "dev"),
    ("train", "eval"),
    ("train/train", "val/val"),
    ("archive/train", "archive/val_images"),
    ("a/seg_train", "b/seg_val"),
]


def labelled(train: str, val: str, classes: tuple[str, ...] = ("cat", "dog"), other: str = "") -> dict[str, bytes]:
    """Three training and two validation images per class, and one in a third folder."""
    counts = [(train, 3), (val, 2)] + ([(other, 1)] if other else [])
    return {f"{folder}/{name}/{folder[-3:]}{n}.jpg": JPEG for folder, count in counts for name in classes for n in range(count)}


@pytest.mark.parametrize(("train", "val"), SPLIT_NAMES)
def test_split_folders_are_recognised_by_words_in_their_names(tmp_path: Path, train: str, val: str) -> None:
    files = labelled(train, val)
    sources = [write_tree(tmp_path / "x", files), write_tar(tmp_path / "x.tar", files)]
    for listing in map(listing_of, sources):
        assert [entry.wnid for entry in listing.classes] == ["cat", "dog"]
        assert [len(samples) for samples in listing.samples.values()] == [6, 4]
    apart = [tmp_path / "x" / train, tmp_path / "x" / val]
    assert [len(samples) for samples in listing_of(*apart).samples.values()] == [6, 4]
    with pytest.raises(DataError, match="remove --hold-out"):
        listing_of(*apart, hold_out=20)


def test_a_test_split_is_left_out_or_validates(tmp_path: Path) -> None:
    listing = listing_of(write_tree(tmp_path / "a", labelled("train", "valid", other="test")))
    assert [len(samples) for samples in listing.samples.values()] == [6, 4]
    assert listing.skipped.reasons == {TEST_IMAGES: (2, "cat/est0.jpg")}
    tree = write_tree(tmp_path / "b", labelled("seg_train/seg_train", "seg_test/seg_test") | {"seg_pred/1.jpg": JPEG})
    with pytest.raises(DataError, match=r"train/ and test/ but no val/ images; .*give --val test"):
        listing_of(tree)
    listing = list_samples(open_sources([tree]), classes="all", hold_out_percent=None, test_validates=True)
    assert [len(samples) for samples in listing.samples.values()] == [6, 4]
    assert listing.skipped.reasons == {OUTSIDE_SPLITS: (1, "seg_pred/1.jpg")}
    assert len(listing_of(tree, hold_out=50).samples["val"]) < 6
    with pytest.raises(DataError, match="none with --val test"):
        list_samples(open_sources([tmp_path / "a"]), classes="all", hold_out_percent=None, test_validates=True)


def test_split_names_do_not_become_classes(tmp_path: Path) -> None:
    flat = {f"{folder}/{n}.jpg": JPEG for folder in ("train_images_0", "val_images") for n in range(9)}
    tree = write_tree(tmp_path / "flat", flat)
    for hold_out in (None, 30):
        with pytest.raises(DataError, match="train_images_0, val_images would be classes, but are named for splits"):
            listing_of(tree, hold_out=hold_out)
    listing = list_samples(open_sources([tree], "classfolders"), classes="all", hold_out_percent=30)
    assert [entry.wnid for entry in listing.classes] == ["train_images_0", "val_images"]
    with pytest.raises(DataError, match=r"imagenet-train can be read as a split, .* or as a class"):
        listing_of(write_tree(tmp_path / "half", labelled("imagenet-train", "more")), hold_out=30)
    with pytest.raises(DataError, match=r"dev and valid, which all match the val split"):
        listing_of(write_tree(tmp_path / "two", labelled("train", "valid", other="dev")))
    names = ("bullet_train", "cat", "dog")  # ImageNet's, among others
    loose = write_tree(tmp_path / "a", {f"{name}/{n}.jpg": JPEG for name in names for n in range(9)})
    assert len(listing_of(loose, hold_out=30).classes) == 3
    deep = {f"{name}/images/{n}.jpg": JPEG for name in (*names, "test_tube", "cup") for n in range(9)}
    assert len(listing_of(write_tree(tmp_path / "c", deep), hold_out=30).classes) == 5
    assert len(listing_of(write_tree(tmp_path / "b", labelled("train", "val", names))).classes) == 3


def test_hold_out_is_not_advised_if_val_images_are_found(tmp_path: Path) -> None:
    train = {name: data for name, data in labelled("train", "x").items() if name.startswith("train")}
    cases = {
        "flat": (train | {"val/1.jpg": JPEG}, r"val/ \(1 images, not in class folders\)"),
        "list": (train | {"val.csv": b"path,label"}, r"val\.csv looks like validation"),
        "elsewhere": (train | {"extra/my_validation/cat/1.jpg": JPEG}, r"extra/my_validation/cat/ \(1 images"),
    }
    for name, (files, message) in cases.items():
        with pytest.raises(DataError, match=message) as caught:
            listing_of(write_tree(tmp_path / name, files))
        assert "--hold-out" not in str(caught.value)
    (write_tree(tmp_path / "link", train) / "val").symlink_to("nowhere")
    write_tree(tmp_path / "beside", labelled("img_train", "img_val"))
    for path, message in (
        (tmp_path / "link", "val .links that lead nowhere."),
        (tmp_path / "beside" / "img_train", "img_val too"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            listing_of(path)
        assert "--hold-out" not in str(caught.value)


def test_a_linked_val_folder_is_one(tmp_path: Path) -> None:
    write_tree(tmp_path / "elsewhere", {f"{name}/1.jpg": JPEG for name in ("cat", "dog")})
    tree = write_tree(tmp_path / "t", {f"train/{name}/1.jpg": JPEG for name in ("cat", "dog")})
    (tree / "val").symlink_to(tmp_path / "elsewhere")
    assert listed(listing_of(tree))["val"] == ["cat/1.jpg", "dog/1.jpg"]


def test_system_files_are_neither_images_nor_classes(tmp_path: Path) -> None:
    junk = ["@eaDir", ".AppleDouble", "__MACOSX", ".thumbnails", "lost+found", "$RECYCLE.BIN", "System Volume Information"]
    junk += ["@Recently-Snapshot", "@Transcode", "@sharebin", "LOST.DIR", "Network Trash Folder", "Temporary Items"]
    files = {f"{name}/{n}.JPG": JPEG for name in ("cat", "dog", *junk, ".ipynb_checkpoints") for n in range(9)}
    files |= {
        "cat/@eaDir/1.JPG/SYNOPHOTO_THUMB_M.jpg": JPEG,
        "cat/._1.JPG": JPEG,
        "cat/Thumbs.db": b"",
        "bird/desktop.ini": b"",
    }
    files |= {"cat/a.avif": b"x", "dog/b.HEIC": b"x", "more.zip": b"x"}
    for source in (write_tree(tmp_path / "t", files), write_tar(tmp_path / "t.tar", files)):
        listing = listing_of(source, hold_out=30)
        assert [entry.wnid for entry in listing.classes] == ["cat", "dog"]
        assert sum(map(len, listing.samples.values())) == 18
        counts = {reason: count for reason, (count, _) in listing.skipped.reasons.items()}
        assert counts == {HIDDEN: 9 * 14 + 2, OTHER_FILES: 2, UNREAD: 2, ARCHIVES: 1}


def test_a_folder_of_the_system_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root of a file system has lost+found, which only root may list."""
    tree = write_tree(tmp_path / "t", small_set() | {"lost+found/x": b"", "train/n01440764/closed/y.jpg": JPEG})
    scandir = os.scandir
    closed = {"lost+found"}

    def refuse(path: str) -> object:
        if Path(path).name in closed:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert listing_of(tree).skipped.reasons == {HIDDEN: (1, "lost+found")}
    closed.add("closed")
    with pytest.raises(DataError, match="closed cannot be listed"):
        listing_of(tree)


def test_a_single_class_gives_a_warning(tmp_path: Path) -> None:
    listing = listing_of(write_tree(tmp_path / "t", labelled("train", "val", ("images",))))
    assert any("one class, images" in line and "wrong level" in line for line in listing.warnings)


def joined(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(parts))
    return path


def test_joined_tars_are_read_to_their_end(tmp_path: Path) -> None:
    files = list(small_set().items())
    intact = listed(listing_of(write_tar(tmp_path / "a.tar", dict(files))))
    one, two, three = (write_tar(tmp_path / f"{n}.tar", dict(files[n::3])).read_bytes() for n in range(3))
    path = joined(tmp_path / "joined.tar", one, two, bytes(2000 * 512), three, bytes(700))
    listing = listing_of(path)
    assert listed(listing) == intact
    read = open_sources([path])[0].read
    assert all(
        read(sample.entry) == dict(files)[f"{split}/{sample.source}"] for split in intact for sample in listing.samples[split]
    )
    for rest in (b"junk" * 300, gzip.compress(two), two[:3000]):
        with pytest.raises(DataError, match=rf"other data after its end, at byte {len(one)} "):
            listing_of(joined(tmp_path / "junk.tar", one, rest))


@pytest.mark.parametrize("prefix", ["", "./"])
def test_hard_links_have_the_bytes_of_their_target(tmp_path: Path, prefix: str) -> None:
    member = tarfile.TarInfo(f"{prefix}train/n01440764/again.JPEG")
    member.type, member.linkname = tarfile.LNKTYPE, f"{prefix}train/n01443537/n01443537_2.JPEG"
    path = damaged_tar(tmp_path / "a.tar", member)
    (sample,) = [each for each in listing_of(path).samples["train"] if each.source == "n01440764/again.JPEG"]
    assert open_sources([path])[0].read(sample.entry) == small_set()["train/n01443537/n01443537_2.JPEG"]


def test_a_refused_member_is_not_reported_as_damage(tmp_path: Path) -> None:
    member = tarfile.TarInfo("train/n01440764/a.JPEG")
    member.type, member.linkname = tarfile.SYMTYPE, "b.JPEG"
    with pytest.raises(DataError, match=r"it is a link to 'b\.JPEG'.*--dereference") as caught:
        listing_of(damaged_tar(tmp_path / "a.tar", member))
    assert "fetch it again" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.zip", r"is not a zip|name the zips themselves"),
        ("a.7z", "unpack it first"),
        ("a.tar.zst", "not compressed, though its name says so|name the tars themselves, such as FOLDER"),
        ("a.tar.lz4", "decompress it first"),
        ("data-00000-of-00001.arrow", "expected a complete arrow file; fetch it again"),
        ("state.json", "name the folder of save_to_disk"),
        ("train-00000-of-01024", "TFRecords"),
        ("train-images-idx3-ubyte.gz", "MNIST"),
        ("data_batch_1", "pickles"),
        ("data.mdb", "LMDB"),
        ("x.npz", "NumPy"),
        ("x.h5", "HDF5"),
        ("x.mat", "MATLAB"),
        ("paths.xml", "sort the images into class folders, or list them in a .csv"),
    ],
)
def test_unread_kinds_are_named(tmp_path: Path, name: str, message: str) -> None:
    path = write_tree(tmp_path / "t", {name: b"path,label\n" * 99})
    for source in (path / name, path):
        with pytest.raises(DataError, match=message):
            listing_of(source)


def test_tree_and_tars_list_the_same(tmp_path: Path) -> None:
    files = small_set()
    tree = write_tree(tmp_path / "tree", files)
    intact = write_tar(tmp_path / "all.tar", files, prefix="some-set/v1/")
    names = list(files)
    parts = [
        write_tar(tmp_path / f"part{n}.tar", {name: files[name] for name in names[n::3]}, prefix=f"{'./' * n}x/")
        for n in range(3)
    ]
    first = listed(listing_of(tree))
    assert first == listed(listing_of(intact)) == listed(listing_of(*parts)) == listed(listing_of(*reversed(parts)))
    assert first["train"] == sorted(first["train"])
    assert len(first["train"]) == 12
    assert first == listed(listing_of(tree / "train", tree / "val"))
    for split, samples in listing_of(*parts).samples.items():
        for sample in samples:
            assert open_sources(parts)[sample.source_index].read(sample.entry) == files[f"{split}/{sample.source}"]


def test_other_files_are_skipped_with_a_warning(tmp_path: Path) -> None:
    files = small_set() | {
        "train/n01440764/boxes.txt": b"x",
        "train/n01440764/._a.JPEG": b"x",
        "test/images/1.JPEG": JPEG,
        ".hidden/train/a/1.jpg": JPEG,
        "readme": b"",
    }
    for path in (write_tree(tmp_path / "tree", files), write_tar(tmp_path / "a.tar", files)):
        listing = listing_of(path)
        assert len(listing.samples["train"]) == 12
        assert any("skipped 5 files" in line for line in listing.warnings)


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    files = small_set()
    real = write_tree(tmp_path / "real", files)
    tree = tmp_path / "tree"
    tree.mkdir()
    for split in ("train", "val"):
        (tree / split).symlink_to(real / split)
    (real / "train" / "loop").symlink_to(real / "train")
    names = listed(listing_of(tree))["train"]
    assert [name for name in names if not name.startswith("loop")] == listed(listing_of(write_tree(tmp_path / "b", files)))[
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
def test_tars_with_unsafe_paths_are_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = "/etc/passwd"
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        listing_of(damaged_tar(tmp_path / "a.tar", member))


def test_cut_and_damaged_tars_are_refused_wherever_they_are_cut(tmp_path: Path) -> None:
    files = small_set(train=2, val=1)
    intact = write_tar(tmp_path / "a.tar", files).read_bytes()
    content = len(intact.rstrip(b"\0"))
    for cut in [*range(512, content, 512 * 3 + 100), *range(512, content, 1024)]:
        (tmp_path / "cut.tar").write_bytes(intact[:cut])
        with pytest.raises(DataError, match=r"cut\.tar"):
            listing_of(tmp_path / "cut.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        third = archive.getmembers()[2].offset
    data = bytearray(intact)
    data[third + 20] ^= 1
    (tmp_path / "cut.tar").write_bytes(data)
    with pytest.raises(DataError, match="truncated or damaged at byte"):
        listing_of(tmp_path / "cut.tar")


def test_invalid_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        listing_of(tmp_path / "nowhere")
    (tmp_path / "text").write_text("x")
    with pytest.raises(DataError, match="an unknown kind"):
        listing_of(tmp_path / "text")
    (tmp_path / "no.tar").write_text("x" * 2000)
    with pytest.raises(DataError, match="not a complete tar"):
        listing_of(tmp_path / "no.tar")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match="holds no images"):
        listing_of(tmp_path / "a.tar.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        listing_of(tmp_path / "empty")
    with pytest.raises(DataError, match="holds no images"):
        listing_of(write_tar(tmp_path / "empty.tar", {}))
    with pytest.raises(DataError, match=r"holds no images .*; it holds 2 images with endings that are not read \(such as a/1"):
        listing_of(write_tar(tmp_path / "heic.tar", {"a/1.heic": b"x", "b/1.heic": b"x"}))
    with pytest.raises(DataError, match="holds no images"):
        listing_of(write_tree(tmp_path / "flat", {"a.jpg": JPEG, "b.jpg": JPEG}))


def test_images_of_one_name_are_refused(tmp_path: Path) -> None:
    first = write_tree(tmp_path / "a", small_set())
    with pytest.raises(DataError, match=r"train/n01440764/n01440764_0\.JPEG exists twice"):
        listing_of(first, write_tree(tmp_path / "b", small_set(val=0)))


def test_hold_out(tmp_path: Path) -> None:
    files = {f"c{n % 4}/{n}.jpg": JPEG for n in range(400)}
    tree = write_tree(tmp_path / "t", files)
    with pytest.raises(DataError, match=r"no train/ and val/ folders.*--hold-out PERCENT"):
        listing_of(tree)
    listing = listed(listing_of(tree, hold_out=25))
    assert 70 <= len(listing["val"]) <= 130
    assert sorted(listing["train"] + listing["val"]) == sorted(files)
    fewer = listed(listing_of(write_tar(tmp_path / "fewer.tar", dict(list(files.items())[:200]), prefix="p/"), hold_out=25))
    assert set(fewer["val"]) <= set(listing["val"])
    assert set(fewer["train"]) <= set(listing["train"])
    assert set(listed(listing_of(tree, hold_out=10))["val"]) < set(listing["val"])
    with pytest.raises(DataError, match="leaves val without images"):
        listing_of(tree, hold_out=0)
    train_only = write_tree(tmp_path / "u" / "train", files)
    with pytest.raises(DataError, match="train/ but no val/ images"):
        listing_of(train_only)
    assert listed(listing_of(train_only, hold_out=25)) == listing
    with pytest.raises(DataError, match="remove --hold-out"):
        listing_of(write_tree(tmp_path / "v", small_set()), hold_out=10)
    with pytest.raises(DataError, match="expected one layout"):
        listing_of(tree, write_tree(tmp_path / "w", small_set()))
    val_only = write_tree(tmp_path / "x", small_set(train=0))
    with pytest.raises(DataError, match="holds val/ only"):
        listing_of(val_only)
    everything = listed(listing_of(tree, hold_out=100))
    assert everything.keys() == {"val"}
    assert sorted(everything["val"]) == sorted(files)
    assert listed(listing_of(val_only, hold_out=100)).keys() == {"val"}


def test_val_classes_that_train_lacks(tmp_path: Path) -> None:
    flat = small_set(val=0) | {f"val/images/{n}.JPEG": JPEG for n in range(3)}
    with pytest.raises(DataError, match="classes that train/ lacks, such as images"):
        listing_of(write_tree(tmp_path / "a", flat))
    listing = listing_of(write_tree(tmp_path / "b", small_set() | {"train/zzz/1.jpg": JPEG}))
    assert any("1 of 3 classes have no val image, such as zzz" in line for line in listing.warnings)


def test_class_lists(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", small_set(classes=("n01440764", "n01443537", "n01484850")))
    chosen = tmp_path / "list.txt"
    chosen.write_text("# mine\nn01484850 great white shark\n\nn01440764\n")
    listing = listing_of(tree, classes=str(chosen))
    assert [entry.wnid for entry in listing.classes] == ["n01440764", "n01484850"]
    assert [entry.name for entry in listing.classes] == ["tench", "great white shark"]
    assert {sample.label for sample in listing.samples["train"]} == {0, 1}
    chosen.write_text("n01440764\nn99999999\n")
    with pytest.raises(DataError, match=r"1 of the 2 classes of .* are not in the source: n99999999"):
        listing_of(tree, classes=str(chosen))
    with pytest.raises(DataError, match=r"imagenet100 matches nothing.*the source holds n01440764"):
        listing_of(tree, classes="imagenet100")
    chosen.write_text("#\n")
    with pytest.raises(DataError, match="names no class"):
        listing_of(tree, classes=str(chosen))
    chosen.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not text"):
        listing_of(tree, classes=str(chosen))
    with pytest.raises(DataError, match="expected imagenet100, all or a file"):
        listing_of(tree, classes="imagenet101")


DECOMPOSED = unicodedata.normalize("NFD", "café")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sea lion\ngreat\n", ["great", "sea lion"]),
        ("\ufeffsea lion\r\ngreat\r\n", ["great", "sea lion"]),
        ("sea lion\tOtaria\ngreat,big\n", ["great", "sea lion"]),
        ("sea lion  # big\n\n# sea\nC#\n", ["C#", "sea lion"]),
        ("sea lion 150\nsea 2\ngreat 3\n", ["great", "sea", "sea lion"]),
        ("great\ngreat  # again\ngreat 3\nsea lion\n", ["great", "sea lion"]),
        ("sea urchin\ngreat#1\n", ["great", "sea"]),
        ("café\nsea/\n", [DECOMPOSED, "sea"]),
        (json.dumps({"sea lion": "x", "great": "y"}), ["great", "sea lion"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lines_of_class_lists(tmp_path: Path, text: str, expected: list[str], encoding: str) -> None:
    """The full line is tried first; the first word is used only if it is a folder and the line is not."""
    folders = ["sea", "sea lion", "great", "C#", DECOMPOSED]
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode(encoding))
    assert choose_classes(folders, str(path)) == sorted(expected)


@pytest.mark.parametrize("text", ["great dane\ngreat auk\n", "great\ngreat auk\n", "sea lion\ngreat auk  # x\ngreat\n"])
def test_two_lines_of_a_class_list_must_not_match_one_class(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=r"names 'great .*', which both match the folder 'great' by the first word"):
        choose_classes(["sea", "sea lion", "great"], str(path))
    path.write_text("n01440764\nn01440764 tench, Tinca tinca\n")
    assert choose_classes(["n01440764", "n01443537"], str(path)) == ["n01440764"]


IMAGENET = ["n01440764", "n01484850", "n02012849", "n02077923", "n03126707", "great"]
KERAS = {"0": ["n01440764", "tench"], "2": ["n01484850", "great_white_shark"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Great White Shark\nsea_lion\n", ["n01484850", "n02077923"]),
        ("great white shark, white shark, man-eater, Carcharodon carcharias\n", ["n01484850"]),
        ("great\ntench\n", ["great", "n01440764"]),
        ("great unknown\n", ["great"]),
        ("n01440764 tench, Tinca tinca\nn02012849 crane\n", ["n01440764", "n02012849"]),
        (json.dumps(KERAS), ["n01440764", "n01484850"]),
        (json.dumps({"n01440764": "tench, Tinca tinca", "n03126707": "crane"}), ["n01440764", "n03126707"]),
        (json.dumps(["sea lion", "tench"]), ["n01440764", "n02077923"]),
        (json.dumps({"0": "sea lion", "1": "tench"}), ["n01440764", "n02077923"]),
    ],
)
def test_class_lists_by_readable_names(tmp_path: Path, text: str, expected: list[str]) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    assert choose_classes(IMAGENET, str(path)) == expected


@pytest.mark.parametrize("line", ["n01440764,n02077923", "n01440764 n02077923", "great, sea # two", "n01440764 tench\tsea"])
def test_two_classes_in_one_line_are_refused(tmp_path: Path, line: str) -> None:
    """Further names in a line are synonyms, so that the second class would be left out."""
    path = tmp_path / "list.txt"
    path.write_text(f"{line}\n")
    folders = ["great", "n01440764", "n02077923", "sea"]
    with pytest.raises(DataError, match=r"names '\w+' and '\w+' in one line; expected one class per line"):
        choose_classes(folders, str(path))
    path.write_text("great, large # not sea\nn01440764 tench, n00000000\n")
    assert choose_classes(folders, str(path)) == ["great", "n01440764"]
    assert choose_classes([*folders, line], str(path)) == ["great", "n01440764"]


def test_readable_names_of_two_classes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("tench\ncrane\n")
    with pytest.raises(DataError, match="names 'crane', which is the name of n02012849 and n03126707; expected one class"):
        choose_classes(IMAGENET, str(path))
    assert choose_classes(["n01440764", "crane"], str(path)) == ["crane", "n01440764"]  # a folder of this name
    with pytest.raises(DataError, match=r"1 of the 2 classes of .* are not in the source: crane"):
        choose_classes(["n01440764"], str(path))
    path.write_text("\n".join(imagenet_names().values()))
    assert choose_classes(imagenet_names(), str(path)) == sorted(imagenet_names())
    path.write_text("house cat\n")
    assert choose_classes(["0000", "0001"], str(path), {"0001": "house cat", "0000": "dog"}) == ["0001"]


def test_similar_names_give_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("Great\n")
    with pytest.raises(DataError, match=r"'Great' differs from the folder 'great' only in upper and lower case"):
        choose_classes(["great", "sea"], str(path))
    twins = [unicodedata.normalize("NFD", "ǖé"), unicodedata.normalize("NFD", "ǖ") + "é"]
    path.write_text("ǖé\n")
    with pytest.raises(DataError, match="differ only in how letters are composed"):
        choose_classes(twins, str(path))
    for train, val, message in ((DECOMPOSED, "café", "composed"), ("Dog", "dog", "upper and lower case")):
        files = {f"train/{train}/1.jpg": JPEG, f"val/{val}/1.jpg": JPEG} | {f"{s}/a/1.jpg": JPEG for s in ("train", "val")}
        with pytest.raises(DataError, match=f"classes that train/ lacks.*only in .*{message}"):
            listing_of(write_tree(tmp_path / message[:3], files))
    listing = listing_of(write_tree(tmp_path / "b", labelled("train", "val", ("dog", "dog "))))
    assert any("'dog' and 'dog ' differ only in blanks" in line for line in listing.warnings)
    listing = listing_of(write_tree(tmp_path / "t", labelled("train", "val", ("Dog", "dog"))))
    assert any("'Dog' and 'dog' differ only in upper and lower case" in line for line in listing.warnings)


def test_class_names() -> None:
    assert [entry.name for entry in label_classes(["n01484850", "dogs"])] == ["dogs", "great white shark"]
    everything = [f"n{n:08d}" for n in range(100)]
    assert choose_classes(everything, "all") == everything


def test_undecodable_names_are_kept_readable(tmp_path: Path) -> None:
    files = small_set()
    tree = write_tree(tmp_path / "t", files)
    odd = tree / "train" / "n01440764" / b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    odd.write_bytes(JPEG)
    assert r"n01440764/caf\xe9.jpg" in listed(listing_of(tree))["train"]
