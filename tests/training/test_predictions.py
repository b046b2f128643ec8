"""The file of predictions: what is written comes back, and nothing damaged, mixed or foreign passes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from tests.report.fake_predictions import fake_predictions, predictions_of
from udkd.training.predictions import Predictions, TeacherPredictions, TopPredictions, read_predictions, write_predictions
from udkd.utils.errors import RunError


def with_targets(classes: int, names: tuple[str, ...] = ("a", "b"), samples: int = 31, teacher: bool = True) -> Predictions:
    labels = np.arange(50, dtype=np.int64) % classes
    predicted = predictions_of(np.random.default_rng(1).normal(0, 3, (50, classes)), labels)
    targets = TeacherPredictions(
        ids=np.arange(50) * 2, labels=labels, predictions=predicted, num_classes=classes, num_views=3, eval_view=False
    )
    return fake_predictions(classes, names, samples=samples, teacher=teacher, targets=targets)


def same(one: TopPredictions | None, other: TopPredictions | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(np.array_equal(value, vars(other)[name]) for name, value in vars(one).items())


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("names", [("only",), ("a", "b"), ("a", "b", "c", "d")])
@pytest.mark.parametrize("teacher", [True, False])
def test_predictions_are_read_back(tmp_path: Path, classes: int, names: tuple[str, ...], teacher: bool) -> None:
    wanted = with_targets(classes, names, teacher=teacher)
    for value in (wanted, replace(wanted, targets=None)):
        path = tmp_path / "predictions.safetensors"
        sha256 = write_predictions(path, value)
        read_back, stored_sha256 = read_predictions(path)
        assert stored_sha256 == sha256
        for name in ("dataset_digest", "step", "num_classes", "names", "teacher_name"):
            assert getattr(read_back, name) == getattr(value, name)
        assert np.array_equal(read_back.ids, value.ids)
        assert np.array_equal(read_back.labels, value.labels)
        classifiers = (*read_back.students, read_back.average, read_back.teacher)
        assert all(same(a, b) for a, b in zip(classifiers, (*value.students, value.average, value.teacher), strict=True))
        assert (read_back.targets is None) == (value.targets is None)
        if read_back.targets is not None and value.targets is not None:
            assert same(read_back.targets.predictions, value.targets.predictions)
            kept = read_back.targets
            assert (kept.num_views, kept.eval_view, kept.num_classes) == (3, False, classes)
            assert np.array_equal(read_back.targets.ids, value.targets.ids)
        data = path.read_bytes()
        assert write_predictions(path, value) == sha256
        assert path.read_bytes() == data, "equal content gives equal bytes"
        assert list(tmp_path.iterdir()) == [path]


def test_its_size_is_as_documented(tmp_path: Path) -> None:
    path = tmp_path / "p"
    write_predictions(path, fake_predictions(100, ("a", "b"), samples=5000))
    assert 48 * 4 * 5000 < path.stat().st_size < 48 * 4 * 5000 + 16 * 5000 + 8000


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "p"
    write_predictions(path, with_targets(3, samples=6))
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    for at in [*range(60), *rng.integers(60, len(data), 250).tolist()]:
        broken = bytearray(data)
        broken[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        message = refusal(path)
        padding = at < start and data[at : at + 1] == b" "
        assert message is not None or padding, f"byte {at} of {len(data)}"
        if message is not None:
            assert "\n" not in message
            assert "run udkd eval" in message


def refusal(path: Path) -> str | None:
    try:
        read_predictions(path)
    except RunError as error:
        return str(error)
    return None


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1, -48])
def test_a_file_cut_short(tmp_path: Path, length: int) -> None:
    path = tmp_path / "p"
    write_predictions(path, with_targets(3))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(RunError, match="run udkd eval again"):
        read_predictions(path)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "p"
    with pytest.raises(RunError, match="is missing; expected what udkd eval writes; run udkd eval"):
        read_predictions(path)
    path.write_bytes(save({"x": np.zeros(3, np.float32)}))
    with pytest.raises(RunError, match="cannot be read"):
        read_predictions(path)
    path.write_bytes(b"\xff" * 64)  # a header of 2^64 - 1 bytes
    with pytest.raises(RunError, match="cannot be read"):
        read_predictions(path)
    write_predictions(path, with_targets(3))
    arrays, facts = load(path.read_bytes()), header(path)
    path.write_bytes(save(arrays, metadata={"udkd": json.dumps(facts | {"format": 2})}))
    with pytest.raises(RunError, match="has format 2; expected 1"):
        read_predictions(path)
    path.write_bytes(save(arrays, metadata={"udkd": json.dumps(facts | {"samples": 1 << 60})}))
    with pytest.raises(RunError, match="holds other arrays than its header says"):
        read_predictions(path)
    path.write_bytes(save(arrays, metadata={"udkd": json.dumps(facts | {"step": 301})}))
    with pytest.raises(RunError, match="is damaged"):
        read_predictions(path)
    path.write_bytes(save(arrays | {"more": np.zeros(1, np.float32)}, metadata={"udkd": json.dumps(facts)}))
    with pytest.raises(RunError, match="holds other arrays"):
        read_predictions(path)


def header(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    text = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["udkd"]
    facts: dict[str, object] = json.loads(text)
    return facts


def test_values_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "p"
    write_predictions(path, with_targets(3))
    before = path.read_bytes()
    broken = with_targets(3)
    broken.average.entropy[4] = np.nan
    with pytest.raises(RunError, match="is not finite"):
        write_predictions(path, broken)
    assert path.read_bytes() == before
