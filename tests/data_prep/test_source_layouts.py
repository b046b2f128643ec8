"""Sources of every layout, some written by other programs: each gives the same images under the same classes."""

import contextlib
import csv
import gzip
import io
import json
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data_prep import helpers
from tests.data_prep.helpers import encoded, needs_ffcv, photo, picture, small_set, write_tar, write_tree
from udkd.data.dataset import DatasetFolder
from udkd.data_prep.info import info_lines
from udkd.data_prep.listing import SampleListing, list_samples
from udkd.data_prep.sources import BESIDE_FILES, open_sources
from udkd.data_prep.sources.matlab import struct_array
from udkd.data_prep.sources.source import OTHER_FILES, TEST_IMAGES
from udkd.data_prep.verify import verify
from udkd.utils.errors import ConfigError, DataError
from udkd.utils.progress import Silent

WNIDS = ("n01440764", "n01443537", "n02510455")


def converted(source: Path | list[Path], folder: Path, **settings: object) -> DatasetFolder:
    """Convert with a side that keeps all bytes, and without derived formats."""
    return helpers.converted(source, folder, **{"side": 96, "formats": (), **settings})


def listing_of(*paths: Path, layout: str = "auto", classes: str = "all", hold_out: float | None = None) -> SampleListing:
    return list_samples(open_sources(paths, layout), classes=classes, hold_out_percent=hold_out)


def images_of(folder: DatasetFolder) -> dict[str, list[tuple[str, bytes]]]:
    """Class and bytes of every image, by split, sorted."""
    return {
        name: sorted((folder.classes[split.labels[n]].wnid, split.read(n)) for n in split.ids.tolist())
        for name, split in folder.splits.items()
    }


def expected(files: Mapping[str, bytes]) -> dict[str, list[tuple[str, bytes]]]:
    parts = [(*name.split("/")[:2], data) for name, data in files.items()]
    return {split: sorted((wnid, data) for part, wnid, data in parts if part == split) for split in ("train", "val")}


# --- ILSVRC2012 ---


def ilsvrc(root: Path, files: Mapping[str, bytes]) -> tuple[Path, dict[str, str]]:
    """The two tars as downloaded, and the class of each validation image."""
    root.mkdir()
    inner = {}
    for wnid in WNIDS:
        mine = {name.split("/")[-1]: data for name, data in files.items() if name.startswith(f"train/{wnid}/")}
        inner[f"{wnid}.tar"] = write_tar(root / "class.tar", mine).read_bytes()
    (root / "class.tar").unlink()
    write_tar(root / "ILSVRC2012_img_train.tar", inner)
    flat = {}
    truth = {}
    # Not in the order of classes, as in the real one.
    for n, name in enumerate(
        sorted((name for name in files if name.startswith("val/")), key=lambda name: files[name][-40:]), start=1
    ):
        flat[f"ILSVRC2012_val_{n:08d}.JPEG"] = files[name]
        truth[f"ILSVRC2012_val_{n:08d}"] = name.split("/")[1]
    write_tar(root / "ILSVRC2012_img_val.tar", flat)
    return root, truth


def mat_element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def meta_mat(ids: Mapping[str, int], compressed: bool) -> bytes:
    """A struct array `synsets` as MATLAB writes it, with small elements inside their tags."""
    import zlib

    def matrix(kind: int, shape: tuple[int, int], *parts: bytes, name: bytes = b"") -> bytes:
        head = mat_element(6, struct.pack("<II", kind, 0)) + mat_element(5, struct.pack("<ii", *shape))
        return mat_element(14, head + mat_element(1, name) + b"".join(parts))

    fields = []
    for wnid, number in ids.items():
        small = struct.pack("<HHI", 2, 1, number)  # one unsigned byte, in its tag
        fields += [matrix(6, (1, 1), small), matrix(4, (1, len(wnid)), mat_element(16, wnid.encode()))]
    names = b"".join(name.ljust(16, b"\0") for name in (b"ILSVRC2012_ID", b"WNID"))
    width = struct.pack("<HHI", 5, 4, 16)
    array = matrix(2, (len(ids), 1), width, mat_element(1, names), *fields, name=b"synsets")
    if compressed:
        packed = zlib.compress(array)
        array = struct.pack("<II", 15, len(packed)) + packed
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x100) + b"IM" + array


