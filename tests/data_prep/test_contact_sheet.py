"""The contact sheet: the choice of images, and that they are the stored ones."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data_prep.helpers import converted, encoded, picture, run, small_set, write_tree
from udkd.data_prep.contact_sheet import ACCENT, CELL, HEAD, MARGIN, choose_ids, write_contact_sheet
from udkd.utils.errors import ConfigError, DataError


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (5, 5), (10, 10), (37, 37), (500, 400)])
def test_images_are_spread_over_classes(count: int, expected: int) -> None:
    labels = np.repeat(np.arange(10), 40)
    ids = choose_ids(labels, np.arange(400), count)
    assert len(ids) == len(set(ids)) == expected
    counts = np.bincount(labels[ids], minlength=10)
    assert np.count_nonzero(counts) == min(10, count)
    assert counts.max() <= -(-count // 10)
    assert ids == sorted(ids)


def test_excluded_ids_and_empty_classes_are_not_chosen() -> None:
    labels = np.array([0, 0, 2, 2, 2])
    assert choose_ids(labels, np.array([1, 3, 4]), 10) == [1, 3, 4]


def test_the_picture_holds_the_stored_images(tmp_path: Path) -> None:
    files = small_set(train=3, val=1) | {
        "train/n01440764/a.JPEG": encoded(picture("a", 60, 60), quality=95),
        "train/n01440764/b.JPEG": encoded(picture("b", 30, 60), "PNG"),
        "train/n01443537/bad.JPEG": b"x",
    }
    folder = converted(write_tree(tmp_path / "t", files), tmp_path / "d", on_bad="skip")
    code, out, err = run("sheet", folder.path, "--out", tmp_path / "s.png", "--images", 8)
    assert (code, out) == (0, f"{tmp_path / 's.png'}: 8 images\n"), err
    drawn = Image.open(tmp_path / "s.png")
    assert drawn.format == "PNG"
    pixels = np.asarray(drawn.convert("RGB")).astype(int)
    top = MARGIN + HEAD
    first = Image.open(io.BytesIO(files["train/n01440764/a.JPEG"])).resize((CELL, CELL), Image.Resampling.LANCZOS)
    assert folder.split("train").source[:2] == ("n01440764/a.JPEG", "n01440764/b.JPEG")
    assert np.abs(pixels[top : top + CELL, MARGIN : MARGIN + CELL] - np.asarray(first)).mean() < 1
    accent = np.array([int(ACCENT[n : n + 2], 16) for n in (1, 3, 5)])
    captions = np.abs(pixels[top + CELL :, :, :] - accent).sum(axis=2).min(axis=0)
    second = MARGIN + CELL + 20
    assert set(np.flatnonzero(captions < 30)) <= set(range(second, second + CELL))  # only the fixed one is labelled so
    assert (captions < 30).any()
    assert write_contact_sheet(folder.path, tmp_path / "v.png", split="val") == 2


def test_errors(tmp_path: Path) -> None:
    folder = converted(write_tree(tmp_path / "t", small_set(train=1, val=1)), tmp_path / "d", formats=())
    with pytest.raises(ConfigError, match="--images is 0; expected 1 to 400"):
        write_contact_sheet(folder.path, tmp_path / "s.png", images=0)
    with pytest.raises(DataError, match="is not a folder; expected one to write"):
        write_contact_sheet(folder.path, tmp_path / "no" / "s.png")
    for taken in (folder.path / "dataset.json", folder.split("train").shard_path(0), folder.path):
        with pytest.raises(DataError, match="exists and is not a PNG"):
            write_contact_sheet(folder.path, taken)
    write_contact_sheet(folder.path, tmp_path / "twice.png")
    write_contact_sheet(folder.path, tmp_path / "twice.png")
    path = folder.split("train").shard_path(0)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match="do not match their checksum"):
        write_contact_sheet(folder.path, tmp_path / "s.png")
    assert not (tmp_path / "s.png").exists()
