"""Sources whose samples have several images or labels: the correct one is known, or the user must choose it."""

import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data_prep.helpers import converted, encoded, needs_ffcv, photo, picture, small_set, write_tar, write_tree
from udkd.data_prep.listing import SampleListing, list_samples
from udkd.data_prep.sources import Fields, open_sources
from udkd.utils.errors import ConfigError, DataError

BIG, SMALL = photo("big", 20, 24), photo("small", 8, 8)
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def listing_of(
    *paths: Path, image: str | None = None, label: str | None = None, hold_out: float | None = None
) -> SampleListing:
    sources = open_sources(paths, fields=Fields(image=image, label=label))
    return list_samples(sources, classes="all", hold_out_percent=hold_out)


def classes_of(listing: SampleListing) -> list[str]:
    return [entry.wnid for entry in listing.classes]


def counts(listing: SampleListing) -> list[int]:
    return [len(samples) for samples in listing.samples.values()]


def shards(root: Path, *samples: dict[str, bytes], val: int = 4) -> Path:
    """A WebDataset of samples (file extension to bytes), whose first samples are repeated as val."""
    root.mkdir()
    for split, chosen in (("train", samples), ("val", samples[:val])):
        write_tar(
            root / f"{split}-000000.tar",
            {f"{n:04d}.{end}": data for n, files in enumerate(chosen) for end, data in files.items()},
        )
    return root


# --- WebDataset ---


@pytest.mark.parametrize(
    "endings", [("depth.png", "jpg"), ("jpg", "mask.png"), ("jpg", "thumb.jpg"), ("jpg", "png"), ("a.jpg", "b.jpg")]
)
def test_several_images_of_a_sample_are_named(tmp_path: Path, endings: tuple[str, str]) -> None:
    first, second = endings
    root = shards(tmp_path / "w", *({first: SMALL, second: BIG, "cls": str(n % 3).encode()} for n in range(6)))
    with pytest.raises(DataError, match=rf"sample 0000 has several images: {first}, {second}; .*--image-field NAME"):
        listing_of(root)
    for ending, data in ((first, SMALL), (second, BIG)):
        source = open_sources([root], fields=Fields(image=ending))[0]
        assert {source.read(entry) for entry in source.list().entries} == {data}
    with pytest.raises(DataError, match=r"has no image with a label .*files of samples without an image"):
        listing_of(root, image="webp")


def test_two_files_of_one_ending_are_refused(tmp_path: Path) -> None:
    for n, names in enumerate((("0.jpg", "0.JPG", "0.cls"), ("0.jpg", "0.cls", "0.jpg", "0.cls"))):
        with tarfile.open(tmp_path / f"train-{n}.tar", "w") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                data = b"1" if name.endswith("cls") else BIG
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        with pytest.raises(DataError, match=r"sample 0 has two files \.jpg; expected one"):
            listing_of(tmp_path / f"train-{n}.tar")


@pytest.mark.parametrize("ending", ["JPEG", "Jpg", "PNG"])
def test_upper_case_endings_in_shards(tmp_path: Path, ending: str) -> None:
    data = encoded(picture(1), "PNG") if ending == "PNG" else BIG
    root = shards(tmp_path / "w", *({ending: data, "CLS": str(n % 3).encode()} for n in range(6)))
    assert classes_of(listing_of(root)) == ["0000", "0001", "0002"]
    assert counts(listing_of(root / "train-000000.tar", root / "val-000000.tar")) == [6, 4]


def test_missing_labels_are_not_a_class(tmp_path: Path) -> None:
    labels = [b"-1", b"0", b"1", b"2", b"-1"]
    by_cls = shards(tmp_path / "a", *({"jpg": BIG, "cls": label + b"\n"} for label in labels))
    by_json = shards(tmp_path / "b", *({"jpg": BIG, "json": b'{"label": ' + label + b', "score": NaN}'} for label in labels))
    by_text = shards(tmp_path / "c", *({"jpg": BIG, "json": b'{"label": "' + label + b'"}'} for label in labels))
    by_float = shards(tmp_path / "d", *({"jpg": BIG, "cls": label + b".0"} for label in labels))
    for root in (by_cls, by_json, by_text, by_float):
        listing = listing_of(root)
        assert classes_of(listing) == ["0000", "0001", "0002"]
        assert counts(listing) == [3, 3]
        assert listing.skipped.reasons["samples without a label"][0] == 3


