"""Tables of paths and labels, written by csv, json, pyarrow and pandas: the same dataset as the plain folder's."""

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import udkd
from tests.data_prep.helpers import contents, converted, photo, small_set, write_tree
from udkd.data_prep.listing import SampleListing, list_samples
from udkd.data_prep.sources import Fields, open_sources
from udkd.data_prep.sources.source import OTHER_FILES
from udkd.data_prep.sources.table import NO_PATH, REPEATED, Table
from udkd.utils.errors import ConfigError, DataError

FILES = small_set(train=3, val=1)
Rows = Sequence[Sequence[object]]


def write_csv(path: Path, columns: Sequence[str], rows: Rows, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    """With line ends as in RFC 4180, CR LF."""
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows([columns, *rows])
    return path


def write_jsonl(path: Path, columns: Sequence[str], rows: Rows) -> Path:
    path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    return path


def write_parquet(path: Path, columns: Sequence[str], rows: Rows) -> Path:
    pq.write_table(pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))), path, row_group_size=4)
    return path


def pandas_csv(path: Path, columns: Sequence[str], rows: Rows) -> Path:
    """With the index, as pandas writes by default."""
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(rows, columns=columns).to_csv(path)
    return path


WRITERS: dict[str, Callable[[Path, Sequence[str], Rows], Path]] = {
    ".csv": write_csv,
    ".jsonl": write_jsonl,
    ".parquet": write_parquet,
    "-pandas.csv": pandas_csv,
    ".tsv": lambda path, columns, rows: write_csv(path, columns, rows, "\t"),
    "-semicolons.csv": lambda path, columns, rows: write_csv(path, columns, rows, ";", "utf-8-sig"),
    "-excel.csv": lambda path, columns, rows: write_csv(path, columns, rows, "\t", "utf-16"),
}


def listing_of(*paths: Path, images: Path | None = None, hold_out: float | None = None, **fields: str) -> SampleListing:
    opened = open_sources(paths, fields=Fields(**fields), images=images)
    return list_samples(opened, classes="all", hold_out_percent=hold_out)


def dataset_files(folder: Path) -> dict[str, str]:
    return {name: file for name, file in contents(folder).items() if name != "report.json"}


def flat(root: Path, count: int = 12) -> Path:
    return write_tree(root, {f"images/{n:03d}.jpg": photo(n) for n in range(count)})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain")
    return converted(write_tree(root / "tree", FILES), root / "d", formats=()).path


@pytest.mark.parametrize("kind", WRITERS)
def test_a_table_becomes_what_the_folder_becomes(tmp_path: Path, plain: Path, kind: str) -> None:
    """Paths relative to the table, splits in a column, some rows for a second box of an image."""
    write_tree(tmp_path, FILES)
    rows = [[name, name.split("/")[1], name.split("/")[0]] for name in FILES]
    table = WRITERS[kind](tmp_path / f"table{kind}", ["file_path", "wnid", "split"], [*rows[::-1], rows[0]])
    data = converted(table, tmp_path / "d", formats=(), workers=1)
    assert dataset_files(data.path) == dataset_files(plain)


def test_tables_by_split_and_images_elsewhere(tmp_path: Path, plain: Path) -> None:
    """Two tables, with paths relative to --images, or absolute, and class names for labels."""
    write_tree(tmp_path / "set", FILES)
    (tmp_path / "lists").mkdir()
    tables: dict[str, list[Path]] = {}
    for kind, prefix in (("relative", ""), ("absolute", f"{tmp_path}/set/"), ("up", "../set/")):
        tables[kind] = [
            write_csv(
                tmp_path / "lists" / f"{kind}-{split}.csv",
                ["image", "class"],
                [[prefix + name, name.split("/")[1]] for name in FILES if name.startswith(split)],
            )
            for split in ("train", "val")
        ]
    options = {"side": 64, "formats": "none", "workers": 1}
    data = udkd.convert(tables["relative"], tmp_path / "a", images=tmp_path / "set", **options)  # type: ignore[arg-type]
    assert dataset_files(data.path) == dataset_files(plain)
    data = udkd.convert(tables["absolute"], tmp_path / "b", images=str(tmp_path / "set"), **options)  # type: ignore[arg-type]
    assert dataset_files(data.path) == dataset_files(plain)
    assert udkd.convert(tables["up"], tmp_path / "c", **options).digest == data.digest  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"relative-train\.csv, such as train/.*, are not in .*; give --images FOLDER, the"):
        listing_of(*tables["relative"])
    with pytest.raises(DataError, match=r"nowhere is no folder; expected that of the images in the table; check --images"):
        listing_of(*tables["relative"], images=tmp_path / "nowhere")
    (tmp_path / "images.zip").touch()
    with pytest.raises(DataError, match=r"images\.zip is no folder; .*; unpack the archive"):
        listing_of(*tables["relative"], images=tmp_path / "images.zip")
    with pytest.raises(ConfigError, match="--images is the folder of the paths in a table, and no source is one"):
        listing_of(tmp_path / "set", images=tmp_path)


