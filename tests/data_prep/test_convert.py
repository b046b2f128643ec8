"""Conversion from sources to dataset folders: pixels, policies, reproducibility, resuming."""

import contextlib
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.data_prep.helpers import (
    contents,
    converted,
    encoded,
    photo,
    picture,
    run,
    small_set,
    start,
    write_tar,
    write_tree,
)
from tests.observers import Notes
from tests.timeouts import scaled, wait_until
from udkd.data.dataset import DatasetFolder
from udkd.data_prep import formats
from udkd.data_prep.verify import verify
from udkd.utils.errors import BusyError, ConfigError, DataError, MismatchError
from udkd.utils.files import FolderLock
from udkd.utils.progress import Silent

EVERY = tuple(formats.WRITERS)


def mixed_set() -> dict[str, bytes]:
    """A small dataset with every kind of image that is fixed."""
    return small_set() | {
        "train/n01440764/grey.JPEG": encoded(picture("g", mode="L")),
        "train/n01440764/cmyk.JPEG": encoded(picture("c").convert("CMYK")),
        "train/n01443537/png.JPEG": encoded(picture("p"), "PNG"),
        "train/n01443537/large.JPEG": photo("l", 150, 99),
        "train/n01443537/one.JPEG": photo("o", 1, 1),
    }


BAD = {
    "train/n01440764/a_html.JPEG": b"<html></html>",
    "train/n01440764/b_cut.JPEG": photo("t")[:-100],
    "val/n01443537/empty.JPEG": b"",
}


@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize("side", [16, 64, 101])
def test_pixels_of_all_formats(tmp_path: Path, fit: str, side: int) -> None:
    files = mixed_set()
    folder = converted(write_tree(tmp_path / "t", files), tmp_path / "d", side=side, fit=fit)
    assert (folder.side, folder.fit, folder.formats) == (side, fit, ("shards", "resident"))
    assert [entry.name for entry in folder.classes] == ["tench", "goldfish"]
    for split in folder.splits.values():
        canvas, crc = split.canvas()
        for n in split.ids.tolist():
            source = Image.open(io.BytesIO(files[f"{split.name}/{split.source[n]}"]))
            source_h, source_w, height, width = split.sizes[n].tolist()
            assert (source_h, source_w) == (source.height, source.width)
            stored = np.asarray(Image.open(io.BytesIO(split.read(n))).convert("RGB"))
            assert stored.shape == (height, width, 3)
            assert np.array_equal(canvas[n, :height, :width], stored)
            assert not canvas[n, height:].any()
            assert not canvas[n, :, width:].any()
            assert crc[n] == zlib.crc32(canvas[n].tobytes())
            if fit == "pad" and max(source_h, source_w) <= side and split.note[n] == "":
                assert split.read(n) == files[f"{split.name}/{split.source[n]}"]
            assert folder.classes[split.labels[n]].wnid == split.source[n].split("/")[0]
    assert verify(tmp_path / "d", Silent()) == []
    report = json.loads((tmp_path / "d" / "report.json").read_text())
    assert report["usable"] is True
    assert report["fixed"]["train"] == {"CMYK to YCbCr": 1, "PNG to JPEG": 1}


def test_any_source_and_any_number_of_workers_give_the_same_bytes(tmp_path: Path) -> None:
    files = mixed_set()
    names = sorted(files, key=lambda name: zlib.crc32(name.encode()))
    tree = write_tree(tmp_path / "t", files)
    tars = [write_tar(tmp_path / f"{n}.tar", {name: files[name] for name in names[n::2]}, prefix="p/") for n in range(2)]
    converted(tree, tmp_path / "one", shard_samples=5, formats=EVERY)
    converted(tree, tmp_path / "two", shard_samples=5, formats=EVERY, workers=2)
    converted(tars, tmp_path / "tars", shard_samples=5, formats=EVERY, workers=2)
    first = contents(tmp_path / "one")
    assert len([name for name in first if name.endswith(".tar")]) == 5
    assert first == contents(tmp_path / "two") == contents(tmp_path / "tars")
    assert not [name for name in first if name.endswith((".tmp", ".rows.json")) or "unfinished" in name]


