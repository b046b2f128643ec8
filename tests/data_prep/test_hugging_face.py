"""Datasets of Hugging Face's `datasets`, saved to disk or loaded: the same images as in the folder they were made of."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import udkd
from tests.data_prep.helpers import converted, photo, small_set, write_tree
from udkd.data.dataset import DatasetFolder
from udkd.data_prep.convert import ITEMS_NAME
from udkd.data_prep.listing import SampleListing, list_samples
from udkd.data_prep.sources import Fields, open_sources
from udkd.data_prep.sources.parquet_rows import read_row
from udkd.utils.errors import ConfigError, DataError

WNIDS = ("n01440764", "n01443537")
FILES = small_set(train=4, val=2, classes=WNIDS)
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="module")
def datasets() -> Any:
    return pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetFolder]:
    root = tmp_path_factory.mktemp("plain")
    tree = write_tree(root / "tree", FILES)
    return tree, converted(tree, root / "d", formats=())


def listing_of(*paths: Path, hold_out: float | None = None, **fields: str) -> SampleListing:
    return list_samples(open_sources(paths, fields=Fields(**fields)), classes="all", hold_out_percent=hold_out)


def loaded(datasets: Any, tree: Path, split: str, names: tuple[str, ...] = WNIDS) -> Any:
    """The images of a split by their paths, in another order than that of the classes."""
    files = sorted((tree / split).rglob("*.JPEG"), key=lambda path: path.name[::-1])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    labels = [WNIDS.index(path.parent.name) for path in files]
    return datasets.Dataset.from_dict({"image": list(map(str, files)), "label": labels}, features=features)


def both(datasets: Any, tree: Path) -> Any:
    return datasets.DatasetDict(train=loaded(datasets, tree, "train"), validation=loaded(datasets, tree, "val"))


def images_of(folder: DatasetFolder) -> dict[str, list[tuple[str, bytes, bytes]]]:
    """Class, stored bytes and canvas of every image, by split, sorted."""
    return {
        name: sorted(
            (folder.classes[split.labels[n]].wnid, split.read(n), split.pixels(n).tobytes()) for n in split.ids.tolist()
        )
        for name, split in folder.splits.items()
    }


@pytest.mark.parametrize("shards", [1, 3])
def test_saved_to_disk(tmp_path: Path, datasets: Any, plain: tuple[Path, DatasetFolder], shards: int) -> None:
    """A DatasetDict, the folders of its splits, and one .arrow file; several workers map the same files."""
    both(datasets, plain[0]).save_to_disk(tmp_path / "saved", num_shards={"train": shards, "validation": 1})
    data = converted(tmp_path / "saved", tmp_path / "d", formats=(), workers=2)
    assert images_of(data) == images_of(plain[1])
    assert json.loads((data.path / "report.json").read_text())["warnings"] == []
    halves = [tmp_path / "saved" / split for split in ("train", "validation")]
    assert images_of(converted(halves, tmp_path / "e", formats=(), workers=1)) == images_of(plain[1])
    files = sorted(halves[0].glob("*.arrow"))
    assert sum(map(len, listing_of(*files, hold_out=50).samples.values())) == 8


def test_a_selection_is_flattened_when_saved(tmp_path: Path, datasets: Any, plain: tuple[Path, DatasetFolder]) -> None:
    dataset = loaded(datasets, plain[0], "train").shuffle(seed=3).select(range(5))
    dataset.save_to_disk(tmp_path / "five")
    listing = listing_of(tmp_path / "five", hold_out=50)
    assert sum(map(len, listing.samples.values())) == 5
    state = json.loads((tmp_path / "five" / "state.json").read_text())
    (tmp_path / "five" / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(DataError, match=r"holds a selection of rows by indices.*flatten_indices\(\) and save_to_disk again"):
        listing_of(tmp_path / "five", hold_out=50)


@pytest.mark.parametrize("kind", ["DatasetDict", "two", "formatted"])
def test_loaded_objects(tmp_path: Path, datasets: Any, plain: tuple[Path, DatasetFolder], kind: str) -> None:
    """Stored bytes are kept, whatever the format and the transforms."""
    each = both(datasets, plain[0])
    if kind == "formatted":
        each = each.map(lambda row: row).with_transform(lambda rows: 1 / 0)
    options = {"side": 64, "formats": "none", "workers": 1}
    if kind == "two":
        data = udkd.convert(each["train"], tmp_path / "d", val=each["validation"], **options)  # type: ignore[arg-type]
    else:
        data = udkd.convert(each, tmp_path / "d", **options)  # type: ignore[arg-type]
    assert images_of(DatasetFolder.open(data.path)) == images_of(plain[1])
    assert not (data.path / ITEMS_NAME).exists()


def test_selected_and_shuffled_rows_keep_their_order(tmp_path: Path, datasets: Any, plain: tuple[Path, DatasetFolder]) -> None:
    each = loaded(datasets, plain[0], "train").shuffle(seed=1).select([5, 0, 3, 6])
    val = loaded(datasets, plain[0], "val")
    data = udkd.convert(each, tmp_path / "d", val=val, side=96, formats="none", workers=1)
    assert data.train.labels.tolist() == each["label"][:]
    for n, row in enumerate(each):
        assert np.array_equal(np.asarray(row["image"]), np.asarray(Image.open(io.BytesIO(data.train.read(n)))))


def test_columns_splits_and_streams_of_loaded_objects(tmp_path: Path, datasets: Any, plain: tuple[Path, DatasetFolder]) -> None:
    each = both(datasets, plain[0])
    train = each["train"]
    out: dict[str, Any] = {"out": tmp_path / "d", "side": 64, "formats": "none", "workers": 1}
    two = train.add_column("coarse_label", list(range(8)))
    with pytest.raises(DataError, match="the dataset has labels that disagree, label and coarse_label"):
        udkd.convert(two, hold_out=50, **out)
    assert len(udkd.convert(two, hold_out=50, label_field="label", **out).classes) == 2
    out["out"] = tmp_path / "e"
    udkd.convert(train.add_column("split", ["train", "test"] * 4), hold_out=50, **out)
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    assert any("the column split of the dataset may name the splits, but is not read" in line for line in report["warnings"])
    out["out"] = tmp_path / "f"
    refused: tuple[tuple[Any, dict[str, Any], str], ...] = (
        (train.to_iterable_dataset(), {"hold_out": 10}, r"is streamed \(IterableDataset\).*without streaming=True"),
        (
            datasets.DatasetDict(train=train, test=train),
            {},
            r"the splits train, test; expected validation.*val='test'",
        ),
        (datasets.DatasetDict(train=train, extra=train), {}, "the splits train, extra; .*leave out or rename 'extra'"),
        (train, {}, "a Dataset has no splits of its own"),
        (train, {"val": [1]}, "datasets of different kinds"),
        (train, {"hold_out": 10, "layout": "parquet"}, "layout is 'parquet' and source is a Dataset"),
    )
    for source, options, text in refused:
        with pytest.raises(ConfigError, match=text):
            udkd.convert(source, **out, **options)
    with pytest.raises(DataError, match="the dataset has the columns label; expected an image column"):
        udkd.convert(train.remove_columns("image"), hold_out=10, **out)
    assert not (tmp_path / "f").exists()
    data = udkd.convert(datasets.DatasetDict(train=train, test=each["validation"]), val="test", **out)
    assert data.val.num_samples == 4


def rows_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table({"image": pa.array(rows, STRUCT), "label": [n % 2 for n in range(len(rows))]})


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_rows_with_paths_and_no_bytes(tmp_path: Path, suffix: str) -> None:
    """The files are read if they exist, by absolute paths or by those relative to the table."""
    write_tree(tmp_path / "t", {f"{n}.jpg": photo(n) for n in range(8)})
    rows = [{"bytes": None, "path": str(tmp_path / f"t/{n}.jpg") if n % 2 else f"t/{n}.jpg"} for n in range(8)]
    rows += [{"bytes": None, "path": "t/none.jpg"}, {"bytes": photo(9), "path": None}]
    path = write(tmp_path / f"x{suffix}", rows_table(rows))
    data = converted(path, tmp_path / "d", formats=(), hold_out_percent=50, on_bad="skip", workers=1)
    assert sorted(split.read(n) for split in data.splits.values() for n in split.ids.tolist()) == sorted(
        photo(n) for n in (*range(8), 9)
    )
    notes = [note for split in data.splits.values() for note in split.note if note]
    assert notes == ["its row has no bytes, and the file t/none.jpg does not exist"]
    write(path, rows_table([{"bytes": None, "path": f"/nowhere/{n}.jpg"} for n in range(4)]))
    with pytest.raises(DataError, match=r"holds paths \(such as /nowhere/3\.jpg\) instead of images"):
        listing_of(path, hold_out=50)


def write(path: Path, table: pa.Table, stream: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return path
    with path.open("wb") as file, (pa.ipc.new_stream if stream else pa.ipc.new_file)(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return path


def test_files_of_the_cache(tmp_path: Path) -> None:
    """Named after their splits, beside cached results of map, in arrow's two formats."""
    for n, name in enumerate(("set-train-00000-of-00002", "set-train-00001-of-00002", "set-validation", "cache-0123")):
        rows = [{"bytes": photo(10 * n + k), "path": None} for k in range(7)]
        write(tmp_path / "c" / f"{name}.arrow", rows_table(rows), stream=n != 1)
    listing = listing_of(tmp_path / "c")
    assert {split: len(samples) for split, samples in listing.samples.items()} == {"train": 14, "val": 7}
    assert listing.skipped.reasons == {"other files": (1, "cache-0123.arrow")}
    for n in range(2):
        file = tmp_path / "c" / f"set-train-0000{n}-of-00002.arrow"
        assert [read_row(file, k, Fields()) for k in (6, 0, 3)] == [photo(10 * n + k) for k in (6, 0, 3)]


