"""samples.beton: readable by FFCV itself, deterministic, and refused if it does not match the dataset."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.data_prep.helpers import ROOT, contents, converted, needs_ffcv, photo, small_set, write_tree
from tests.observers import Notes
from tests.timeouts import scaled
from udkd.data.beton import open_beton
from udkd.data.dataset import DatasetFolder, Split
from udkd.data_prep.class_names import class_names_of
from udkd.data_prep.cli import app
from udkd.data_prep.formats import derive_formats, discard_formats
from udkd.data_prep.formats import ffcv as packer
from udkd.data_prep.listing import list_samples
from udkd.data_prep.sources import open_sources
from udkd.data_prep.verify import verify
from udkd.utils.errors import DataError
from udkd.utils.files import write_json

pytestmark = pytest.mark.timeout(scaled(120))  # FFCV's loader blocks forever if its thread fails


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    """Samples of many sizes, one of them excluded, so that rows of the file and ids differ."""
    files = small_set(train=20) | {
        "train/n01440764/n01440764_10b.JPEG": b"no image",
        "train/n01443537/l.JPEG": photo("l", 60, 64),
    }
    root = tmp_path_factory.mktemp("beton")
    return converted(write_tree(root / "tree", files), root / "data", on_bad="skip", formats=("resident", "ffcv"))


@pytest.fixture
def copy(folder: DatasetFolder, tmp_path: Path) -> DatasetFolder:
    return DatasetFolder.open(Path(shutil.copytree(folder.path, tmp_path / "data")))


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores PyTorch's number of threads, which FFCV changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def beton(split: Split) -> Path:
    return split.path / "samples.beton"


@pytest.mark.usefixtures("threads")
def test_the_reader_of_ffcv_reads_every_sample(folder: DatasetFolder) -> None:
    """FFCV's stock Reader and memory manager return the stored bytes, sizes and labels, in id order."""
    needs_ffcv()
    from ffcv.fields import IntField, RGBImageField
    from ffcv.memory_managers import OSCacheManager
    from ffcv.reader import Reader

    split = folder.split("train")
    assert split.num_samples == len(split.ids) + 1
    reader = Reader(str(beton(split)))
    assert [type(handler) for handler in reader.handlers.values()] == [RGBImageField, IntField]
    assert list(reader.handlers) == ["image", "label"]
    assert reader.num_samples == len(split.ids)
    image, label = (reader.metadata[name] for name in reader.metadata.dtype.names)
    assert np.array_equal(label, split.labels[split.ids])
    assert np.array_equal(np.stack([image["height"], image["width"]], 1), split.sizes[split.ids, 2:])
    manager = OSCacheManager(reader)
    read = manager.compile_reader()
    with manager.schedule_epoch([]) as _:
        for row, sample_id in enumerate(split.ids.tolist()):
            stored = read(image["data_ptr"][row], manager.context.state)
            assert stored.tobytes() == split.read(sample_id)
    assert manager.page_to_samples, "the allocation table is FFCV's too"
    assert sorted(set().union(*manager.page_to_samples.values())) == list(range(len(split.ids)))


@pytest.mark.usefixtures("threads")
def test_the_loader_of_ffcv_reads_every_sample(folder: DatasetFolder) -> None:
    """FFCV's stock Loader and decoder return nearly our pixels (it uses the fast DCT), in order."""
    needs_ffcv()
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    split = folder.split("train")
    pipelines: dict[str, list[Any]] = {"image": [CenterCropRGBImageDecoder((24, 24), 1.0)], "label": [IntDecoder()]}
    loader = Loader(
        str(beton(split)), 8, num_workers=2, order=OrderOption.SEQUENTIAL, drop_last=False, pipelines=pipelines, os_cache=True
    )
    images, labels = zip(*((image.copy(), label[:, 0].copy()) for image, label in loader), strict=True)
    assert np.array_equal(np.concatenate(labels), split.labels[split.ids])
    for got, sample_id in zip(np.concatenate(images), split.ids.tolist(), strict=True):
        _, _, height, width = split.sizes[sample_id].tolist()
        assert abs(got.mean() - centre(split.pixels(sample_id)[:height, :width]).mean()) < 3, split.describe(sample_id)