def devkit(path: Path, truth: Mapping[str, str], compressed: bool = True) -> Path:
    ids = {wnid: 100 - n for n, wnid in enumerate(WNIDS)}  # another order than that of the wnids
    lines = "".join(f"{ids[truth[name]]}\n" for name in sorted(truth))
    prefix = "ILSVRC2012_devkit_t12/data/"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (
            ("ILSVRC2012_validation_ground_truth.txt", lines.encode()),
            ("meta.mat", meta_mat(ids, compressed)),
        ):
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def kaggle_csv(path: Path, truth: Mapping[str, str]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageId", "PredictionString"])
        for name, wnid in reversed(truth.items()):
            writer.writerow([name, f"{wnid} 85 1 499 272 {wnid} 1 1 2 2 "])
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_ilsvrc_with_the_devkit(tmp_path: Path, compressed: bool) -> None:
    files = small_set(classes=WNIDS)
    root, truth = ilsvrc(tmp_path / "i", files)
    devkit(root / "ILSVRC2012_devkit_t12.tar.gz", truth, compressed)
    folder = converted(root, tmp_path / "d", workers=2)
    assert images_of(folder) == expected(files)
    assert folder.split("train").source[0] == "n01440764/n01440764_0.JPEG"
    tars = [root / "ILSVRC2012_img_val.tar", root / "ILSVRC2012_img_train.tar"]
    assert images_of(converted(tars, tmp_path / "e")) == expected(files)


def test_ilsvrc_with_kaggles_solution(tmp_path: Path) -> None:
    files = small_set(classes=WNIDS)
    root, truth = ilsvrc(tmp_path / "i", files)
    with pytest.raises(DataError, match=r"has no classes.*LOC_val_solution\.csv beside it"):
        listing_of(root)
    named = kaggle_csv(tmp_path / "LOC_val_solution.csv", truth)
    assert images_of(converted([root, named], tmp_path / "d")) == expected(files)
    with pytest.raises(DataError, match="labels validation images, which no source holds; expected their tar"):
        listing_of(root / "ILSVRC2012_img_train.tar", named)
    kaggle_csv(named, dict(list(truth.items())[1:]))
    with pytest.raises(DataError, match=r"does not list ILSVRC2012_val_00000001\.JPEG"):
        listing_of(root, named)
    named.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="expected the columns ImageId"):
        listing_of(root, named)


