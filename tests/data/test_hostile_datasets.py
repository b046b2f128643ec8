"""Dataset folders with correct checksums and incorrect contents: a one-line error or correct results, never another error."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.data.small_dataset import SIDE, edit_header, make_dataset, write_canvas
from udkd.augment.apply import apply
from udkd.augment.view_table import EpochViews
from udkd.augment.views import ViewSpec, draw_views
from udkd.data import dataset as folder
from udkd.data.backends.folder import FolderBackend
from udkd.data.backends.resident import ResidentBackend
from udkd.data.dataset import DatasetFolder, Split
from udkd.data.header import SplitHeader, content_digest, read_header
from udkd.data.manifest import SCHEMA, read_manifest
from udkd.data_prep.contact_sheet import write_contact_sheet
from udkd.data_prep.info import info_lines
from udkd.data_prep.verify import verify
from udkd.utils.errors import ConfigError, DataError, UserError
from udkd.utils.files import sha256_file
from udkd.utils.progress import SILENT

CPU = torch.device("cpu")
SPECS = (ViewSpec(size_px=16, brightness=0.4), ViewSpec(scheme="centre", size_px=16, resize_px=18))


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = make_dataset(tmp_path_factory.mktemp("complete") / "d")
    for split in dataset.splits.values():
        write_canvas(split)
    return dataset.path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Uncompressed pictures and one thread: quicker for five samples."""
    save, threads = Image.Image.save, torch.get_num_threads()
    monkeypatch.setattr(Image.Image, "save", lambda image, file, kind, **_: save(image, file, kind, compress_level=0))
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def copy(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "d"))


def seal(path: Path) -> None:
    """Make dataset.json agree with the manifests, as an attacker would."""
    values = json.loads((path / "dataset.json").read_text())
    columns = {}
    for name, part in values["splits"].items():
        manifest = path / name / "manifest.parquet"
        part |= {"manifest_bytes": manifest.stat().st_size, "manifest_sha256": sha256_file(manifest)}
        with suppress(DataError, pa.ArrowException):
            part["samples"] = pq.read_metadata(manifest).num_rows
            columns[name] = read_manifest(
                manifest, samples=part["samples"], size_bytes=part["manifest_bytes"], sha256=part["manifest_sha256"]
            )
    edit_header(path, **values)
    with suppress(UserError):
        header = read_header(path)
        digest = content_digest(
            side=header.side, fit=header.fit, encoder=header.encoder, classes=header.classes, splits=columns
        )
        edit_header(path, digest=digest)


def uses(split: Split) -> Iterator[Callable[[], object]]:
    """All that commands do with a split."""
    for spec in SPECS:
        yield lambda spec=spec: _apply_views(spec, split)
    yield lambda: list(FolderBackend(split, CPU, workers=1).epoch(split.ids, 3))
    yield lambda: list(ResidentBackend(split, CPU).epoch(split.ids, 3))


def _apply_views(spec: ViewSpec, split: Split) -> None:
    table = EpochViews(spec, 0, split, CPU).table(0).gather(torch.from_numpy(split.ids))
    if not len(split.ids):
        return  # an epoch of it has no batch
    canvas = torch.full((len(split.ids), SIDE, SIDE, 3), 7, dtype=torch.uint8)
    assert torch.isfinite(apply(canvas, table, spec)).all()


def opening_error(path: Path, out: Path) -> str:
    """Every use of a folder succeeds or fails with one line; returns the line of opening it."""
    try:
        dataset = DatasetFolder.open(path)  # the first step of every use
    except UserError as error:
        return str(error)
    for use in (lambda: verify(path, SILENT), lambda: write_contact_sheet(path, out / "s.png"), lambda: list(info_lines(path))):
        with suppress(UserError):
            use()
    for use in uses(dataset.split("train")) if "train" in dataset.splits else ():
        with suppress(UserError):
            use()
    return ""


HEADER_VALUES = [0, -1, 1, 2, 65_500, 10**30, 1.5, True, None, "", "x", "24", "\0", [], {}, [[]], {"a": 1}, [None]]