def test_images_beside_tables_in_a_folder(tmp_path: Path) -> None:
    """The folder of the images may be named, too; the folder of both is enough."""
    root = flat(tmp_path / "set")
    tables = [
        write_csv(root / f"{split}.csv", ["path", "label"], [[f"images/{n:03d}.jpg", n % 3] for n in rows])
        for split, rows in (("train", range(9)), ("val", range(9, 12)))
    ]
    write_csv(root / "sample_submission.csv", ["path", "label"], [["images/000.jpg", 7]])
    expected = listing_of(*tables)
    assert [entry.wnid for entry in expected.classes] == ["0000", "0001", "0002"]
    assert [sample.source for sample in expected.samples["val"]] == [f"000{n % 3}/images/{n:03d}.jpg" for n in (9, 10, 11)]
    for sources in ([root], [*tables, root / "images"]):
        listing = listing_of(*sources)
        assert listing.classes == expected.classes
        for split, samples in expected.samples.items():
            found = [(sample.source, sample.label, sample.entry.key) for sample in listing.samples[split]]
            assert found == [(sample.source, sample.label, sample.entry.key) for sample in samples]
    with pytest.raises(DataError, match="already holds val/ images; expected none with --hold-out"):
        listing_of(root, hold_out=30)


def test_kaggles_image_ids_have_no_suffix(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {f"train_images/{n:04d}.{'JPG' if n % 2 else 'png'}": photo(n) for n in range(6)})
    table = write_csv(root / "train.csv", ["Id", "breed"], [[f"{n:04d}", ["pug", "beagle"][n % 2]] for n in range(6)])
    for path in (table, root):
        with pytest.raises(DataError, match=rf"such as 0000, are not in .*; give --images {root}/train_images$"):
            listing_of(path)
    listing = listing_of(table, images=root / "train_images", hold_out=40)
    assert sum(map(len, listing.samples.values())) == 6
    assert {entry.name for entry in listing.classes} == {"pug", "beagle"}
    (root / "train_images" / "0000.jpg").write_bytes(photo(0))
    with pytest.raises(DataError, match=r"train\.csv, line 2 .* may be 0000\.jpg or 0000\.png; expected one"):
        listing_of(table, images=root / "train_images", hold_out=40)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_hugging_faces_imagefolder(tmp_path: Path, name: str) -> None:
    """A metadata file beside flat images, in a folder for each split; class folders come before it."""
    for split, count in (("train", 6), ("validation", 3)):
        folder = write_tree(tmp_path / "set" / split, {f"{n}.jpg": photo(n) for n in range(count)})
        rows = [[f"{n}.jpg", "cat" if n % 3 else "dog", "a text, with a comma"] for n in range(count)]
        WRITERS[Path(name).suffix](folder / name, ["file_name", "label", "text"], rows)
    listing = listing_of(tmp_path / "set")
    assert {split: len(samples) for split, samples in listing.samples.items()} == {"train": 6, "val": 3}
    assert [entry.name for entry in listing.classes] == ["cat", "dog"]
    root = write_tree(tmp_path / "folders", {f"{split}/{c}/1.jpg": photo(1) for split in ("train", "val") for c in ("a", "b")})
    WRITERS[Path(name).suffix](root / name, ["file_name", "label"], [["train/a/1.jpg", "x"], ["val/b/1.jpg", "y"]])
    listing = listing_of(root)
    assert [entry.name for entry in listing.classes] == ["a", "b"]
    assert listing.skipped.reasons == {OTHER_FILES: (1, name)}
    assert any("holds class folders and tables of paths; the folders are read" in line for line in listing.warnings)