def flat_val(truth: Mapping[str, str], root: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The training images in class folders, the validation images of `ilsvrc` in one folder."""
    with tarfile.open(root / "ILSVRC2012_img_val.tar") as archive:
        flat = {f"val/{name}.JPEG": archive.extractfile(f"{name}.JPEG").read() for name in truth}  # type: ignore[union-attr]
    return {name: data for name, data in files.items() if name.startswith("train/")} | flat


def test_a_flat_val_folder_has_its_ground_truth(tmp_path: Path) -> None:
    """Kaggle's CLS-LOC and a val tar unpacked by hand: as a tree and as a tar, with the ground truth inside or named."""
    files = small_set(classes=WNIDS)
    root, truth = ilsvrc(tmp_path / "i", files)
    flat = flat_val(truth, root, files)
    kaggle = write_tree(tmp_path / "k", {f"ILSVRC/Data/CLS-LOC/{name}": data for name, data in flat.items()})
    named = kaggle_csv(tmp_path / "LOC_val_solution.csv", truth)
    named.write_bytes(b"\xef\xbb\xbf" + named.read_bytes())
    inside = kaggle / "ILSVRC" / "Data" / "CLS-LOC"
    assert images_of(converted([inside, named], tmp_path / "a")) == expected(files)
    assert images_of(converted([inside / "train", inside / "val", named], tmp_path / "b")) == expected(files)
    tar = write_tar(tmp_path / "t.tar", dict(reversed(flat.items())), "x/")
    assert images_of(converted(tar, tmp_path / "c")) == expected(files)  # the csv is beside it
    with pytest.raises(DataError, match=r"val/ \(6 images, not in class folders\) looks like validation") as caught:
        listing_of(kaggle)
    assert "--hold-out" not in str(caught.value)
    devkit(kaggle / "ILSVRC2012_devkit_t12.tar.gz", truth)
    assert images_of(converted(kaggle, tmp_path / "d")) == expected(files)
    with pytest.raises(DataError, match="remove --hold-out"):
        listing_of(kaggle, hold_out=20)
    kaggle_csv(kaggle / "LOC_val_solution.csv", dict(list(truth.items())[1:]))
    with pytest.raises(DataError, match=r"does not list ILSVRC2012_val_00000001\.JPEG"):
        listing_of(kaggle)
    with pytest.raises(DataError, match="both label the validation images"):
        listing_of(kaggle, named, kaggle / "LOC_val_solution.csv")


@pytest.mark.parametrize("as_tar", [False, True])
def test_tiny_imagenet_as_it_is_downloaded(tmp_path: Path, as_tar: bool) -> None:
    files = small_set(classes=WNIDS)
    moved = {f"train/{name.split('/')[1]}/images/{name.split('/')[2]}": data for name, data in files.items() if "train" in name}
    val = [name for name in files if name.startswith("val")]
    moved |= {f"val/images/val_{n}.JPEG": files[name] for n, name in enumerate(val)}
    lines = [f"val_{n}.JPEG\t{name.split('/')[1]}\t0\t0\t9\t9" for n, name in enumerate(val)]
    moved |= {"val/val_annotations.txt": "\n".join(lines).encode(), "wnids.txt": b"x", "test/images/test_0.JPEG": photo(1)}
    source = write_tar(tmp_path / "a.tar", moved, "tiny/") if as_tar else write_tree(tmp_path / "a", moved)
    folder = converted(source, tmp_path / "d")
    assert images_of(folder) == expected(files)
    report = json.loads((folder.path / "report.json").read_text())
    assert {reason: entry["files"] for reason, entry in report["passed_over"].items()} == {TEST_IMAGES: 1, OTHER_FILES: 1}
    assert {"         2 files skipped:", f"           1 {TEST_IMAGES}, such as images/test_0.JPEG"} <= set(
        info_lines(folder.path)
    )


def test_class_tars_unpacked_once(tmp_path: Path) -> None:
    files = small_set(classes=WNIDS)
    (tmp_path / "train").mkdir()
    for wnid in WNIDS:
        mine = {name.split("/")[-1]: data for name, data in files.items() if name.startswith(f"train/{wnid}/")}
        write_tar(tmp_path / "train" / f"{wnid}.tar", mine | {"readme.txt": b"x"})
    val = write_tree(tmp_path, {name: data for name, data in files.items() if name.startswith("val")}) / "val"
    folder = converted([tmp_path / "train", val], tmp_path / "d")
    assert images_of(folder) == expected(files)
    listing = listing_of(*sorted((tmp_path / "train").iterdir()), val)
    assert [sample.source for sample in listing.samples["train"]] == list(folder.split("train").source)
    assert listing.skipped.reasons == {OTHER_FILES: (3, "n01440764.tar/readme.txt")}


def test_torchvisions_root_keeps_its_tars(tmp_path: Path) -> None:
    files = small_set(classes=WNIDS)
    root, truth = ilsvrc(tmp_path / "i", files)
    devkit(root / "ILSVRC2012_devkit_t12.tar.gz", truth)
    write_tree(root, files)
    listing = listing_of(root)
    assert any("only tars of ILSVRC2012 are read" in line for line in listing.warnings)
    (root / "ILSVRC2012_img_train.tar").unlink()
    folder = converted(root, tmp_path / "d")
    assert images_of(folder) == expected(files)
    assert folder.split("val").source[0].startswith("n01440764/n01440764_0")
    for path in (root / "val").rglob("*.JPEG"):
        path.unlink()
    with pytest.raises(DataError, match=r"holds tars of ILSVRC2012 and class folders of images; .*--layout imagefolder"):
        listing_of(root)


def test_the_user_must_choose_between_two_kinds_in_one_folder(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", small_set() | {"train.beton": b"x"})
    with pytest.raises(DataError, match=r"holds \.beton files and class folders of images; .*--layout beton or --lay"):
        listing_of(tree)
    assert len(listing_of(tree, layout="imagefolder").samples["train"]) == 12
    root = hub(tmp_path / "h", small_set(classes=WNIDS), None)  # a clone from the Hub, with pictures for its page
    write_tree(root, {"README.md": b"", "assets/a.png": photo(1), "deep/er/still/x.parquet": b""})
    listing = listing_of(root)
    assert len(listing.samples["train"]) == 18
    assert any("only parquet files are read" in line for line in listing.warnings)
    assert listing.skipped.reasons == {OTHER_FILES: (2, "README.md"), BESIDE_FILES: (1, "assets/a.png")}
    parquet(tmp_path / "t" / "x.parquet", [(0, photo(1))])
    (tree / "train.beton").unlink()
    with pytest.raises(DataError, match="holds parquet files and class folders of images"):
        listing_of(tree)


def test_three_splits_of_parquet_and_shards(tmp_path: Path) -> None:
    for stem, count in (("train", 6), ("validation", 4), ("test", 2)):
        parquet(tmp_path / "p" / "data" / f"{stem}-00000-of-00001.parquet", [(n % 2, photo(n)) for n in range(count)])
        samples = {
            f"{n:03d}.{end}": photo(n) if end == "jpg" else b"%d" % (n % 2) for n in range(count) for end in ("jpg", "cls")
        }
        write_tree(tmp_path / "w" / stem, {})
        (tmp_path / "w" / stem).mkdir(parents=True)
        write_tar(tmp_path / "w" / stem / "000.tar", samples)
    shards = [tmp_path / "w" / stem / "000.tar" for stem in ("train", "validation", "test")]
    for sources in ([tmp_path / "p"], [tmp_path / "w"], [path.parent for path in shards], shards):
        listing = listing_of(*sources)
        assert [len(samples) for samples in listing.samples.values()] == [6, 4]
        assert listing.skipped.reasons[TEST_IMAGES][0] == 2


def test_damaged_devkits_are_a_one_line_error(tmp_path: Path) -> None:
    root, truth = ilsvrc(tmp_path / "i", small_set(train=1, val=1, classes=WNIDS))
    path = devkit(root / "ILSVRC2012_devkit_t12.tar.gz", truth)
    intact = gzip.decompress(path.read_bytes())
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(intact.rstrip(b"\0")), 60).tolist():
        path.write_bytes(gzip.compress(intact[:at] + bytes([intact[at] ^ 32]) + intact[at + 1 :], 1))
        with contextlib.suppress(DataError):  # anything else would be a traceback
            listing_of(root)
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(DataError, match=r"holds no ILSVRC2012_validation_ground_truth\.txt"):
        listing_of(root)


def test_matlab_files_of_another_writer() -> None:
    io_module = pytest.importorskip("scipy.io")
    dtype = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("children", "O")]
    array = np.array([(n, f"n{n:08d}", np.arange(3)) for n in (1, 300, 70_000)], dtype=dtype)
    for compressed in (False, True):
        buffer = io.BytesIO()
        io_module.savemat(buffer, {"first": np.arange(4), "synsets": array}, do_compression=compressed)
        rows = struct_array(buffer.getvalue())
        assert [(row["ILSVRC2012_ID"], row["WNID"]) for row in rows] == [(n, f"n{n:08d}") for n in (1, 300, 70_000)]


