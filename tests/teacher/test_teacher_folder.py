"""The teacher folder."""

import json
import os
import random
from pathlib import Path

import pytest
import torch

from udkd.teacher.folder import TeacherFolder, new_teacher, require_classes, write_teacher
from udkd.utils.errors import BusyError, DataError, MismatchError, RunError
from udkd.utils.files import write_bytes

INFO = {
    "architecture": "resnet18",
    "classes": ("n01", "n02"),
    "image_px": 32,
    "resize_px": 36,
    "scheme": "centre",
    "accuracy": {"top1": 50.0, "top5": 90.0},
    "made": {"recipe": {"a": [1]}},
}


def make(path: Path) -> TeacherFolder:
    weights = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3), "t": torch.arange(6.0).view(2, 3).T}
    return write_teacher(path, weights, **INFO)


def test_round_trip(tmp_path: Path) -> None:
    written, read = make(tmp_path / "deep" / "t"), TeacherFolder.open(tmp_path / "deep" / "t")
    assert read == written
    weights = read.weights()
    assert torch.equal(weights["t"], torch.arange(6.0).view(2, 3).T)
    assert weights["n"].item() == 3
    assert make(tmp_path / "again").info.weights_sha256 == read.info.weights_sha256


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", "{}", '{"format": 1}', '{"format": 2}', "[" * 9999, "NaN"])
def test_a_damaged_description_is_one_line(tmp_path: Path, content: str) -> None:
    make(tmp_path)
    (tmp_path / "teacher.json").write_text(content)
    with pytest.raises(DataError, match=r"teacher\.json") as caught:
        TeacherFolder.open(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 5},
        {"classes": "n01"},
        {"classes": ["n01", "n01"]},
        {"classes": []},
        {"architecture": 7},
        {"architecture": ""},
        {"extra": 1},
        {"weights_sha256": None},
        {"weights_sha256": "abc"},
        {"accuracy": 3},
        {"accuracy": {"top1": 101.0}},
        {"accuracy": {"top3": 1.0}},
        {"image_px": -1},
        {"image_px": 10**30},
        {"resize_px": 36.5},
        {"scheme": "upside_down"},
        {"loss": "mse"},
        {"made": None},
        {"made": 3},
    ],
)
def test_a_field_of_another_kind_is_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    make(tmp_path)
    (tmp_path / "teacher.json").write_text(json.dumps(plain_values(tmp_path) | change))
    with pytest.raises(DataError, match=next(iter(change))) as caught:
        TeacherFolder.open(tmp_path)
    assert "\n" not in str(caught.value)


def plain_values(folder: Path) -> dict[str, object]:
    """What is in teacher.json, without its checksum: as earlier versions wrote it."""
    values: dict[str, object] = json.loads((folder / "teacher.json").read_text())
    del values["checksum"]
    return values


def test_a_teacher_of_an_earlier_version_opens(tmp_path: Path) -> None:
    made = make(tmp_path)
    (tmp_path / "teacher.json").write_text(json.dumps(plain_values(tmp_path), indent=2, sort_keys=True) + "\n")
    assert TeacherFolder.open(tmp_path) == made


def test_any_flipped_bit_of_the_description_is_found(tmp_path: Path) -> None:
    make(tmp_path)
    good, rng = (tmp_path / "teacher.json").read_bytes(), random.Random(0)
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << rng.randrange(8)
        (tmp_path / "teacher.json").write_bytes(bad)
        with pytest.raises(DataError, match=r"teacher\.json"):
            TeacherFolder.open(tmp_path)


def test_a_path_that_is_not_utf_8_is_kept(tmp_path: Path) -> None:
    odd = os.fsdecode(b"/data/\xff.pth")
    write_teacher(tmp_path, {"w": torch.zeros(1)}, **INFO | {"made": {"weights": odd}})
    assert TeacherFolder.open(tmp_path).info.made == {"weights": odd}


def test_a_second_maker_is_refused(tmp_path: Path) -> None:
    """Two would mix one's weights with the other's description; a finished teacher is never overwritten."""
    folder = tmp_path / "t"
    with new_teacher(folder), pytest.raises(BusyError, match=f"written by process {os.getpid()}"), new_teacher(folder):
        pass
    assert not folder.exists(), "nothing was written"
    with new_teacher(folder):
        make(folder)
    with pytest.raises(RunError, match="already holds a teacher"), new_teacher(folder):
        pass
    assert (folder / "weights.safetensors").is_file()


def test_a_teacher_that_is_replaced_while_it_is_read(tmp_path: Path) -> None:
    opened = make(tmp_path)
    write_teacher(tmp_path, {"w": torch.ones(2)}, **INFO)
    with pytest.raises(BusyError, match="became another teacher while it was read"):
        opened.weights()


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    teacher = make(tmp_path)
    file = tmp_path / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"has sha256 .*; expected .*; make the teacher again"):
        teacher.weights()
    file.unlink()
    with pytest.raises(DataError, match="is missing"):
        teacher.weights()


def test_paths_that_are_not_teachers(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(DataError, match=r"is not a teacher \(no teacher.json\); expected a folder made by udkd teacher"):
            TeacherFolder.open(path)


def test_an_error_while_writing_leaves_no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(path: Path, data: bytes) -> None:
        if path.name == "teacher.json":
            raise OSError(28, "No space left on device")
        write_bytes(path, data)

    monkeypatch.setattr("udkd.teacher.folder.write_bytes", no_room)
    with pytest.raises(OSError, match="No space"):
        make(tmp_path)
    with pytest.raises(DataError, match="is not a teacher"):
        TeacherFolder.open(tmp_path)


def test_classes_are_compared_in_order() -> None:
    require_classes("the teacher", ("a", "b"), ["a", "b"], "take another")
    with pytest.raises(MismatchError, match=r"take another.* \(num_classes: stored 2, wanted 3\)"):
        require_classes("the teacher", ["a", "b"], ["a", "b", "c"], "take another")
    with pytest.raises(MismatchError, match="class 1: stored 'c', wanted 'b'"):
        require_classes("the teacher", ["a", "c", "b"], ["a", "b", "c"], "take another")
