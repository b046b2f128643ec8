"""The dataset folder: what is written is read back, and whatever does not match is refused with one line."""

import dataclasses
import gc
import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.small_dataset import CLASSES, SIDE, edit_header, make_dataset, write_canvas
from tests.timeouts import scaled
from udkd.data.dataset import DatasetFolder
from udkd.data.shards import OpenShards, ShardWriter
from udkd.utils.errors import DataError


def test_round_trip(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "d")
    train = folder.split("train")
    assert (folder.side, folder.fit, folder.classes, folder.formats) == (SIDE, "pad", CLASSES, ("shards",))
    assert folder.encoder == {"quality": 95, "subsampling": "4:4:4", "resample": "lanczos"}
    assert train.num_samples == 5
    assert train.ids.tolist() == [0, 1, 3, 4]
    assert train.ids.dtype == np.int64
    assert train.labels.dtype == np.int32
    assert train.sizes.shape == (5, 4)
    for n in train.ids.tolist():
        data = train.read(n)
        assert hashlib.sha256(data).digest() == train.sha256[n].tobytes()
        canvas = train.pixels(n)
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        assert np.array_equal(canvas[: pixels.shape[0], : pixels.shape[1]], pixels)
        assert not canvas[pixels.shape[0] :].any()


def test_same_content_gives_same_bytes_and_digest(tmp_path: Path) -> None:
    first, second, other = make_dataset(tmp_path / "a"), make_dataset(tmp_path / "b"), make_dataset(tmp_path / "c", seed=1)
    assert first.digest == second.digest != other.digest
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path


def test_ids_out_of_range_and_excluded(tmp_path: Path) -> None:
    train = make_dataset(tmp_path / "d").split("train")
    for n in (-1, 5):
        with pytest.raises(DataError, match="expected an id from 0 to 4"):
            train.read(n)
    with pytest.raises(DataError, match=r"train sample 2 \(c/2\.jpg\) is excluded \(truncated\)"):
        train.read(2)


def test_some_samples_at_once_with_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples a shard, two shards open at most: in any order, each sample's bytes, and no file is left open."""
    train = make_dataset(tmp_path / "d").split("train")
    monkeypatch.setattr(OpenShards, "MAX_OPEN", 2)
    assert len(set(train.shard[train.ids].tolist())) == 3
    files = len(os.listdir("/proc/self/fd"))
    for order in (train.ids, train.ids[::-1], np.tile(train.ids[[0, 3, 1, 2]], 3)):
        most = 0
        for n, data in zip(order.tolist(), train.read_many(order), strict=True):
            assert data == train.read(n)
            most = max(most, len(os.listdir("/proc/self/fd")) - files)
        assert most == 2
        assert len(os.listdir("/proc/self/fd")) == files


def test_flipped_cut_and_missing_shards_name_the_sample(tmp_path: Path) -> None:
    train = make_dataset(tmp_path / "d").split("train")
    path = train.shard_path(3)
    intact = path.read_bytes()
    data = bytearray(intact)
    data[int(train.offset[3]) + 7] ^= 16
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train sample 3 \(c/3\.jpg\).*checksum"):
        train.read(3)
    path.write_bytes(intact[:600])
    with pytest.raises(DataError, match=r"sample 3 .*checksum"):
        train.read(3)
    path.unlink()
    with pytest.raises(DataError, match=r"sample 3 .*cannot be read"):
        train.read(3)