@pytest.mark.parametrize(
    ("kind", "message"), [(tarfile.SYMTYPE, "a link"), (tarfile.CHRTYPE, "a device"), (tarfile.LNKTYPE, "a hard")]
)
def test_class_tars_follow_the_same_rules(tmp_path: Path, kind: bytes, message: str) -> None:
    member = tarfile.TarInfo("n01440764_1.JPEG")
    member.type, member.linkname = kind, "/etc/passwd"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(member)
    path = write_tar(tmp_path / "train.tar", {"n01440764.tar": buffer.getvalue()})
    with pytest.raises(DataError, match=rf"train\.tar, n01440764\.tar holds 'n01440764_1\.JPEG'(: it is|,) {message}"):
        listing_of(path)
    path = write_tar(tmp_path / "train.tar", {"n01440764.tar": write_tar(tmp_path / "x.tar", small_set()).read_bytes()[:2000]})
    with pytest.raises(DataError, match=r"n01440764\.tar is (truncated|not a complete tar)"):
        listing_of(path)


# --- Kaggle's ImageNet-100 ---


@pytest.mark.parametrize("as_tar", [False, True])
def test_kaggles_imagenet_100(tmp_path: Path, as_tar: bool) -> None:
    files = small_set(train=5, classes=WNIDS)
    prefixes = {
        name: f"train.X{1 + WNIDS.index(name.split('/')[1])}/" if name.startswith("train") else "val.X/" for name in files
    }
    moved = {f"{prefixes[name]}{name.split('/', 1)[1]}": data for name, data in files.items()}
    labels = json.dumps(dict.fromkeys(WNIDS, "some, names")).encode()
    moved |= {"Labels.json": labels}
    source = write_tar(tmp_path / "a.tar", moved, "archive/") if as_tar else write_tree(tmp_path / "a", moved)
    folder = converted(source, tmp_path / "d")
    assert images_of(folder) == expected(files)
    assert [entry.name for entry in folder.classes] == ["tench", "goldfish", "giant panda"]


# --- Hugging Face parquet ---