def test_samples_without_a_label_or_an_image_are_counted(tmp_path: Path) -> None:
    intact = [{"jpg": BIG, "cls": b"1"}, {"jpg": BIG, "cls": b"2"}]
    odd = [{"jpg": BIG, "txt": b"a bird"}, {"cls": b"7", "txt": b"x"}, {"jpg": BIG, "json": b"{}"}, {"avif": b"x", "cls": b"1"}]
    listing = listing_of(shards(tmp_path / "w", *intact, *odd, val=2))
    assert classes_of(listing) == ["0001", "0002"]
    assert {reason: count for reason, (count, _) in listing.skipped.reasons.items()} == {
        "samples without a label": 2,
        "files of samples without an image": 3,
        "images with endings that are not read": 1,
    }
    for nothing in ({"jpg": BIG, "json": b"{}"}, {"jpg": BIG, "cls": b"-1"}):
        write_tar(tmp_path / "train-0.tar", {f"0.{end}": data for end, data in nothing.items()})
        with pytest.raises(DataError, match=r"has no image with a label .*1 samples without a label, such as 0\.jpg"):
            listing_of(tmp_path / "train-0.tar")


def test_a_sample_over_two_shards_is_counted(tmp_path: Path) -> None:
    files = {f"{n}.{end}": data for n in range(6) for end, data in (("jpg", BIG), ("cls", b"%d" % (n % 2)))}
    names = list(files)
    (tmp_path / "w").mkdir()
    for shard, chosen in enumerate((names[:7], names[7:])):
        write_tar(tmp_path / "w" / f"train-{shard}.tar", {name: files[name] for name in chosen})
    listing = listing_of(tmp_path / "w", hold_out=50)
    assert sum(counts(listing)) == 5
    assert listing.skipped.reasons == {
        "samples without a label": (1, "3.jpg"),
        "files of samples without an image": (1, "3.cls"),
    }


@pytest.mark.parametrize("text", [b"x" * 1001, b"9" * 19, b'{"label": 1, "label": 2}'])
def test_texts_that_are_not_labels(tmp_path: Path, text: bytes) -> None:
    ending = "json" if text.startswith(b"{") else "cls"
    root = shards(tmp_path / "w", {"jpg": BIG, "cls": b"1"}, {"jpg": BIG, ending: text})
    with pytest.raises(DataError, match="sample 0001 has no label: its"):
        listing_of(root)


@pytest.mark.parametrize("label", [b"-2", b"2147483647", b"4294967295", b"18446744073709551615"])
def test_numbers_that_are_not_classes_are_refused(tmp_path: Path, label: bytes) -> None:
    for n, files in enumerate(({"cls": label}, {"json": b'{"label": ' + label + b"}"})):
        root = shards(tmp_path / f"{n}", {"jpg": BIG, "cls": b"1"}, {"jpg": BIG, **files})
        with pytest.raises(DataError, match=r"sample 0001 has no label: its .* holds the label .*; expected a class number"):
            listing_of(root)


def cifar(n: int) -> dict[str, int]:
    return {"fine_label": n % 6, "coarse_label": n % 6 // 3}


def test_the_user_must_choose_between_labels_that_disagree(tmp_path: Path) -> None:
    """By extension, by key of the JSON, and between the two."""
    by_ending = [{"jpg": BIG, "fine.cls": b"%d" % (n % 6), "coarse.cls": b"%d" % (n % 2)} for n in range(12)]
    with pytest.raises(DataError, match=r"fine\.cls and coarse\.cls; .*--label-field NAME"):
        listing_of(shards(tmp_path / "a", *by_ending))
    assert len(classes_of(listing_of(tmp_path / "a", label="fine.cls"))) == 6
    assert len(classes_of(listing_of(tmp_path / "a", label="coarse.cls"))) == 2
    by_key = [{"jpg": BIG, "json": json.dumps({"label": n % 6, "class": "ab"[n % 2]}).encode()} for n in range(12)]
    with pytest.raises(DataError, match=r"json\.label and json\.class"):
        listing_of(shards(tmp_path / "b", *by_key, val=6))
    assert classes_of(listing_of(tmp_path / "b", label="class")) == ["a", "b"]
    assert len(classes_of(listing_of(tmp_path / "b", label="json.label"))) == 6
    both = [{"jpg": BIG, "cls": b"%d" % (n % 3), "json": b'{"label": %d}' % (n % 4)} for n in range(12)]
    with pytest.raises(DataError, match=r"cls and json\.label"):
        listing_of(shards(tmp_path / "c", *both, val=6))
    other = [{"jpg": BIG, "json": json.dumps(cifar(n)).encode()} for n in range(12)]
    with pytest.raises(DataError, match="has no image with a label"):  # neither is a label's usual key
        listing_of(shards(tmp_path / "d", *other, val=6))
    assert len(classes_of(listing_of(tmp_path / "d", label="fine_label"))) == 6


def test_labels_that_agree_need_no_choice(tmp_path: Path) -> None:
    """As timm writes ImageNet: the number twice, and the name, which two pairs of classes share."""
    names = [f"bird {n}" for n in range(20)] + ["crane", "crane"]
    samples = [
        {"jpg": BIG, "cls": b"%d" % n, "json": json.dumps({"label": n, "class_name": name}).encode()}
        for n, name in enumerate(names)
    ]
    listing = listing_of(shards(tmp_path / "w", *samples, val=22))
    assert classes_of(listing) == [f"{n:04d}" for n in range(22)]


def test_a_list_beside_images_is_not_a_webdataset(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"Labels.json": b"{}"} | small_set())
    assert classes_of(listing_of(tar)) == ["n01440764", "n01443537"]