def test_folders_that_are_not_datasets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        DatasetFolder.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no dataset\.json"):
        DatasetFolder.open(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        DatasetFolder.open(tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(DataError, match="is not of format"):
        DatasetFolder.open(tmp_path)


def test_headers_that_do_not_match(tmp_path: Path) -> None:
    make_dataset(tmp_path / "d")
    cases: list[tuple[dict[str, object], str]] = [
        ({"version": 1}, "format version 1; expected 2; convert again"),
        ({"format": "other"}, "is not of format"),
        ({"side": 0}, "damaged at 'side'"),
        ({"side": 10**9}, "damaged at 'side'"),
        ({"fit": "crop"}, "damaged at 'fit'"),
        ({"extra": 1}, "damaged at 'extra'"),
        ({"side": SIDE + 1}, "manifests and dataset.json differ"),
        ({"classes": [{"wnid": "n01", "name": "x"}]}, "manifests and dataset.json differ"),
    ]
    for changes, message in cases:
        folder = tmp_path / "e"
        shutil.copytree(tmp_path / "d", folder)
        edit_header(folder, **changes)
        with pytest.raises(DataError, match=message) as caught:
            DatasetFolder.open(folder)
        assert "\n" not in str(caught.value)
        shutil.rmtree(folder)


def test_manifests_that_do_not_match(tmp_path: Path) -> None:
    make_dataset(tmp_path / "d")
    path = tmp_path / "d" / "val" / "manifest.parquet"
    intact = path.read_bytes()
    for n in range(4, len(intact), max(1, len(intact) // 40)):
        data = bytearray(intact)
        data[n] ^= 1
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"as in dataset\.json"):
            DatasetFolder.open(tmp_path / "d")
    path.write_bytes(intact[:-1])
    with pytest.raises(DataError, match="bytes; expected"):
        DatasetFolder.open(tmp_path / "d")
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        DatasetFolder.open(tmp_path / "d")


def test_canvas(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "d")
    train = folder.split("train")
    with pytest.raises(DataError, match="no resident format"):
        train.canvas()
    write_canvas(train)
    assert folder.formats == ("shards",)
    write_canvas(folder.split("val"))
    assert folder.formats == ("shards", "resident")
    canvas, crc = train.canvas()
    assert canvas.shape == (5, SIDE, SIDE, 3)
    assert not canvas[2].any()
    for n in train.ids.tolist():
        assert np.array_equal(canvas[n], train.pixels(n))
        assert zlib.crc32(canvas[n].tobytes()) == crc[n]
    with pytest.raises(ValueError, match="read-only"):
        canvas[0] = 0
    assert not list(tmp_path.rglob("*.tmp"))


def test_canvas_of_other_data_is_refused(tmp_path: Path) -> None:
    train = make_dataset(tmp_path / "d").split("train")
    write_canvas(train)
    other = make_dataset(tmp_path / "other", seed=1).split("train")
    for name in ("canvas.npy", "canvas.json", "canvas.crc32.npy"):
        shutil.copy(train.path / name, other.path / name)
    with pytest.raises(DataError, match="dataset_digest"):
        other.canvas()
    with pytest.raises(DataError, match="shape is"):
        dataclasses.replace(train, side=SIDE - 1).canvas()
    data = train.path / "canvas.npy"
    intact = data.read_bytes()
    data.write_bytes(intact[:-1])
    with pytest.raises(DataError, match="bytes; expected"):
        train.canvas()
    data.write_bytes(intact.replace(b"'fortran_order': False", b"'fortran_order': True ", 1))
    with pytest.raises(DataError, match="another array header"):
        train.canvas()
    data.write_bytes(intact)
    sums = train.path / "canvas.crc32.npy"
    sums.write_bytes(sums.read_bytes()[:-1] + b"\x99")
    with pytest.raises(DataError, match="does not match its checksum"):
        train.canvas()


def test_an_error_while_writing_leaves_no_shard(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ShardWriter(tmp_path, 0) as shard:
            shard.add(0, b"x", 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with ShardWriter(tmp_path, 1):
        pass
    assert list(tmp_path.iterdir()) == []


def test_index_equals_wds2idx(tmp_path: Path) -> None:
    """DALI's script, which ships in its package, writes the same index."""
    if importlib.util.find_spec("wds2idx") is None:
        pytest.skip("DALI is not installed")
    make_dataset(tmp_path / "d")
    for path in sorted((tmp_path / "d").rglob("*.tar")):
        theirs = tmp_path / "theirs.idx"
        subprocess.run(
            [sys.executable, "-m", "wds2idx", str(path), str(theirs)], check=True, capture_output=True, timeout=scaled(60)
        )
        assert theirs.read_bytes() == path.with_suffix(".idx").read_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files to the collector
def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    train = make_dataset(tmp_path / "d").split("train")
    decoded = {
        int(sample["__key__"]): (sample["jpg"], int(sample["cls"]))
        for sample in webdataset.WebDataset([str(path) for path in sorted(train.path.glob("*.tar"))], shardshuffle=False)
    }
    assert decoded == {n: (train.read(n), int(train.labels[n])) for n in train.ids.tolist()}
    gc.collect()