@pytest.mark.parametrize(
    "key",
    [
        *(
            "format",
            "version",
            "side",
            "fit",
            "encoder",
            "classes",
            "splits",
            "digest",
            "encoder.quality",
            "encoder.subsampling",
        ),
        *("encoder.resample", "classes.0", "classes.0.wnid", "classes.0.name", "splits.train", "splits.train.samples"),
        *("splits.train.excluded", "splits.train.manifest_bytes", "splits.train.manifest_sha256"),
    ],
)
def test_any_value_in_the_header(copy: Path, tmp_path: Path, key: str) -> None:
    refused = 0
    intact = (copy / "dataset.json").read_text()
    for value in HEADER_VALUES:
        values = json.loads(intact)
        node: Any = values
        *parents, last = key.split(".")
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        node[int(last) if isinstance(node, list) else last] = value
        (copy / "dataset.json").write_text(json.dumps(values))
        message = opening_error(copy, tmp_path)
        assert "\n" not in message
        refused += bool(message)
    assert refused >= len(HEADER_VALUES) - (3 if last == "excluded" else 1)


NUMBERS = (-1, 0, 1, SIDE + 1, 2**30, 2**31 - 1)
LONG = (2**40, 2**63 - 1)
COLUMNS: dict[str, tuple[Any, ...]] = {
    "label": NUMBERS,
    **dict.fromkeys(("source_height", "source_width", "height", "width", "shard"), NUMBERS),
    "offset": (*NUMBERS, *LONG),
    "size": (*NUMBERS, *LONG),
    "crc32c": (0, 1, 2**32 - 1),
    "sha256": (bytes(32), b"\xff" * 32),
    "excluded": (True, False),
    "source": ("", "../../x", "a\nb", "a\0b", "\x1b[2J", "x" * 100_000),
    "note": ("", "a\nb", "\x1b[2J", "\u202e", "x" * 100_000),
}


def replace_column(copy: Path, intact: Path, name: str, column: pa.Array) -> None:
    """Replace one column of the training manifest, with everything else consistent."""
    table = pq.read_table(intact / "train" / "manifest.parquet")
    table = table.set_column(SCHEMA.names.index(name), pa.field(name, column.type), column)
    pq.write_table(table, copy / "train" / "manifest.parquet")
    shutil.copy(intact / "dataset.json", copy)
    seal(copy)


@pytest.mark.parametrize("name", SCHEMA.names)
def test_any_value_in_a_column(copy: Path, tmp_path: Path, intact: Path, name: str) -> None:
    kind = SCHEMA.field(name).type
    values = pq.read_table(intact / "train" / "manifest.parquet").column(name).to_pylist()
    for number, value in enumerate(COLUMNS[name]):
        for rows in ([0], range(5)) if number % 3 == 0 else ([number % 5],):
            column = pa.array([value if row in rows else old for row, old in enumerate(values)], kind)
            replace_column(copy, intact, name, column)
            message = opening_error(copy, tmp_path)
            assert "\n" not in message


@pytest.mark.parametrize("name", SCHEMA.names)
def test_a_column_of_another_kind_or_with_gaps_is_refused(copy: Path, tmp_path: Path, intact: Path, name: str) -> None:
    kind = SCHEMA.field(name).type
    values = pq.read_table(intact / "train" / "manifest.parquet").column(name).to_pylist()
    other = pa.array(["1"] * 5) if kind != pa.string() else pa.array([1] * 5)
    for column in (pa.array([None, *values[1:]], kind), pa.array([None] * 5, kind), other):
        replace_column(copy, intact, name, column)
        assert "manifest.parquet" in opening_error(copy, tmp_path)


def test_names_that_are_not_text(copy: Path, tmp_path: Path, intact: Path) -> None:
    for texts in ([b"\xff\xfe"] * 5, [b"\xe2", b"\x82\xac", b"a", b"b", b"c"]):
        offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
        bad = pa.StringArray.from_buffers(5, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts)))
        replace_column(copy, intact, "source", bad)
        assert "cannot be read" in opening_error(copy, tmp_path)


def test_a_long_text_in_every_row_takes_no_memory(tmp_path: Path, intact: Path) -> None:
    """100 KB in each of 50,000 rows are 5 GB, and a file of some KB."""
    path = tmp_path / "d"
    shutil.copytree(intact, path)
    manifest = path / "train" / "manifest.parquet"
    table = pq.read_table(manifest).take(np.zeros(50_000, np.int64))
    note = pa.DictionaryArray.from_arrays(pa.array(np.zeros(50_000, np.int32)), pa.array(["x" * 100_000]))
    table = table.set_column(SCHEMA.names.index("note"), "note", note)
    pq.write_table(table.replace_schema_metadata(), manifest, store_schema=False)
    seal(path)
    assert "names and notes are too long" in opening_error(path, tmp_path)