def test_labels_after_all_images_are_an_error(tmp_path: Path) -> None:
    """As packed by `tar cf a.tar *.jpg *.cls`; webdataset itself reads no samples from it."""
    files = {f"{n}.jpg": BIG for n in range(3)} | {f"{n}.cls": b"1" for n in range(3)}
    with pytest.raises(DataError, match=r"in each sample, the files of a sample one after the other; name"):
        listing_of(write_tar(tmp_path / "train-0.tar", files))


def test_files_that_macos_adds_to_a_shard_are_skipped(tmp_path: Path) -> None:
    files = {
        name: data for n in range(4) for name, data in ((f"._{n}.jpg", b"x"), (f"{n}.jpg", BIG), (f"{n}.cls", b"%d" % (n % 2)))
    }
    listing = listing_of(write_tar(tmp_path / "train-0.tar", files), hold_out=50)
    assert (sum(counts(listing)), listing.skipped.count) == (4, 4)


def test_test_shards_without_labels_do_not_hide_a_webdataset(tmp_path: Path) -> None:
    root = shards(tmp_path / "w", *({"jpg": BIG, "cls": b"%d" % (n % 2)} for n in range(4)))
    write_tar(root / "test-000000.tar", {f"{n}.jpg": BIG for n in range(3)})
    listing = listing_of(root)
    assert (counts(listing), listing.skipped.count) == ([4, 4], 3)


def test_splits_in_the_keys_of_one_tar(tmp_path: Path) -> None:
    files = {
        f"{split}/{n}.{end}": data
        for split, count in (("train", 6), ("val", 4))
        for n in range(count)
        for end, data in (("jpg", BIG), ("cls", b"%d" % (n % 2)))
    }
    assert counts(listing_of(write_tar(tmp_path / "a.tar", files))) == [6, 4]


# --- parquet ---


def table(path: Path, columns: dict[str, object], features: dict[str, object] | None = None) -> Path:
    made = pa.table(columns)
    if features is not None:
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(made, path, row_group_size=3)
    return path


def images(data: bytes, count: int, path: str | None = None) -> pa.Array:
    return pa.array([{"bytes": data, "path": path}] * count, STRUCT)