def centre(image: np.ndarray) -> np.ndarray:
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def test_the_same_bytes_each_time(copy: DatasetFolder, folder: DatasetFolder) -> None:
    observer = Notes()
    for workers in (1, 3):
        derive_formats(copy, ["ffcv"], workers=workers, observer=observer)
        assert contents(copy.path) == contents(folder.path)
    assert verify(copy.path, observer) == []


def packed_by_ffcv(split: Split, path: Path) -> bytes:
    """The same samples through FFCV's own types, fields and MemoryAllocator, in one process."""
    ffcv = needs_ffcv()
    from ffcv.fields import IntField, RGBImageField
    from ffcv.memory_allocator import MemoryAllocator

    fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
    kinds = {handler: number for number, handler in ffcv.types.TYPE_ID_HANDLER.items()}
    described = np.zeros(len(fields), ffcv.types.FieldDescType)
    for descriptor, (name, field) in zip(described, fields.items(), strict=True):
        descriptor["type_id"] = kinds[type(field)]
        descriptor["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
        descriptor["arguments"][:] = field.to_binary()[0]
    table = np.zeros(len(split.ids), ffcv.types.get_metadata_type(list(fields.values())))
    header = np.zeros(1, ffcv.types.HeaderType)
    page = packer._page_bytes(split)
    header["version"], header["num_fields"], header["num_samples"] = ffcv.types.CURRENT_VERSION, len(fields), len(table)
    header["page_size"] = page
    path.write_bytes(header.tobytes() + described.tobytes() + table.tobytes())
    allocator = MemoryAllocator(str(path), path.stat().st_size, page)
    with allocator:
        for row, sample_id in enumerate(split.ids.tolist()):
            allocator.set_current_sample(row)
            jpeg = np.frombuffer(split.read(sample_id), np.uint8)
            pointer, buffer = allocator.malloc(len(jpeg))
            buffer[:] = jpeg
            _, _, height, width = split.sizes[sample_id].tolist()
            table[row] = ((0, width, height, pointer), split.labels[sample_id])
    header["alloc_table_ptr"] = path.stat().st_size
    with open(path, "ab") as file:
        file.write(np.array(allocator.allocations, ffcv.types.ALLOC_TABLE_TYPE).tobytes())
    overwrite(path, 0, header.tobytes() + described.tobytes() + table.tobytes())
    return path.read_bytes()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("page", [None, 1 << 12, 1 << 13])
def test_the_bytes_are_those_of_the_allocator_of_ffcv(
    copy: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int | None
) -> None:
    """With FFCV's least page, and with smaller ones, of which a small dataset fills many."""
    if page is not None:
        monkeypatch.setattr(packer, "SMALL_PAGE", page)
    derive_formats(copy, ["ffcv"], workers=1, observer=Notes())
    for split in copy.splits.values():
        assert beton(split).read_bytes() == packed_by_ffcv(split, tmp_path / "theirs.beton"), split.name


def test_the_bytes_stay_the_same(tmp_path: Path) -> None:
    """Three samples, of which the second is excluded; the digest is that of the file that FFCV's allocator made of them."""
    stored = {0: b"a" * 700, 2: b"b" * ((1 << 21) - 600)}
    split: Any = SimpleNamespace(
        path=tmp_path,
        ids=np.array([0, 2]),
        size=np.array([700, 0, (1 << 21) - 600]),
        sizes=np.array([[9, 8, 7, 6], [0, 0, 0, 0], [5, 4, 3, 2]]),
        labels=np.array([3, 0, 1]),
        read_many=lambda ids: map(stored.get, ids.tolist()),
    )
    data = packer._pack(split, Notes()).read_bytes()
    assert hashlib.sha256(data).hexdigest() == "43fa4de45b893a9030c16b0844dad9bc2370a12caac57cbd6ab7d0dbeee6a579"


def test_samples_that_fill_a_page_exactly() -> None:
    """By hand: pages of 10 bytes from 20. A sample that fits to the last byte stays on its page."""
    sizes = np.array([4, 6, 1, 10, 3, 8])
    pointers, end = packer._pointers(sizes, 20, 10)
    assert pointers.tolist() == [20, 24, 30, 40, 50, 60]
    assert end == 70


def test_ffcv_and_numba_are_not_imported(copy: DatasetFolder) -> None:
    """Neither by writing samples.beton, by opening it, nor by decoding from it."""
    code = """
import sys
from pathlib import Path
import numpy as np, torch
from udkd.data.backends.registry import open_backend
from udkd.data.dataset import DatasetFolder
from udkd.data_prep.formats import derive_formats
from udkd.utils.progress import SILENT
sys.modules |= dict.fromkeys(("ffcv", "numba", "cv2"))  # importing one is an error
data = DatasetFolder.open(Path(sys.argv[1]))
derive_formats(data, ["ffcv"], workers=1, observer=SILENT)
(batch,) = open_backend("ffcv", data.train, torch.device("cpu"), workers=1).epoch(data.train.ids[:4], 4)
assert np.array_equal(batch.canvas[3].numpy(), data.train.pixels(int(batch.ids[3])))
"""
    subprocess.run([sys.executable, "-c", code, str(copy.path)], check=True, cwd=ROOT, timeout=scaled(60))


def test_many_pages(copy: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages far below FFCV's minimum, so that a small dataset fills many: no sample crosses a page boundary."""
    page = 1 << 12
    split = copy.split("train")
    assert split.size.max() <= page
    monkeypatch.setattr(packer, "SMALL_PAGE", page)
    derive_formats(copy, ["ffcv"], workers=1, observer=Notes())
    offset = open_beton(split).offset[split.ids]
    assert len(np.unique(offset // page)) > 5
    assert np.array_equal(offset // page, (offset + split.size[split.ids] - 1) // page)
    data = beton(split).read_bytes()
    assert all(data[o : o + split.size[n]] == split.read(n) for n, o in zip(split.ids.tolist(), offset.tolist(), strict=True))


@pytest.mark.parametrize("largest", [1 << 21, (1 << 21) + 1, (1 << 23) + 5])
def test_a_page_holds_the_largest_sample(folder: DatasetFolder, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    split = folder.split("val")
    monkeypatch.setitem(vars(split), "size", np.array([100, largest]))
    page = packer._page_bytes(split)
    assert largest <= page < 2 * max(largest, 1 << 21)
    assert page & (page - 1) == 0


def test_a_damaged_shard_leaves_no_file(copy: DatasetFolder) -> None:
    split = copy.split("train")
    sample_id = int(split.ids[7])
    with open(split.shard_path(sample_id), "r+b") as file:
        file.seek(int(split.offset[sample_id]) + 40)
        file.write(b"\0\0\0\0")
    discard_formats(copy, ["ffcv"])  # otherwise the existing file stays
    with pytest.raises(DataError, match=f"train sample {sample_id} "):
        derive_formats(copy, ["ffcv"], workers=1, observer=Notes())
    assert not list(split.path.glob("*beton*"))
    with pytest.raises(DataError, match=r"no format ffcv; .*udkd data derive --formats ffcv"):
        open_beton(split)


def overwrite(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (0, b"\3"),  # version
        (2, b"\1"),  # number of fields
        (8, b"\1"),  # number of samples
        (16, b"\0\0\0\0\0\0\0\1"),  # pointer to the allocation table
        (24, b"\xff"),  # type of the first field
        (24, b"\7"),  # not a type of FFCV
        (25, b"\xff"),  # its name
        (26, b"z"),
        (24 + 2 * 1041, b"\1"),  # the first row: its mode
    ],
)
def test_a_damaged_header_is_a_one_line_error(copy: DatasetFolder, at: int, data: bytes) -> None:
    split = copy.split("train")
    overwrite(beton(split), at, data)
    with pytest.raises(DataError, match=r"samples\.beton is damaged .*udkd data derive --formats ffcv") as caught:
        open_beton(split)
    assert "\n" not in str(caught.value)
    assert any("samples.beton" in line for line in verify(copy.path, Notes()))


def test_every_byte_of_the_table_matters(copy: DatasetFolder) -> None:
    """A flipped bit in any row is refused on opening, or points to bytes with another checksum."""
    split = copy.split("train")
    start, row = 24 + 2 * 1041, 24
    intact = beton(split).read_bytes()
    offset = open_beton(split).offset
    for at in range(start + 3 * row, start + 4 * row):
        overwrite(beton(split), at, bytes([intact[at] ^ 4]))
        try:
            stored = open_beton(split).offset
        except DataError:
            stored = None
        moved = stored is not None and not np.array_equal(stored, offset)
        padding = stored is not None and not moved
        assert stored is None or moved or (padding and intact[at] == 0), at
        overwrite(beton(split), at, intact[at : at + 1])
    assert np.array_equal(open_beton(split).offset, offset)


def test_truncated_and_foreign_files_are_refused(copy: DatasetFolder, tmp_path: Path) -> None:
    split = copy.split("train")
    intact = beton(split).read_bytes()
    beton(split).write_bytes(intact[: len(intact) // 2])
    with pytest.raises(DataError, match=r"expected .*truncated or of other data"):
        open_beton(split)
    beton(split).write_bytes(intact)
    open_beton(split)
    description = split.path / "beton.json"
    described = json.loads(description.read_bytes())
    write_json(description, described | {"dataset_digest": "0" * 64})
    with pytest.raises(DataError, match=r"dataset_digest is .*belongs to other data"):
        open_beton(split)
    other = converted(write_tree(tmp_path / "t", small_set(train=21)), tmp_path / "other", formats=("ffcv",)).split("train")
    for name in ("samples.beton", "beton.json"):
        shutil.copy(other.path / name, split.path / name)
    with pytest.raises(DataError, match=r"belongs to other data"):
        open_beton(split)


def test_from_the_command_line(copy: DatasetFolder) -> None:
    for split in copy.splits.values():
        beton(split).unlink()
        (split.path / "beton.json").unlink()
    result = CliRunner().invoke(app, ["derive", str(copy.path), "--formats", "ffcv"])
    assert result.exit_code == 0, result.output
    assert "ffcv" in CliRunner().invoke(app, ["info", str(copy.path)]).output
    assert open_beton(copy.split("val")).offset[copy.split("val").ids].min() > 0


def test_a_beton_is_no_dataset_folder(folder: DatasetFolder, tmp_path: Path) -> None:
    """FFCV's users try to train from the file that they have: its checksums and classes are missing."""
    foreign = Path(shutil.copy(beton(folder.train), tmp_path / "train_400_0.10_90.ffcv"))
    with pytest.raises(DataError, match=rf"{foreign} is not a folder but a file; .* with udkd data convert {foreign} FOLDER"):
        DatasetFolder.open(foreign)


def test_class_names_of_labels(folder: DatasetFolder, tmp_path: Path) -> None:
    """FFCV's files hold numbers only; wnids give a .beton the classes that its images were converted with."""
    for name in ("train", "val"):
        shutil.copy(beton(folder.split(name)), tmp_path / f"{name}.beton")
    sources = open_sources([tmp_path])
    (tmp_path / "names.txt").write_text("".join(f"{entry.wnid}\n" for entry in folder.classes))
    listed = {
        names: list_samples(sources, classes="all", hold_out_percent=None, class_names=class_names)
        for names, class_names in (("file", class_names_of(tmp_path / "names.txt")), ("none", None))
    }
    assert [entry.wnid for entry in listed["none"].classes] == ["0000", "0001"]
    assert listed["file"].classes == folder.classes
    labels = [sample.label for sample in listed["file"].samples["train"]]
    assert labels == folder.train.labels[folder.train.ids].tolist()