def test_splits_in_paths_and_columns(tmp_path: Path) -> None:
    root = write_tree(tmp_path, FILES)
    rows = [[name, name.split("/")[1], fold] for fold, name in enumerate(FILES)]
    listing = listing_of(write_csv(root / "all.csv", ["path", "label", "fold"], rows))
    assert {split: len(samples) for split, samples in listing.samples.items()} == {"train": 6, "val": 2}
    mixed = [[name, "c", "valid" if n else "extra"] for n, name in enumerate(FILES)]
    with pytest.raises(DataError, match=r"has 'extra' in its column data set; expected train, val or test"):
        listing_of(write_csv(root / "all.csv", ["path", "label", "data set"], mixed))
    flat(root)
    folds = [[f"images/{n:03d}.jpg", n % 2, n % 5] for n in range(12)]
    with pytest.raises(DataError, match=r"the column fold of .*all\.csv may name the validation rows, but is not read"):
        listing_of(write_csv(root / "all.csv", ["path", "label", "fold"], folds))


def test_rows_that_are_skipped_and_images_that_are_missing(tmp_path: Path) -> None:
    root = flat(tmp_path)
    rows: list[list[object]] = [[f"images/{n:03d}.jpg", n % 2] for n in range(11)]
    rows += [["images/none.jpg", 0], ["images/011.jpg", ""], ["", 1], ["images/000.jpg", 0], []]
    table = write_csv(root / "a.csv", ["filename", "target"], rows)
    listing = listing_of(table, hold_out=40)
    assert listing.skipped.reasons == {
        "samples without a label": (1, "images/011.jpg"),
        NO_PATH: (1, f"{table}, line 15"),
        REPEATED: (1, "images/000.jpg"),
    }
    data = converted(table, tmp_path / "d", hold_out_percent=40, on_bad="skip", formats=(), workers=1)
    notes = [note for split in data.splits.values() for note in split.note if note]
    assert notes == [f"{root}/images/none.jpg does not exist (line 13 of a.csv)"]


@pytest.mark.timeout(60)
def test_rows_that_name_no_file(tmp_path: Path) -> None:
    """A pipe would block the reader, a device has no end."""
    root = flat(tmp_path)
    os.mkfifo(root / "images" / "pipe.jpg")
    rows: list[list[object]] = [[f"images/{n:03d}.jpg", n % 2] for n in range(11)]
    others = ("images/pipe.jpg", "/dev/zero", "images", "images/a\0b.jpg")
    long = "x" * 300
    table = write_jsonl(root / "a.jsonl", ["path", "label"], [*rows, *([path, 0] for path in others), [long, 0]])
    data = converted(table, tmp_path / "d", hold_out_percent=20, on_bad="skip", formats=(), workers=1)
    notes = [note for split in data.splits.values() for note in split.note if note]
    notes.remove(f"{root}/{long} does not exist (line {len(rows) + len(others) + 1} of a.jsonl)")
    found = {note.partition(" is no file ")[::2] for note in notes}
    assert found == {(str(root / path), f"(line {n} of a.jsonl)") for n, path in enumerate(others, start=12)}