def test_the_image_column_or_the_chosen_one_is_read(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", {"thumb": images(SMALL, 40), "image": images(BIG, 40), "label": [0, 1] * 20})
    for image, data in ((None, BIG), ("thumb", SMALL), ("image", BIG)):
        source = open_sources([path], fields=Fields(image=image))[0]
        listing = source.list()
        assert {source.read(entry) for entry in listing.entries} == {data}
        assert {entry.size for entry in listing.entries} == {len(data)}
        assert "other columns of images, which are not read" in listing.warnings[0]
    with pytest.raises(DataError, match=r"has no image column 'x', it has thumb, image; .*--image-field"):
        listing_of(path, image="x", hold_out=50)
    path = table(tmp_path / "b.parquet", {"left": images(SMALL, 4), "right": images(BIG, 4), "label": [0, 1] * 2})
    with pytest.raises(DataError, match=r"has several image columns: left, right; .*--image-field NAME"):
        listing_of(path, hold_out=50)


def test_the_user_must_choose_between_label_columns_that_disagree(tmp_path: Path) -> None:
    count = 60
    rows = [cifar(n) for n in range(count)]
    columns = {"img": images(BIG, count)} | {name: [row[name] for row in rows] for name in ("coarse_label", "fine_label")}
    names = {"fine_label": {"names": [f"f{n}" for n in range(6)]}, "coarse_label": {"names": ["fish", "fowl"]}}
    path = table(tmp_path / "a.parquet", columns, names)
    with pytest.raises(DataError, match=r"labels that disagree, fine_label and coarse_label; .*--label-field NAME"):
        listing_of(path, hold_out=50)
    assert classes_of(listing_of(path, label="coarse_label", hold_out=50)) == ["fish", "fowl"]
    assert classes_of(listing_of(path, label="fine_label", hold_out=50)) == [f"f{n}" for n in range(6)]
    agreeing = {
        "image": images(BIG, count),
        "label": [n % 5 for n in range(count)],
        "text_label": [str(n % 5) for n in range(count)],
    }
    assert len(classes_of(listing_of(table(tmp_path / "b.parquet", agreeing), hold_out=50))) == 5
    assert classes_of(
        listing_of(
            table(tmp_path / "c.parquet", {"image": images(BIG, 20), "kind": ["x", "y"] * 10}), label="kind", hold_out=50
        )
    ) == ["x", "y"]


@pytest.mark.parametrize("where", ["train/0.jpg", None])
def test_paths_without_images_are_an_error(tmp_path: Path, where: str | None) -> None:
    rows = [{"bytes": None, "path": where}] * 6
    path = table(tmp_path / "train.parquet", {"image": pa.array(rows, STRUCT), "label": [0, 1] * 3})
    with pytest.raises(DataError, match=r"holds paths.* instead of images: its column image has no bytes, .*embed them"):
        listing_of(path, hold_out=50)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array([0, -1, 1, None] * 10, pa.int64()), ["0000", "0001"]),
        (pa.array([0.0, -1.0, 1.0, float("nan")] * 10), ["0000", "0001"]),
        (pa.array([True, False, None, True] * 10), ["0000", "0001"]),
        (pa.array(["a/b", "", "-1", "c"] * 10), ["a-b", "c"]),
        (pa.array(["x", None, "y", "x"] * 10).dictionary_encode(), ["x", "y"]),
        (pa.array([7, 300, 7, 300] * 10, pa.uint16()), ["0007", "0300"]),
    ],
    ids=["int", "float", "bool", "text", "dictionary", "uint16"],
)
def test_labels_of_every_type(tmp_path: Path, labels: pa.Array, expected: list[str]) -> None:
    path = table(tmp_path / "a.parquet", {"image": images(BIG, 40), "label": labels})
    assert classes_of(listing_of(path, hold_out=50)) == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pa.array([0.5, 1.5] * 2), r"holds the label 0\.5; expected a class number or name"),
        (pa.array([0, 2**32 - 1] * 2), "holds the label 4294967295; expected"),
        (pa.array([0, -100] * 2), "holds the label -100; expected"),
        (pa.array([[0], [1, 2]] * 2), r"has the columns image, label \(lists\); .*one value a row"),
        (pa.array([{"id": 1}, {"id": 2}] * 2), "holds the label {'id': 1}; expected"),
        (pa.array([b"cat", b"dog"] * 2), "holds the label b'cat'; expected"),
    ],
    ids=["fraction", "huge", "negative", "list", "struct", "bytes"],
)
def test_invalid_labels_are_a_one_line_error(tmp_path: Path, labels: pa.Array, message: str) -> None:
    path = table(tmp_path / "a.parquet", {"image": images(BIG, 4), "label": labels})
    with pytest.raises(DataError, match=message):
        listing_of(path, hold_out=50)


def test_invalid_texts_in_parquet_are_a_one_line_error(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"a"]).buffers())
    with pytest.raises(DataError, match=r"cannot be read .*'utf-8' codec"):
        listing_of(table(tmp_path / "a.parquet", {"image": images(BIG, 2), "label": broken}))
    made = pa.table({"image": images(BIG, 8), "label": [0, 1] * 4}).replace_schema_metadata({"huggingface": "[" * 100_000})
    pq.write_table(made, tmp_path / "b.parquet")
    assert classes_of(listing_of(tmp_path / "b.parquet", hold_out=50)) == ["0000", "0001"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())], ids=str)
