"""The teacher folder."""

import json
from pathlib import Path

import pytest
import torch

from udkd.formats.teacher import TeacherFolder, require_classes, write_teacher
from udkd.words.errors import DataError, MismatchError

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


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", "{}", '{"format": 1}', '{"format": 2}'])
def test_a_damaged_description_is_one_line(tmp_path: Path, content: str) -> None:
    make(tmp_path)
    (tmp_path / "teacher.json").write_text(content)
    with pytest.raises(DataError, match=r"teacher\.json") as caught:
        TeacherFolder.open(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"classes": 5}, {"classes": "n01"}, {"architecture": 7}, {"extra": 1}, {"weights_sha256": None}, {"accuracy": 3}]
)
def test_a_field_of_another_kind_is_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    make(tmp_path)
    values = json.loads((tmp_path / "teacher.json").read_text())
    (tmp_path / "teacher.json").write_text(json.dumps(values | change))
    with pytest.raises(DataError, match=next(iter(change))) as caught:
        TeacherFolder.open(tmp_path)
    assert "\n" not in str(caught.value)


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


def test_what_is_no_teacher(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(DataError, match=r"is no teacher \(no teacher.json\); expected a folder made by udkd teacher"):
            TeacherFolder.open(path)


def test_an_error_while_writing_leaves_no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("udkd.formats.teacher.write_json", no_room)
    with pytest.raises(OSError, match="No space"):
        make(tmp_path)
    with pytest.raises(DataError, match="is no teacher"):
        TeacherFolder.open(tmp_path)


def test_classes_are_compared_in_order() -> None:
    require_classes("the teacher", ("a", "b"), ["a", "b"], "take another")
    with pytest.raises(MismatchError, match=r"num_classes: stored 2, wanted 3\); take another"):
        require_classes("the teacher", ["a", "b"], ["a", "b", "c"], "take another")
    with pytest.raises(MismatchError, match="class 1: stored 'c', wanted 'b'"):
        require_classes("the teacher", ["a", "c", "b"], ["a", "b", "c"], "take another")