def test_bad_images_fail_by_default(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", small_set() | BAD)
    notes = Notes()
    with pytest.raises(DataError, match=r"3 of 19 images cannot be used.*report\.json.*--on-bad skip"):
        converted(tree, tmp_path / "d", notes)
    assert not (tmp_path / "d" / "dataset.json").exists()
    with pytest.raises(DataError, match=r"no dataset\.json"):
        DatasetFolder.open(tmp_path / "d")
    report = json.loads((tmp_path / "d" / "report.json").read_text())
    assert report["usable"] is False
    assert [bad["source"] for bad in report["bad"]] == [name.split("/", 1)[1] for name in BAD]
    assert [line for line in notes.lines if "empty.JPEG: empty file" in line]
    # The same command with --on-bad skip continues with what was checked; so does a repaired source.
    folder = converted(tree, tmp_path / "d", on_bad="skip")
    assert folder.split("train").excluded.sum() == 2
    assert contents(tmp_path / "d") == contents(converted(tree, tmp_path / "e", on_bad="skip").path)


def test_repaired_images_are_read_again(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", small_set() | BAD)
    with pytest.raises(DataError, match="3 of 19"):
        converted(tree, tmp_path / "d", shard_samples=4)
    write_tree(tree, {name: photo(name) for name in BAD})
    assert not converted(tree, tmp_path / "d", shard_samples=4).split("train").excluded.any()
    assert contents(tmp_path / "d") == contents(converted(tree, tmp_path / "e", shard_samples=4).path)


def test_a_source_that_shrank_leaves_no_shard_behind(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", small_set(train=8) | BAD)
    with pytest.raises(DataError, match="3 of 23"):
        converted(tree, tmp_path / "d", shard_samples=4)
    for name in [*BAD, *(f"train/n01443537/n01443537_{n}.JPEG" for n in range(2, 8))]:
        (tree / name).unlink()
    converted(tree, tmp_path / "d", shard_samples=4)
    assert contents(tmp_path / "d") == contents(converted(tree, tmp_path / "e", shard_samples=4).path)


def test_skipped_images_keep_their_rows_and_are_in_no_order(tmp_path: Path) -> None:
    folder = converted(write_tree(tmp_path / "t", small_set() | BAD), tmp_path / "d", on_bad="skip", shard_samples=4)
    train = folder.split("train")
    assert train.num_samples == 14
    bad = np.flatnonzero(train.excluded).tolist()
    assert [train.source[n] for n in bad] == ["n01440764/a_html.JPEG", "n01440764/b_cut.JPEG"]
    assert not set(bad) & set(train.ids.tolist())
    canvas, _ = train.canvas()
    for n in bad:
        assert "damaged JPEG" in train.note[n] or "not an image" in train.note[n]
        assert not canvas[n].any()
        with pytest.raises(DataError, match="is excluded"):
            train.read(n)
    assert verify(tmp_path / "d", Silent()) == []
    report = json.loads((tmp_path / "d" / "report.json").read_text())
    assert [entry["id"] for entry in report["bad"] if entry["split"] == "train"] == bad


def test_classes_and_splits_without_usable_images(tmp_path: Path) -> None:
    files = small_set() | {"train/aaa/1.jpg": b"x"}
    notes = Notes()
    converted(write_tree(tmp_path / "t", files), tmp_path / "d", notes, on_bad="skip", shard_samples=1)
    assert any("all training images of class aaa are excluded" in line for line in notes.lines)
    assert verify(tmp_path / "d", Silent()) == []
    files = {name: data if name.startswith("train") else b"x" for name, data in small_set().items()}
    with pytest.raises(DataError, match="val has no image left"):
        converted(write_tree(tmp_path / "u", files), tmp_path / "e", on_bad="skip")
    assert not (tmp_path / "e" / "dataset.json").exists()


def test_folders_that_are_refused(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", small_set(train=2, val=1))
    converted(tree, tmp_path / "d")
    with pytest.raises(DataError, match=r"holds a finished dataset.*--overwrite"):
        converted(tree, tmp_path / "d", side=32)
    before = (tmp_path / "d" / "dataset.json").read_bytes()
    assert converted(tree, tmp_path / "d", overwrite=True, side=32).side == 32
    assert (tmp_path / "d" / "dataset.json").read_bytes() != before
    other = write_tree(tmp_path / "other", {"thesis.txt": b"x"})
    for overwrite in (False, True):
        with pytest.raises(DataError, match="holds other files"):
            converted(tree, other, overwrite=overwrite)
    with pytest.raises(DataError, match="is a file"):
        converted(tree, other / "thesis.txt")
    with pytest.raises(ConfigError, match="--side is 0"):
        converted(tree, tmp_path / "new", side=0)
    (tmp_path / "busy").mkdir()
    with FolderLock(tmp_path / "busy"), pytest.raises(BusyError, match="is being written by process"):
        converted(tree, tmp_path / "busy")


def test_repeating_a_finished_conversion(tmp_path: Path) -> None:
    """As after a kill following the last step. Any other settings or sources mean another dataset, which is not overwritten."""
    tree = write_tree(tmp_path / "t", small_set(train=3, val=1))
    folder = converted(tree, tmp_path / "d").path
    before, notes = contents(folder), Notes()
    for workers in (1, 2):
        assert converted(tree, folder, notes, workers=workers, formats=None).path == folder
    assert notes.lines == [f"{folder} is already finished: there is nothing to do"] * 2
    others: list[tuple[Path, dict[str, object]]] = [
        (tree, {"exif": "apply"}),
        (tree, {"on_bad": "skip"}),
        (tree, {"formats": ("dali",)}),
        (write_tree(tmp_path / "more", small_set(train=4, val=1)), {}),
        (write_tree(tmp_path / "named", small_set(train=3, val=1, classes=("n01440764", "n01443538"))), {}),
    ]
    for source, settings in others:
        with pytest.raises(DataError, match="holds a finished dataset"):
            converted(source, folder, **settings)
    (folder / "report.json").write_text("{}")  # as of an earlier version, without settings
    with pytest.raises(DataError, match="holds a finished dataset"):
        converted(tree, folder)
    assert contents(folder) | {"report.json": ""} == before | {"report.json": ""}


def test_a_source_is_never_written_to(tmp_path: Path) -> None:
    """With --overwrite, files in the folder are removed before the first image is read."""
    folder = converted(write_tree(tmp_path / "src", small_set()), tmp_path / "d", formats=()).path
    (tmp_path / "link").symlink_to(folder)
    before = contents(folder)
    for source in (folder, tmp_path / "link", folder / "train" / "samples-00000.tar"):
        for overwrite in (True, False):
            with pytest.raises(DataError, match="is inside"):
                converted(source, folder, overwrite=overwrite, hold_out_percent=20)
    assert contents(folder) == before


def test_overwriting_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the message after a signal promises, the same command resumes."""
    from udkd.data_prep import convert as module

    source = write_tree(tmp_path / "src", small_set(train=12))
    converted(write_tree(tmp_path / "other", small_set(train=3)), tmp_path / "d", shard_samples=4)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_manifests", stop)
        with pytest.raises(KeyboardInterrupt):
            converted(source, tmp_path / "d", shard_samples=4, overwrite=True)
    shards = sorted((tmp_path / "d" / "train").glob("*.tar"))
    times = [path.stat().st_mtime_ns for path in shards]
    assert len(times) == 6
    converted(source, tmp_path / "d", shard_samples=4, overwrite=True)
    assert [path.stat().st_mtime_ns for path in shards] == times
    assert contents(tmp_path / "d") == contents(converted(source, tmp_path / "e", shard_samples=4).path)


def test_overwriting_leaves_nothing_of_the_old_dataset(tmp_path: Path) -> None:
    big, small = write_tree(tmp_path / "big", small_set(train=9)), write_tree(tmp_path / "small", small_set(train=3))
    converted(big, tmp_path / "d", shard_samples=4)
    converted(small, tmp_path / "d", shard_samples=4, overwrite=True, formats=())
    converted(small, tmp_path / "e", shard_samples=4, formats=())
    assert contents(tmp_path / "d") == contents(tmp_path / "e")


def test_the_default_formats(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", small_set(train=2, val=1))
    assert converted(tree, tmp_path / "a", side=257).formats == ("shards",)
    assert converted(tree, tmp_path / "b", side=257, fit="squash").formats == ("shards", "resident")
    assert converted(tree, tmp_path / "c", formats=()).formats == ("shards",)


def test_resident_is_refused_where_the_disk_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = write_tree(tmp_path / "t", small_set(train=2, val=1))
    usage = shutil.disk_usage(tmp_path)._replace(free=6 * 64 * 64 * 3 - 1)
    monkeypatch.setattr(formats.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="the resident format takes"):
        converted(tree, tmp_path / "d")
    assert not (tmp_path / "d").exists()
    folder = converted(tree, tmp_path / "d", formats=())
    with pytest.raises(DataError, match="the resident format takes"):
        formats.derive_formats(folder, ["resident"], workers=1, observer=Silent())


def test_a_format_that_does_not_fit_leaves_existing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space of the old files counts as free; if it does not suffice, they stay."""
    folder = converted(write_tree(tmp_path / "t", small_set()), tmp_path / "d", formats=("resident",))
    size = sum(path.stat().st_size for path in folder.path.rglob("canvas*.npy"))
    before = contents(folder.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match="expected enough free space"):
        formats.derive_formats(folder, ["resident", "dali"], workers=1, observer=Silent())
    assert contents(folder.path) == before
    assert size > 1000
    formats.derive_formats(folder, ["resident"], workers=1, observer=Silent())
    assert contents(folder.path) == before


def test_a_damaged_shard_leaves_existing_formats(tmp_path: Path) -> None:
    folder = converted(write_tree(tmp_path / "t", small_set()), tmp_path / "d", formats=EVERY)
    path = folder.split("val").shard_path(0)
    data = bytearray(path.read_bytes())
    data[700] ^= 1  # within the first JPEG
    path.write_bytes(data)
    before = contents(folder.path)
    for name in EVERY:
        with pytest.raises(DataError, match="val sample 0 "):
            formats.derive_formats(folder, [name], workers=1, observer=Silent())
    assert contents(folder.path) == before


def test_verify_finds_any_flipped_byte(tmp_path: Path) -> None:
    """UDKD_LONG_TESTS=1 tests four times as many bytes."""
    converted(write_tree(tmp_path / "t", small_set(train=3, val=1)), tmp_path / "d", side=32, shard_samples=4, formats=EVERY)
    rng = np.random.default_rng(0)
    count = 12 if os.environ.get("UDKD_LONG_TESTS") else 3
    for path in sorted((tmp_path / "d").rglob("*")):
        if not path.is_file() or path.name == ".lock":
            continue
        intact = path.read_bytes()
        for at in {0, len(intact) - 1, *rng.integers(0, len(intact), count).tolist()}:
            data = bytearray(intact)
            data[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(data)
            try:
                detected = bool(verify(tmp_path / "d", Silent()))
            except DataError:
                detected = True
            assert detected, f"{path} at {at}"
        path.write_bytes(intact[:-1])
        with contextlib.suppress(DataError):
            assert verify(tmp_path / "d", Silent()), f"{path}, cut by a byte"
        path.write_bytes(intact)
    assert verify(tmp_path / "d", Silent()) == []
    (tmp_path / "d" / "train" / "samples-00007.tar").write_bytes(b"")
    assert "belongs to no sample" in verify(tmp_path / "d", Silent())[0]


def has_started(process: subprocess.Popen[str], folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern)) or process.poll() is not None


def test_killed_conversions_continue_to_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL at several stages. An unfinished folder cannot be opened."""
    files = {f"train/c{n % 3}/{n}.jpg": photo(n % 50, 60, 80) for n in range(1300)} | {
        f"val/c{n}/v.jpg": photo(n) for n in range(3)
    }
    tree = write_tar(tmp_path / "t.tar", files)
    options = ("--side", 64, "--formats", "resident,dali", "--workers")
    assert run("convert", tree, tmp_path / "complete", *options, 1)[0] == 0
    intact = contents(tmp_path / "complete")
    for pattern, workers in (("samples-00000.rows.json", 2), ("canvas.npy*", 1), ("samples-*.tfrecord*", 1)):
        process = start("convert", tree, tmp_path / "d", *options, workers)
        assert wait_until(partial(has_started, process, tmp_path / "d" / "train", pattern), every_s=0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=scaled(20))
        if (tmp_path / "d" / "dataset.json").exists():  # it finished before the kill: everything is there
            assert verify(tmp_path / "d", Silent()) == []
            break
        with pytest.raises(DataError):
            DatasetFolder.open(tmp_path / "d")
    if (tmp_path / "d" / "unfinished.json").exists():
        with pytest.raises(MismatchError, match="--side: stored 64, wanted 32"):
            converted(tree, tmp_path / "d", side=32)
        assert run("convert", tree, tmp_path / "d", *options, 2)[0] == 0
    assert contents(tmp_path / "d") == intact


def test_finished_shards_are_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = write_tree(tmp_path / "t", small_set(train=6, val=1))
    from udkd.data_prep import convert as module

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "x")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_manifests", full)
        with pytest.raises(OSError, match="No space left"):
            converted(tree, tmp_path / "d", shard_samples=4)
    shards = sorted((tmp_path / "d" / "train").glob("*.tar"))
    times = [path.stat().st_mtime_ns for path in shards]
    assert len(times) == 3
    (tmp_path / "d" / "train" / "samples-00001.tar").unlink()
    converted(tree, tmp_path / "d", shard_samples=4)
    again = [path.stat().st_mtime_ns for path in shards]
    assert [old == new for old, new in zip(times, again, strict=True)] == [True, False, True]
    assert contents(tmp_path / "d") == contents(converted(tree, tmp_path / "e", shard_samples=4).path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files to the collector
def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    train = converted(write_tree(tmp_path / "t", mixed_set()), tmp_path / "d", shard_samples=4).split("train")
    urls = [str(path) for path in sorted(train.path.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [int(sample["__key__"]) for sample in samples] == train.ids.tolist()
    for n, sample in enumerate(samples):
        assert sample["cls"] == train.labels[n]
        assert np.array_equal(sample["jpg"], train.pixels(n)[: train.sizes[n, 2], : train.sizes[n, 3]])
    del samples
    gc.collect()