def test_images_of_every_type_of_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    path = table(tmp_path / "a.parquet", {"image": pa.array([BIG, SMALL] * 8, pa.binary()).cast(kind), "label": [0, 1] * 8})
    source = open_sources([path])[0]
    assert [source.read(entry) for entry in source.list().entries] == [BIG, SMALL] * 8


def test_empty_row_groups_and_columns_of_one_name(tmp_path: Path) -> None:
    made = pa.table({"image": images(BIG, 4), "label": [0, 1] * 2})
    with pq.ParquetWriter(tmp_path / "a.parquet", made.schema) as writer:
        for part in (made[:0], made[:2], made[:0], made[2:], made[:0]):
            writer.write_table(part)
    source = open_sources([tmp_path / "a.parquet"])[0]
    assert [source.read(entry) for entry in source.list().entries] == [BIG] * 4
    doubled = pa.Table.from_arrays([images(BIG, 4), pa.array([0, 1] * 2), pa.array([1, 1] * 2)], ["image", "label", "label"])
    pq.write_table(doubled, tmp_path / "b.parquet")
    with pytest.raises(DataError, match="has several columns label"):
        listing_of(tmp_path / "b.parquet", hold_out=50)


def test_a_test_file_needs_no_labels(tmp_path: Path) -> None:
    for stem in ("train", "validation"):
        table(tmp_path / f"{stem}.parquet", {"image": images(BIG, 4), "label": [0, 1] * 2})
    table(tmp_path / "test.parquet", {"image": images(BIG, 5)})
    listing = listing_of(tmp_path)
    assert (counts(listing), listing.skipped.count) == ([4, 4], 5)
    (tmp_path / "test.parquet").rename(tmp_path / "extra.parquet")
    with pytest.raises(DataError, match="expected an image column"):
        listing_of(tmp_path)


# --- .beton ---


def beton(path: Path, fields: dict[str, str], rows: list[dict[str, object]]) -> Path:
    """Writes FFCV's file format. fields: name to `image`, `int` or `float`; images are JPEG bytes."""
    image = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
    kinds = {"float": (0, np.dtype("<f8")), "int": (1, np.dtype("<i8")), "image": (2, image)}
    table = np.zeros(len(rows), np.dtype([(name, kinds[kind][1]) for name, kind in fields.items()], align=True))
    head = b"".join(struct.pack("<B16s1024s", kinds[kind][0], name.encode(), b"") for name, kind in fields.items())
    start = 24 + len(head) + table.nbytes
    blobs, allocations = b"", b""
    for n, row in enumerate(rows):
        for name in fields:
            value = row[name]
            if isinstance(value, bytes):
                allocations += struct.pack("<QQQ", n, start + len(blobs), len(value))
                table[name][n] = (0, 24, 20, start + len(blobs))
                blobs += value
            else:
                table[name][n] = value
    header = struct.pack("<HHIQQ", 2, len(fields), 4096, len(rows), start + len(blobs))
    path.write_bytes(header + head + table.tobytes() + blobs + allocations)
    return path


def test_the_user_must_choose_between_fields_of_a_beton(tmp_path: Path) -> None:
    rows = [{"index": n, "image": BIG, "score": 0.5, "label": n % 3, "thumb": SMALL} for n in range(12)]
    path = beton(tmp_path / "a.beton", {"index": "int", "image": "image", "label": "int", "thumb": "image"}, rows)
    with pytest.raises(DataError, match=r"has several RGBImageFields: image, thumb; .*--image-field NAME"):
        listing_of(path, hold_out=50)
    with pytest.raises(DataError, match=r"has several IntFields: index, label; .*--label-field NAME"):
        listing_of(path, image="image", hold_out=50)
    with pytest.raises(DataError, match="has no IntField 'image', it has index, label"):
        listing_of(path, image="image", label="image", hold_out=50)
    for image, data in (("image", BIG), ("thumb", SMALL)):
        source = open_sources([path], fields=Fields(image=image, label="label"))[0]
        entries = source.list().entries
        assert {source.read(entry) for entry in entries} == {data}
        assert [entry.class_name for entry in entries] == [f"{n % 3:04d}" for n in range(12)]
    path = beton(tmp_path / "b.beton", {"score": "float", "image": "image", "label": "int"}, rows)
    assert classes_of(listing_of(path, hold_out=50)) == ["0000", "0001", "0002"]