IMAGES = [f"images/{n:03d}.jpg" for n in range(4)]


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (["a", "b"], [["x", "y"]], r"has the columns a, b; expected one of paths .*--image-field NAME and --label-field NAME"),
        ([IMAGES[0], "0"], [[IMAGES[1], "1"]], "has the columns images/000.jpg, 0; .*as its first line, such as: path,label"),
        (["path", "label", "file_path"], [["x", "y", "z"]], r"several path columns: path, file_path; .*--image-field NAME"),
        (["path", "label", "label"], [["x", "y", "z"]], "has two columns label; expected one; rename the other"),
        (["id", "healthy", "rust"], [[0, 1, 0], [1, 0, 1]], r"a column of 0 and 1 for each class \(healthy, rust\)"),
        (["path", "label"], [[IMAGES[0], 0], [IMAGES[1], 1], [IMAGES[0], 1]], "two labels, 0 in .*line 2 and 1 in .*line 4"),
        (
            ["path", "label"],
            [[IMAGES[0], 0], [IMAGES[1], 1], [f"./{IMAGES[0]}", 1]],
            "two labels, 0 in .*line 2 and 1 in .*line 4",
        ),
        (["path", "label", "split"], [[IMAGES[0], 0, "train"], [IMAGES[0], 0, "val"]], "has two splits, train in"),
        (
            ["path", "label", "class_name"],
            [[IMAGES[n], n % 2, n] for n in range(4)],
            "labels that disagree, label and",
        ),
        (["path", "label"], [["https://x.org/1.jpg", 0]], r"a\.csv, line 2 holds the address https://x\.org/1\.jpg"),
        (["path", "label"], [["a.jpg", 0, "x"]], r"has 3 values in line 2 and 2 columns"),
        (["path", "label"], [], "holds no images"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, columns: list[str], rows: Rows, message: str) -> None:
    flat(tmp_path, 4)
    with pytest.raises(DataError, match=message):
        listing_of(write_csv(tmp_path / "a.csv", columns, rows), hold_out=50)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", "path,label\nimages/é.jpg,1\n".encode("latin-1"), r"is not in UTF-8 \(byte 0xe9\).*iconv .* -t UTF-8 a\.csv"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\n\n", "is empty"),
        ("a.csv", b'path,label\n"images/000.jpg,1\n' + b"x" * 200_000, "is damaged at line"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b'{"path": "1.jpg", "label": 1}\n{"path"', r"is damaged at line 2 .*expected a JSON object"),
        ("a.jsonl", b"[1]\n", "holds a list in line 1; expected a JSON object"),
        ("a.jsonl", b'{"path": "1.jpg", "label": [1, 2]}\n', r"line 1 holds the label \[1, 2\]; expected one class"),
        ("a.parquet", b"PAR1", "cannot be read"),
    ],
    ids=range(9),
)
def test_damaged_tables_are_a_one_line_error(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    flat(tmp_path, 2)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        listing_of(tmp_path / name, hold_out=50)
    assert "\n" not in str(caught.value)


def test_columns_are_chosen_by_the_user(tmp_path: Path) -> None:
    root = flat(tmp_path, 4)
    rows = [[IMAGES[n], "zzz", n % 2, "ab"[n % 2], 1] for n in range(4)]
    table = write_csv(root / "a.csv", ["path", "file_path", "label", "kind", "set"], rows)
    listing = listing_of(table, hold_out=50, image="path", label="kind")
    assert [entry.name for entry in listing.classes] == ["a", "b"]
    with pytest.raises(DataError, match=r"a\.csv has no column 'Kind', it has path, file_path, label, kind, set"):
        listing_of(table, hold_out=50, label="Kind")


def test_labels_are_numbers_only_if_all_are(tmp_path: Path) -> None:
    """Names that look like numbers stay names; columns that agree give a warning, and those of wnids come first."""
    root = flat(tmp_path)
    labels = ["7", "7up", "7", "cola/light"]
    table = write_csv(root / "a.csv", ["path", "label"], [[f"images/{n:03d}.jpg", labels[n % 4]] for n in range(12)])
    assert [entry.name for entry in listing_of(table, hold_out=50).classes] == ["7", "7up", "cola-light"]
    rows = [[f"images/{n:03d}.jpg", n % 2, ("n01440764", "n01443537")[n % 2]] for n in range(12)]
    listing = listing_of(write_csv(root / "a.csv", ["path", "label", "wnid"], rows), hold_out=50)
    assert [entry.name for entry in listing.classes] == ["tench", "goldfish"]
    assert any(line.endswith("wnid is read, not label (--label-field chooses)") for line in listing.warnings)


def test_a_path_may_be_relative_to_two_folders(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {f"{folder}/{n}.jpg": photo(n) for folder in (".", "other") for n in range(4)})
    table = write_csv(root / "a.csv", ["path", "label"], [[f"{n}.jpg", n % 2] for n in range(4)])
    with pytest.raises(DataError, match=r"such as 0\.jpg, exist in .* and in .*other; expected one folder; give --images"):
        listing_of(table, root / "other", hold_out=50)
    assert sum(map(len, listing_of(table, images=root / "other", hold_out=50).samples.values())) == 4


def test_test_rows_need_no_labels(tmp_path: Path) -> None:
    root = flat(tmp_path)
    tables = [
        write_csv(root / f"{split}.csv", ["path", "label"], [[f"images/{n:03d}.jpg", n % 2] for n in rows])
        for split, rows in (("train", range(6)), ("val", range(6, 10)))
    ]
    tables.append(write_csv(root / "test.csv", ["path"], [[f"images/{n:03d}.jpg"] for n in (10, 11)]))
    assert listing_of(*tables[:2]).classes == listing_of(root).classes
    with pytest.raises(DataError, match="holds no images"):
        listing_of(tables[2])
    assert not Table(root / "images").files()


@pytest.mark.parametrize("spelling", ["./train/a/1.jpg", "train/a/../a/1.jpg", "train/a/1", "{root}/train/a/1.jpg"])
def test_one_file_in_two_spellings(tmp_path: Path, spelling: str) -> None:
    """It is read once, and two labels or splits of it are refused."""
    root = write_tree(tmp_path / "set", {f"{split}/{c}/1.jpg": photo(1) for split in ("train", "val") for c in ("a", "b")})
    rows = [[f"{split}/{c}/1.jpg", c, split] for split in ("train", "val") for c in ("a", "b")]
    again = spelling.format(root=root)
    columns = ["path", "label", "split"]
    table = tmp_path / "set.csv"
    for label, split, what in (("b", "train", "labels"), ("a", "val", "splits")):
        with pytest.raises(DataError, match=f"1.jpg has two {what}, .* in .*line 2 and .* in .*line 6; expected one"):
            listing_of(write_csv(table, columns, [*rows, [again, label, split]]), images=root)
    listing = listing_of(write_csv(table, columns, [*rows, [again, "a", "train"]]), images=root)
    assert {split: len(samples) for split, samples in listing.samples.items()} == {"train": 2, "val": 2}
    assert {reason: count for reason, (count, _) in listing.skipped.reasons.items()} == {REPEATED: 1}


def test_fastais_column_of_validation_rows(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {f"{n}.jpg": photo(n) for n in range(6)})
    for flags in (("False", "True"), ("0", "1"), ("0.0", "1.0")):
        rows = [[f"{n}.jpg", "cat" if n % 2 else "dog", flags[n > 3]] for n in range(6)]
        listing = listing_of(write_csv(root / "all.csv", ["fname", "label", "is_valid"], rows))
        assert {split: len(samples) for split, samples in listing.samples.items()} == {"train": 4, "val": 2}
    rows[0][2] = "perhaps"
    with pytest.raises(DataError, match="'perhaps' in its column is_valid"):
        listing_of(write_csv(root / "all.csv", ["fname", "label", "is_valid"], rows))


def test_columns_that_mark_a_split_in_a_way_that_is_not_read(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {f"{n}.jpg": photo(n) for n in range(4)})
    rows = [[f"{n}.jpg", n % 2, n // 2] for n in range(4)]
    for column, is_named in (("is_train", True), ("is_training_image", True), ("is_trainable", False)):
        table = write_csv(root / "all.csv", ["path", "label", column], rows)
        expected = [f"{table} has a column {column}, which may name the splits"] if is_named else []
        assert [line.partition(", but")[0] for line in Table(table).list().warnings] == expected


@pytest.mark.parametrize(
    ("labels", "warning"),
    [
        (("0", "cat", "1", "dog"), "numbers and names as labels, such as 0 and cat"),
        (("cat", "dog", "cat|dog", "cat"), "the label 'cat|dog', which joins labels of other images"),
        (("cat", "dog", "dog cat", "cat"), "the label 'dog cat', which joins labels of other images"),
        (("cat", "dog", "nan", "cat"), "the label 'nan', which often stands for no label"),
        (("cat", "dog", "wild cat", "cat, tame"), ""),
        (("0", "1", "10", "1"), ""),
    ],
)
def test_labels_that_may_not_be_classes(tmp_path: Path, labels: Sequence[str], warning: str) -> None:
    root = write_tree(tmp_path, {f"{n}.jpg": photo(n) for n in range(4)})
    table = write_csv(root / "all.csv", ["path", "label"], [[f"{n}.jpg", each] for n, each in enumerate(labels)])
    found = [line for line in Table(table).list().warnings if "class of its own" in line]
    assert len(found) == bool(warning)
    assert all(warning in line for line in found)


def test_images_in_several_folders(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {f"part_{n}/{n}.jpg": photo(n) for n in range(2)})
    table = write_csv(root / "all.csv", ["image_id", "label"], [["0", "cat"], ["1", "dog"]])
    with pytest.raises(DataError, match=r"0 is in .*part_0\): write the folders into the paths"):
        Table(table).list()