def parquet(path: Path, rows: list[tuple[int | None, bytes]], names: list[str] | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": data, "path": f"{n}.jpg"} for n, (_, data) in enumerate(rows)]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, image), "label": pa.array([label for label, _ in rows], pa.int64())})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=7, **options)
    return path


def hub(root: Path, files: Mapping[str, bytes], names: list[str] | None) -> Path:
    for split, stem in (("train", "train"), ("val", "validation")):
        # Shuffled, as on the Hub; the label of a class is its index among the names.
        mine = sorted((name for name in files if name.startswith(split)), key=lambda name: files[name][-40:])
        rows = [(WNIDS.index(name.split("/")[1]), files[name]) for name in mine]
        for n in range(2):
            parquet(root / "data" / f"{stem}-{n:05d}-of-00002.parquet", rows[n::2], names)
    return root


def test_hugging_face_parquet(tmp_path: Path) -> None:
    files = small_set(train=9, val=3, classes=WNIDS)
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus", "giant panda, panda, Ailuropoda melanoleuca"]
    root = hub(tmp_path / "h", files, names)
    folder = converted(root, tmp_path / "d", workers=2, shard_samples=5)
    assert images_of(folder) == expected(files)  # known names are given their wnids
    assert verify(folder.path, Silent()) == []
    source = folder.split("train").source
    assert source[0].endswith("/train-00000-of-00002/000000-0.jpg")  # ids follow files and rows
    other = converted([root / "data"], tmp_path / "e", shard_samples=5)
    assert other.digest == folder.digest


def test_parquet_with_other_names_and_with_none(tmp_path: Path) -> None:
    files = small_set(train=4, val=2, classes=WNIDS)
    folder = converted(hub(tmp_path / "a", files, ["cat", "apple", "boat/ship"]), tmp_path / "d")
    assert [entry.wnid for entry in folder.classes] == ["apple", "boat-ship", "cat"]
    named = dict(zip(WNIDS, ("cat", "apple", "boat-ship"), strict=True))
    assert images_of(folder)["val"] == sorted((named[wnid], data) for wnid, data in expected(files)["val"])
    folder = converted(hub(tmp_path / "b", files, None), tmp_path / "e")
    assert [entry.wnid for entry in folder.classes] == ["0000", "0001", "0002"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["crane", "flamingo", "crane"], ["crane-0000", "crane-0002", "flamingo"]),  # ImageNet has two
        (["a/b", "a-b", "c"], ["a-b-0000", "a-b-0001", "c"]),
    ],
)
def test_classes_of_one_name_stay_apart(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    folder = converted(hub(tmp_path / "a", small_set(train=4, val=2, classes=WNIDS), names), tmp_path / "d")
    assert [entry.wnid for entry in folder.classes] == expected
    assert np.bincount(folder.split("train").labels).tolist() == [4, 4, 4]


def test_parquet_files_of_one_name_in_two_folders(tmp_path: Path) -> None:
    for part in ("train", "train-extra", "val"):
        parquet(tmp_path / "p" / part / "0000.parquet", [(n % 2, photo(f"{part}{n}")) for n in range(4)])
    folder = converted(tmp_path / "p", tmp_path / "d")
    assert folder.split("train").source[::4] == ("0000/train/0000/000000-0.jpg", "0000/train-extra/0000/000000-0.jpg")


def test_unusual_parquet_columns(tmp_path: Path) -> None:
    for number, path in enumerate((b"x.jpg", 3)):
        rows = [{"bytes": photo(n), "path": path} for n in range(40)]
        pq.write_table(pa.table({"image": pa.array(rows), "label": [0, 1] * 20}), tmp_path / f"{number}.parquet")
        assert sum(map(len, listing_of(tmp_path / f"{number}.parquet", hold_out=50).samples.values())) == 40
    pq.write_table(pa.table({"image": [{"bytes": "text"}] * 2, "label": [0, 1]}), tmp_path / "text.parquet")
    with pytest.raises(DataError, match="expected an image column"):
        listing_of(tmp_path / "text.parquet", hold_out=50)


def test_parquet_that_is_refused_or_skipped(tmp_path: Path) -> None:
    path = parquet(tmp_path / "test.parquet", [(-1, photo(1)), (None, photo(2)), (0, photo(3)), (1, photo(4))] * 20)
    listing = listing_of(path, hold_out=50)
    assert sum(map(len, listing.samples.values())) == 40
    assert "skipped 40 files" in listing.warnings[0]
    with pytest.raises(DataError, match="holds the label 1 but names only 1 classes; expected a class number"):
        listing_of(parquet(tmp_path / "few.parquet", [(1, photo(1))], ["only"]))
    pq.write_table(pa.table({"text": ["x"], "label": [1]}), tmp_path / "text.parquet")
    with pytest.raises(DataError, match="has the columns text, label; expected an image column"):
        listing_of(tmp_path / "text.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"test\.parquet cannot be read"):
        listing_of(path)


# --- WebDataset ---


def test_webdatasets(tmp_path: Path) -> None:
    files = small_set(train=6, val=3, classes=WNIDS)
    for split in ("train", "val"):
        mine = [(name.split("/")[1], data) for name, data in files.items() if name.startswith(split)]
        for shard in range(2):
            members: dict[str, bytes] = {}
            for n, (wnid, data) in enumerate(mine[shard::2]):
                key = f"{n:04d}"  # the same keys in every shard
                label = json.dumps({"label": WNIDS.index(wnid), "caption": "x"}).encode()
                if shard:
                    label = str(WNIDS.index(wnid)).encode() + b"\n"
                members |= {f"{key}.{'cls' if shard else 'json'}": label, f"{key}.jpg": data, f"{key}.txt": b"x"}
            (tmp_path / "w").mkdir(exist_ok=True)
            write_tar(tmp_path / "w" / f"set-{split}-{shard:06d}.tar", members)
    folder = converted(tmp_path / "w", tmp_path / "d")
    numbers = {wnid: f"{n:04d}" for n, wnid in enumerate(WNIDS)}
    wanted = {split: sorted((numbers[wnid], data) for wnid, data in group) for split, group in expected(files).items()}
    assert images_of(folder) == wanted
    assert images_of(converted(sorted((tmp_path / "w").iterdir()), tmp_path / "e")) == wanted
    write_tar(tmp_path / "w" / "set-train-000000.tar", {"a.jpg": photo(1), "a.json": b"{"})
    with pytest.raises(DataError, match=r"sample a has no label: its \.json cannot be read .*--label-field"):
        listing_of(tmp_path / "w")


def test_a_dataset_folder_is_a_source(tmp_path: Path) -> None:
    """To change side or fit without the originals. Classes keep their names."""
    files = small_set(classes=WNIDS)
    first = converted(write_tree(tmp_path / "t", files), tmp_path / "d", shard_samples=4, formats=("dali", "resident"))
    second = converted(first.path, tmp_path / "e")
    assert images_of(second) == images_of(first) == expected(files)
    assert second.classes == first.classes


# --- .beton ---


@pytest.mark.parametrize("mode", ["jpg", "raw", "proportion"])
def test_betons_written_by_ffcv(tmp_path: Path, mode: str) -> None:
    """Written by FFCV. Stored JPEGs keep their bytes, raw pixels are encoded once."""
    needs_ffcv()
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    counts = {"train": 7, "val": 3}
    (tmp_path / "b").mkdir()
    for split, count in counts.items():
        rows = [(picture(f"{split}{n}", 30 + n, 50 - n), n % 3) for n in range(count)]
        writer = DatasetWriter(
            str(tmp_path / "b" / f"imagenet_{split}.beton"),
            {"image": RGBImageField(write_mode=mode, compress_probability=0.5), "label": IntField()},
            num_workers=1,
        )
        writer.from_indexed_dataset(rows)
    folder = converted(tmp_path / "b", tmp_path / "d")
    assert [entry.wnid for entry in folder.classes] == ["0000", "0001", "0002"]
    for split, count in counts.items():
        part = folder.split(split)
        assert part.num_samples == count
        for n in range(count):
            sample_id = part.source.index(f"{n % 3:04d}/imagenet_{split}/{n:09d}")
            pixels = part.pixels(sample_id)[: 30 + n, : 50 - n].astype(int)
            assert np.abs(pixels - np.asarray(picture(f"{split}{n}", 30 + n, 50 - n))).mean() < 8
    notes = set(folder.split("train").note)
    possible = {"jpg": {""}, "raw": {"PPM to JPEG"}, "proportion": {"", "PPM to JPEG"}}[mode]
    assert notes <= possible  # FFCV chooses at random which images it encodes


def test_betons_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.beton"
    for data in (b"", b"\0" * 10_000, struct.pack("<HHIQQ", 2, 2, 4096, 10**12, 5000) + bytes(6000)):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"not a complete \.beton|fields of other kinds"):
            listing_of(path)


def test_a_beton_whose_count_was_cut_is_refused(tmp_path: Path) -> None:
    """Its table of allocations has samples that the header does not count."""
    files = small_set(train=6, val=2)
    folder = converted(write_tree(tmp_path / "t", files), tmp_path / "d", formats=("ffcv",))
    beton = tmp_path / "train.beton"
    data = bytearray((folder.path / "train" / "samples.beton").read_bytes())
    beton.write_bytes(data)
    assert sum(map(len, listing_of(beton, hold_out=50).samples.values())) == 12
    other = tmp_path / "train_400_0.10_90.ffcv"  # the ending that FFCV's scripts for ImageNet give
    other.write_bytes(data)
    assert sum(map(len, listing_of(other, hold_out=50).samples.values())) == 12
    data[8:16] = struct.pack("<Q", 5)
    beton.write_bytes(data)
    with pytest.raises(DataError, match=r"not a complete \.beton"):
        listing_of(beton, hold_out=50)


# --- choosing ---


def test_layouts_are_named_or_found(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", small_set())
    assert listing_of(tree, layout="imagefolder").samples["train"]
    with pytest.raises(DataError, match=r"does not have the layout parquet.*--layout"):
        listing_of(tree, layout="parquet")
    with pytest.raises(ConfigError, match="layout 'tfds' is unknown; expected auto, ilsvrc"):
        listing_of(tree, layout="tfds")


def test_png_in_a_parquet_is_fixed_as_anywhere(tmp_path: Path) -> None:
    rows = [(0, encoded(picture(n), "PNG")) for n in range(3)] + [(0, b"")]
    for stem in ("train", "validation"):
        parquet(tmp_path / "p" / f"{stem}.parquet", rows)
    folder = converted(tmp_path / "p", tmp_path / "d", on_bad="skip")
    assert folder.split("val").note == ("PNG to JPEG",) * 3 + ("empty file",)
    assert np.asarray(Image.open(io.BytesIO(folder.split("val").read(0)))).shape == (40, 56, 3)


def test_class_folders_that_hold_the_splits_are_refused(tmp_path: Path) -> None:
    """`cat/train/`, `cat/val/`: a random hold-out would validate on training images."""
    files = {f"{c}/{s}/{n}.jpg": photo(f"{c}{s}{n}") for c in ("cat", "dog") for s in ("train", "val") for n in range(4)}
    source = write_tree(tmp_path / "a", files)
    for hold_out in (None, 20):
        with pytest.raises(DataError, match=r"class folders that hold the splits \(train, val\).*--layout classfolders"):
            listing_of(source, hold_out=hold_out)
    assert listing_of(source, layout="classfolders", hold_out=50).samples["val"]
    source = write_tree(tmp_path / "b", files | {"cat/young/0.jpg": photo("young")})
    assert listing_of(source, hold_out=50).samples["val"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("holdout/n01440764/0.jpg", "holdout/ holds the same classes: rename it to val"),
        ("meta/test.txt", r"meta/test\.txt may list the validation images"),
        ("train_test_split.txt", r"train_test_split\.txt may list the validation images"),
    ],
)
def test_possible_val_images_are_named_before_hold_out_is_advised(tmp_path: Path, name: str, message: str) -> None:
    train = {path: data for path, data in small_set().items() if path.startswith("train")}
    source = write_tree(tmp_path / "a", train | {name: photo("x") if name.endswith("jpg") else b"x"})
    with pytest.raises(DataError, match=f"no val/ images; expected both; {message}.*or give --hold-out PERCENT if it "):
        listing_of(source)
    assert listing_of(source, hold_out=50).samples["val"]
    with pytest.raises(DataError, match="add the source that holds them, or give --hold-out PERCENT to hold out"):
        listing_of(write_tree(tmp_path / "b", train | {"val.py": b"", "src/test_data/README.md": b""}))


def test_a_validation_split_of_another_kind_is_named(tmp_path: Path) -> None:
    """A folder beside a tar, a compressed shard among others, and a test split, which needs --val test."""
    files = small_set()
    train = {name.removeprefix("train/"): data for name, data in files.items() if name.startswith("train")}
    write_tree(tmp_path / "a", {name: data for name, data in files.items() if name.startswith("val")})
    tar = write_tar(tmp_path / "a" / "train.tar", train)
    with pytest.raises(DataError, match=r"expected both; name .*a/val too, which looks like validation"):
        listing_of(tar)
    write_tar(tmp_path / "a" / "val.tar", train)
    with pytest.raises(DataError, match=r"name .*a/val\.tar too"):
        listing_of(tar)
    (tmp_path / "w").mkdir()
    write_tar(tmp_path / "w" / "train-0.tar", {f"{n}.{e}": d for n in range(4) for e, d in (("jpg", photo(n)), ("cls", b"1"))})
    (tmp_path / "w" / "val-0.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"expected both; val-0\.tar\.gz is not read: name it too.*or give --hold-out"):
        listing_of(tmp_path / "w")
    assert listing_of(tmp_path / "w", hold_out=50).samples["val"]
    write_tree(tmp_path / "t", {name.replace("val/", "test/"): data for name, data in files.items()})
    with pytest.raises(DataError, match=r"name .*t/test too and give --val test"):
        listing_of(tmp_path / "t" / "train")


def test_shards_of_one_name_in_several_folders(tmp_path: Path) -> None:
    """Parts and samples are numbered from zero in each folder: the folder is added to names that would be equal."""
    for part in range(2):
        for name in ("a", "b"):
            (tmp_path / "w" / f"part{part}").mkdir(parents=True, exist_ok=True)
            files = {f"{n}.{e}": d for n in range(3) for e, d in (("jpg", photo(f"{part}{name}{n}")), ("cls", b"%d" % (n % 2)))}
            write_tar(tmp_path / "w" / f"part{part}" / f"{name}.tar", files)
    folder = converted(tmp_path / "w", tmp_path / "d", hold_out_percent=40)
    stored = {image for split in images_of(folder).values() for _, image in split}
    assert stored == {photo(f"{part}{name}{n}") for part in range(2) for name in ("a", "b") for n in range(3)}
    names = sorted(name for split in folder.splits.values() for name in split.source if "/a/" in name)
    assert names == [
        "0000/a/0.jpg",
        "0000/a/2.jpg",
        "0000/part1/a/0.jpg",
        "0000/part1/a/2.jpg",
        "0001/a/1.jpg",
        "0001/part1/a/1.jpg",
    ]


def test_a_duplicate_image_is_named_with_both_paths(tmp_path: Path) -> None:
    files = small_set()
    source = write_tree(tmp_path / "a", files | {f"a/{name}": data for name, data in files.items()})
    name = "train/n01440764/n01440764_0.JPEG"
    with pytest.raises(
        DataError, match=rf"exists twice, in .*/a/a/{name} and .*/a/{name}; .*or rename one if they are two images"
    ):
        listing_of(source)


def test_a_table_that_describes_the_images_is_skipped(tmp_path: Path) -> None:
    """The metadata.parquet of an ImageFolder on the Hub."""
    for name, files in (
        ("a", small_set()),
        ("b", {name.removeprefix("train/"): data for name, data in small_set(val=0).items()}),
    ):
        root = write_tree(tmp_path / name, files)
        pq.write_table(pa.table({"file_name": list(files), "weight": [1.0] * len(files)}), root / "metadata.parquet")
        listing = listing_of(root, hold_out=None if name == "a" else 40)
        assert sum(map(len, listing.samples.values())) == len(files)
        assert listing.skipped.reasons == {OTHER_FILES: (1, "metadata.parquet")}


@pytest.mark.parametrize("in_struct", [True, False])
def test_parquet_with_views(tmp_path: Path, in_struct: bool) -> None:
    """Arrow's newer type of bytes, which a parquet file may ask to be read as."""
    table = pq.read_table(parquet(tmp_path / "a" / "all.parquet", [(n % 2, photo(n)) for n in range(8)]))
    image = table["image"].combine_chunks()
    data, digests = pc.struct_field(image, "bytes"), set()
    for folder, kind in (("a", pa.binary()), ("b", pa.binary_view())):
        path = tmp_path / folder / "all.parquet"
        path.parent.mkdir(exist_ok=True)
        values = data.cast(kind)
        values = pa.StructArray.from_arrays([values, image.field("path")], ["bytes", "path"]) if in_struct else values
        pq.write_table(table.set_column(0, "image", values), path)
        digests.add(helpers.converted(path, tmp_path / f"{folder}-out", hold_out_percent=50, formats=(), workers=1).digest)
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["a.tar.01", "a.zip.002", "a.z01", "a.tar.gz.part2"])
def test_parts_of_a_split_archive(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"the middle of an archive")
    with pytest.raises(DataError, match=r"\(a part of a split archive\); .*join the parts first"):
        listing_of(tmp_path / name)


def test_splits_in_parquet_columns_and_folders(tmp_path: Path) -> None:
    """A column of splits is named before a hold-out is advised; versions of one dataset in folders give a warning."""
    rows = [(n % 2, photo(n)) for n in range(4)]
    parquet(tmp_path / "a" / "all.parquet", rows)
    table = pq.read_table(tmp_path / "a" / "all.parquet")
    pq.write_table(table.append_column("split", pa.array(["train", "val"] * 2)), tmp_path / "a" / "all.parquet")
    with pytest.raises(DataError, match=r"expected both; the column split of .*all\.parquet may name the validation rows"):
        listing_of(tmp_path / "a")
    held = listing_of(tmp_path / "a", hold_out=50).warnings
    assert any("the column split of" in line and "is not read: write a file for each split" in line for line in held)
    for version in ("160px", "320px"):
        for split in ("train", "validation"):
            parquet(tmp_path / "b" / version / f"{split}.parquet", rows)
    assert any("in 160px, 320px; all are read: name one" in line for line in listing_of(tmp_path / "b").warnings)
    assert not listing_of(tmp_path / "b" / "160px").warnings


def test_ambiguous_trees_give_a_warning(tmp_path: Path) -> None:
    """Classes grouped by letter, folds of one dataset, and one folder under two names."""
    letters = {
        f"{s}/{c[0]}/{c}/{n}.jpg": photo(n) for s in ("train", "val") for c in ("abbey", "alley", "bar") for n in range(2)
    }
    [warning] = listing_of(write_tree(tmp_path / "a", letters)).warnings
    assert "such as a/abbey and a/alley; the outer ones are read as the classes" in warning
    warning, *_ = listing_of(tmp_path / "a" / "train", hold_out=50).warnings
    assert "such as a/abbey and a/alley" in warning
    views = {f"{s}/{c}/{view}/0.jpg": photo(1) for s in ("train", "val") for c in ("cat", "dog") for view in ("left", "right")}
    assert not listing_of(write_tree(tmp_path / "b", views)).warnings
    folds = {f"fold{n}/{s}/{c}/{s}{n}.jpg": photo(n) for n in (1, 2) for s in ("train", "val") for c in ("cat", "dog")}
    [warning] = listing_of(write_tree(tmp_path / "c", folds)).warnings
    assert "holds fold1/train, fold2/train; all are read: name one of them" in warning
    tree = write_tree(tmp_path / "d", small_set())
    (tree / "train" / "tench").symlink_to("n01440764")
    (tree / "val" / "tench").symlink_to("n01440764")
    first, _ = listing_of(tree).warnings
    assert "train/n01440764 and " in first
    assert "train/tench are one folder by links" in first


def test_val_alone_names_the_train_tar_beside_it(tmp_path: Path) -> None:
    files = small_set()
    root = write_tree(
        tmp_path / "a", {name: data for name, data in files.items() if name.startswith("val")} | {"train.py": b""}
    )
    with pytest.raises(DataError, match=r"holds val/ only; expected train/ images too; add the source"):
        listing_of(root)
    tar = write_tar(root / "train.tar", {name: data for name, data in files.items() if name.startswith("train")})
    with pytest.raises(DataError, match=r"holds val/ only, and train\.tar is not read; .*name it, or its train folder, as a"):
        listing_of(root)
    assert listing_of(root, tar).samples["train"]