def test_labels_of_a_beton(tmp_path: Path) -> None:
    fields = {"image": "image", "label": "int"}
    path = beton(tmp_path / "a.beton", fields, [{"image": BIG, "label": n % 4 - 1} for n in range(20)])
    listing = listing_of(path, hold_out=50)
    assert (classes_of(listing), sum(counts(listing)), listing.skipped.count) == (["0000", "0001", "0002"], 15, 5)
    for label in (-2, 2**40):
        beton(path, fields, [{"image": BIG, "label": label}])
        with pytest.raises(DataError, match=rf"holds the label {label} at sample 0; expected a class number"):
            listing_of(path, hold_out=50)


def test_fields_of_betons_written_by_ffcv(tmp_path: Path) -> None:
    needs_ffcv()
    from ffcv.fields import BytesField, FloatField, IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    def written(name: str, **more: object) -> Path:
        fields = {"pixels": RGBImageField(write_mode="jpg"), "index": IntField(), "weight": FloatField(), "label": IntField()}
        rows = [(np.asarray(picture(n)), n, 0.5, n % 3, *([np.zeros(4, np.uint8)] * len(more))) for n in range(6)]
        DatasetWriter(str(tmp_path / name), fields | more, num_workers=1).from_indexed_dataset(rows)
        return tmp_path / name

    path = written("train.beton")
    with pytest.raises(DataError, match="has several IntFields: index, label"):
        listing_of(path)
    assert classes_of(listing_of(path, label="label", hold_out=50)) == ["0000", "0001", "0002"]
    with pytest.raises(DataError, match=r"fields of other kinds: .*notes \(BytesField\)"):
        listing_of(written("other.beton", notes=BytesField()))


# --- the options ---


def test_field_options_need_a_source_with_fields(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", small_set())
    with pytest.raises(ConfigError, match=r"--image-field and --label-field choose among the fields of WebDatasets"):
        listing_of(tree, label="label")


def test_a_chosen_field_reaches_the_workers(tmp_path: Path) -> None:
    for stem in ("train", "validation"):
        (tmp_path / "p").mkdir(exist_ok=True)
        columns = {"image": images(SMALL, 4), "large": images(BIG, 4), "label": [0, 1] * 2, "other_label": [0, 0, 1, 1]}
        table(tmp_path / "p" / f"{stem}.parquet", columns)
    folder = converted(tmp_path / "p", tmp_path / "d", image_field="large", label_field="other_label", formats=())
    split = folder.split("train")
    assert [split.read(n) for n in range(4)] == [BIG] * 4
    assert split.labels.tolist() == [0, 0, 1, 1]


def test_labels_in_other_text_files_must_be_chosen(tmp_path: Path) -> None:
    """`.txt` files are usually captions and sometimes labels. Beside class folders such shards are skipped."""
    root = shards(tmp_path / "w", *({"jpg": BIG, "txt": b"%d\n" % (n % 3), "xml": b"x"} for n in range(6)))
    for path in (root, root / "train-000000.tar"):
        with pytest.raises(DataError, match=r"no image with a label .*such as 0000\.jpg.*--label-field"):
            listing_of(path)
    assert classes_of(listing_of(root, label="txt")) == ["0000", "0001", "0002"]
    assert open_sources([root], "webdataset")
    write_tree(root, small_set())
    listing = listing_of(root)
    assert (counts(listing), listing.skipped.count) == ([12, 4], 2)


def test_a_tar_of_class_folders_with_annotations_says_how_to_read_it(tmp_path: Path) -> None:
    files = small_set()
    tar = write_tar(
        tmp_path / "a.tar", {n: d for name in files for n, d in ((name, files[name]), (name[:-5] + ".json", b"{}"))}
    )
    with pytest.raises(DataError, match=r"no image with a label.*or give --layout imagefolder if folders are the classes"):
        listing_of(tar)


@pytest.mark.parametrize("ending", [".TAR", ".Tar"])
def test_upper_case_endings_of_shards_themselves(tmp_path: Path, ending: str) -> None:
    root = shards(tmp_path / "w", *({"jpg": BIG, "cls": str(n % 3).encode()} for n in range(6)))
    (root / "val-000000.tar").rename(root / f"val-000000{ending}")
    assert counts(listing_of(root)) == [6, 4]