def test_damaged_saved_datasets_are_a_one_line_error(tmp_path: Path) -> None:
    rows = [{"bytes": photo(k), "path": None} for k in range(9)]
    path = write(tmp_path / "s" / "data-0.arrow", rows_table(rows))
    intact = path.read_bytes()
    batch = intact.index(photo(3)) - 200
    for size in (0, 5, 100, batch, len(intact) // 2, len(intact) - 8):
        path.write_bytes(intact[:size])
        with pytest.raises(DataError, match=r"data-0\.arrow cannot be read") as caught:
            listing_of(tmp_path / "s", hold_out=50)
        assert "\n" not in str(caught.value)
    path.write_bytes(intact)
    for name, text, message in (
        ("state.json", '{"_data_files": [{"filename": "data-1.arrow"}]}', r"data-1\.arrow is missing"),
        ("state.json", "{", r"state\.json cannot be read"),
        ("dataset_dict.json", '{"splits": ["train"]}', "train is missing or holds no .arrow file"),
        ("dataset_dict.json", "[]", "names no splits"),
    ):
        (tmp_path / "s" / name).write_text(text)
        with pytest.raises(DataError, match=message):
            listing_of(tmp_path / "s", hold_out=50)
    write(tmp_path / "x.arrow", pa.table({"a": [1]}))
    with pytest.raises(DataError, match="has the columns a; expected an image column"):
        listing_of(tmp_path / "x.arrow")