def test_a_count_that_no_file_can_hold(intact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_ALWAYS_READ", 1)
    assert DatasetFolder.open(intact).split("train").num_samples == 5
    sums = {"manifest_bytes": 1, "manifest_sha256": "0" * 64}
    for samples, excluded in ((10**8, 0), (10**8, 10**8 - 5)):
        part = SplitHeader(samples=samples, excluded=excluded, **sums)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"lists [\d,]+ samples and [\d,]+ excluded ones, and its files have"):
            folder._check_counts(intact / "train", part, SIDE)


@pytest.mark.parametrize("name", ["dataset.json", "report.json"])
def test_json_that_is_nested_too_deeply(tmp_path: Path, intact: Path, name: str) -> None:
    shutil.copytree(intact, tmp_path / "d")
    (tmp_path / "d" / name).write_text('{"format": ' + "[" * 100_000)
    message = opening_error(tmp_path / "d", tmp_path)
    assert ("is not JSON" in message) == (name == "dataset.json")


def test_one_wnid_for_two_classes(tmp_path: Path, intact: Path) -> None:
    shutil.copytree(intact, tmp_path / "d")
    edit_header(tmp_path / "d", classes=[{"wnid": "n01", "name": "a"}, {"wnid": "n01", "name": "b"}])
    with pytest.raises(DataError, match="two classes have one wnid"):
        DatasetFolder.open(tmp_path / "d")


FILES = [
    *("dataset.json", "report.json", "train/manifest.parquet", "train/samples-00000.tar", "train/samples-00000.idx"),
    *("train/canvas.json", "train/canvas.npy", "train/canvas.crc32.npy"),
]


@pytest.mark.parametrize("file", FILES)
def test_special_files_block_no_reader(copy: Path, tmp_path: Path, intact: Path, file: str) -> None:
    def fifo(path: Path) -> None:
        os.mkfifo(path)

    makers: tuple[Callable[[Path], object], ...] = (
        *(fifo, lambda path: path.mkdir(), lambda path: path.symlink_to("nothing"), lambda path: path.symlink_to(path.name)),
        lambda path: path.symlink_to("/dev/zero"),
    )
    for put in makers:
        (copy / file).unlink(missing_ok=True)
        put(copy / file)
        opening_error(copy, tmp_path)
        try:
            problems = verify(copy, SILENT)
        except DataError as error:
            problems = [str(error)]
        assert any(Path(file).stem in problem for problem in problems), problems
        if (copy / file).is_dir() and not (copy / file).is_symlink():
            (copy / file).rmdir()


def test_a_contact_sheet_takes_memory_for_images_not_canvases(tmp_path: Path, intact: Path) -> None:
    """A canvas of 65,500 px would be 12.9 GB."""
    shutil.copytree(intact, tmp_path / "d")
    edit_header(tmp_path / "d", side=65_500)
    seal(tmp_path / "d")
    assert write_contact_sheet(tmp_path / "d", tmp_path / "s.png") == 4
    huge = DatasetFolder.open(tmp_path / "d").split("train")
    with pytest.raises(ConfigError, match=r"canvases of 51.5 GB at once are more than the .* lower the batch"):
        next(iter(FolderBackend(huge, CPU, workers=1).epoch(huge.ids, 64)))


def test_sources_of_any_size_have_views() -> None:
    sides = (1, 2, 3, 1000, 65_500, 2**20, 2**30)
    sizes = np.array([(h, w, max(1, min(h, s)), max(1, min(w, s))) for h in sides for w in sides for s in (1, 24, 65_500)])
    views = draw_views(ViewSpec(), 0, 0, np.arange(len(sizes)), sizes)
    ends = views.window[:, :2] + views.window[:, 2:]
    assert (views.window >= 0).all()
    assert (ends <= sizes[:, 2:] * 65_536 + 1).all()
    assert (views.bounds[:, 2:] > views.bounds[:, :2]).all()
    assert (views.bounds[:, :2] < sizes[:, 2:] * 65_536).all()
    with pytest.raises(DataError, match=r"an image of 1 x 1,073,741,824 px is too long and thin to be resized to 256 px"):
        draw_views(ViewSpec(scheme="centre"), 0, 0, np.arange(1), np.array([[1, 2**30, 1, 24]]))
