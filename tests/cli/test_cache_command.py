"""udkd cache build, info, verify, as a user runs them."""

import contextlib
import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.commands import Result, inside, set_options
from tests.teacher.cache_fixtures import make_dataset, make_teacher, run
from udkd.config.loading import load_recipe
from udkd.data.backends.registry import open_backend
from udkd.data.dataset import DatasetFolder
from udkd.teacher.cache.verify import compare_with_teacher
from udkd.teacher.cache.view_file import ViewFile, block_checksum, view_path
from udkd.teacher.ensemble import TeacherEnsemble
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.predict import predict_blocks
from udkd.utils.errors import CacheError, ConfigError, MismatchError

SETTINGS = ["--device", "cpu", "--backend", "folder"]
SETTINGS += set_options(
    "views.size_px=32",
    "views.resize_px=36",
    "evaluation.resize_px=36",
    "teacher.batch_size=16",
    "train.threads=1",
)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    return inside(capsys, "cache", *arguments)


def test_build_info_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, teacher, cache = make_dataset(tmp_path / "data").path, make_teacher(tmp_path / "teacher").path, tmp_path / "cache"
    build = ("build", "smoke", "--data", data, "--teacher", teacher, "--out", cache)
    code, out, err = call(capsys, *build, "--views", 2, *SETTINGS)
    assert code == 0, err
    assert "mean weight" in out
    assert "mean entropy" in out
    assert "top-1" in out
    assert "predicted 130 images" in err
    code, _, err = call(capsys, *build, "--views", 1, *SETTINGS)
    assert (code, "nothing to do" in err) == (0, True)

    code, out, err = call(capsys, "info", cache, "--data", data, "--picture", tmp_path / "pictures" / "weights.png")
    assert code == 0, err
    assert "top-5" in out
    assert "2 (views, random_resized, 32 px" in out
    with Image.open(tmp_path / "pictures" / "weights.png") as image:
        assert image.width > 500
    assert call(capsys, "verify", cache)[:2] == (0, "2 views, 0.0 MB: all checksums match\n")

    code, _, err = call(capsys, *build, "--views", "eval", *SETTINGS)
    assert code == 1
    assert err.splitlines()[-1].startswith("error: the cache in")
    assert "policy: stored 'views', wanted 'canonical'" in err

    path = view_path(cache, 1)
    content = bytearray(path.read_bytes())
    content[-200] ^= 4
    path.write_bytes(content)
    code, _, err = call(capsys, "verify", cache)
    assert code == 1
    assert "view 1: block" in err
    assert "1 damaged blocks in views 1" in err


def test_verify_recomputes_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, teacher, cache = make_dataset(tmp_path / "data").path, make_teacher(tmp_path / "teacher").path, tmp_path / "cache"
    build = ("build", "smoke", "--data", data, "--teacher", teacher, "--out", cache)
    assert call(capsys, *build, "--views", 2, "--top-k", 3, *SETTINGS)[0] == 0
    again = ("verify", cache, "--data", data, "--teacher", teacher, "--device", "cpu", "--backend", "folder")
    code, out, err = call(capsys, *again, "--recompute", "20%")
    assert code == 0, err
    assert "26 of 130 pairs recomputed" in out
    assert "(bound 2.50e-04)" in " ".join(out.split())
    assert "(bound 2.00e-04)" in " ".join(out.split())

    (cache / "view-1.udkd").write_bytes(b"")
    code, _, err = call(capsys, "verify", cache)
    assert (code, "view-1.udkd is not part of a cache" in err) == (1, True)
    (cache / "view-1.udkd").unlink()
    for view in (0, 1):  # the last one too
        kept = view_path(cache, view).rename(tmp_path / "kept")
        code, _, err = call(capsys, "verify", cache)
        assert (code, f"view {view} is missing" in err) == (1, True)
        assert f"views {view}: they were built and are missing now" in call(capsys, "info", cache)[1]
        kept.rename(view_path(cache, view))

    other = make_teacher(tmp_path / "other", seed=1).path
    code, _, err = call(capsys, *again[:4], "--teacher", other, "--device", "cpu", "--recompute", "3")
    assert (code, "teacher_sha256" in err) == (1, True)
    # Complete, with correct checksums, but not the teacher's predictions: the entropy of one row is another's.
    file = ViewFile(view_path(cache, 1))
    rows = {name: array.copy() for name, array in file.arrays.items()}
    rows["entropy"][[1, 2]] = rows["entropy"][[2, 1]]
    rewrite(view_path(cache, 1), rows)
    code, out, err = call(capsys, *again, "--recompute", "100%")
    assert "all checksums match" in out
    assert code == 1
    assert "of view 1 is beyond the bound" in err
    for bad in ("0", "x", "200%", "-1"):
        assert call(capsys, *again, "--recompute", bad)[0] == 1
    assert "--recompute needs the data and the teacher" in call(capsys, "verify", cache, "--recompute", "1%")[2]


def test_an_impossible_key_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    """Thousands of threads would end the process, as would a batch that does not fit in memory."""
    dataset, teacher = make_dataset(tmp_path / "data"), make_teacher(tmp_path / "teacher")
    cache = run(tmp_path / "cache", dataset, teacher)

    def recompute(**key: object) -> None:
        changed = dataclasses.replace(cache, key=dataclasses.replace(cache.key, **key))  # type: ignore[arg-type]
        compare_with_teacher(
            changed, dataset=dataset, teachers=[teacher], count=3, seed=0, device=torch.device("cpu"), backend="folder"
        )

    with pytest.raises(CacheError, match=r"was built with 60000 threads in batches of \d+ images of 32 px"):
        recompute(threads=60_000)
    with pytest.raises(CacheError, match=r"teacher\.batch_size is 2147483647; .* no recipe leads to such a cache"):
        recompute(teacher_batch=2**31 - 1)
    for views in ({"scale": [-1.0, 5.0]}, {"ratio": [0, 0]}, {"size_px": -3}, {"size_px": "32"}, {"scheme": "spiral"}):
        with pytest.raises(CacheError, match="no recipe leads to such a cache"):
            recompute(views=cache.key.views | views)
    with pytest.raises(MismatchError, match="num_classes"):
        recompute(num_classes=10**9)
    recompute()


def test_impossible_numbers_of_views_are_refused(tmp_path: Path) -> None:
    dataset, teacher = make_dataset(tmp_path / "data"), make_teacher(tmp_path / "teacher")
    with pytest.raises(ConfigError, match=r"views is 1000000000; expected 'eval' or a number of views from 1 to 1000000"):
        run(tmp_path / "cache", dataset, teacher, 10**9)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float16", marks=pytest.mark.long)])
def test_verify_of_low_precision_prints_the_bound_that_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    """All pairs are recomputed: the printed error is that of this teacher in `precision`, computed without the verifier."""
    dataset, teacher, cache = make_dataset(tmp_path / "data"), make_teacher(tmp_path / "teacher"), tmp_path / "cache"
    settings = [*SETTINGS, "--set", f"teacher.precision={precision}"]
    build = ("build", "smoke", "--data", dataset.path, "--teacher", teacher.path, "--out", cache)
    assert call(capsys, *build, *settings)[0] == 0
    again = ("verify", cache, "--data", dataset.path, "--teacher", teacher.path, "--device", "cpu", "--recompute", "100%")
    code, out, err = call(capsys, *again)
    assert code == 0, err
    text = " ".join(out.split())
    number = r"(\d\.\d+e[-+]\d\d)"
    moved = re.search(rf"{precision} moves a probability by up to {number} from float32's, a weight by {number}:", text)
    bounds = re.search(rf"of a probability {number} \(bound {number}\), of a weight {number} \(bound {number}\)", text)
    assert moved is not None, text
    assert bounds is not None, text
    error = [float(each) for each in moved.groups()]
    probability, probability_bound, weight, weight_bound = map(float, bounds.groups())
    p, w = zip(*(predictions(dataset, teacher, settings, precision) for precision in (precision, "float32")), strict=True)
    assert error == pytest.approx([float((p[0] - p[1]).abs().max()), float((w[0] - w[1]).abs().max())], rel=0.06)
    assert error[0] > 1e-4, "or nothing is measured"
    assert [probability_bound, weight_bound] == pytest.approx([2.5e-4 + 2 * error[0], 2e-4 + 2 * error[1]], rel=0.06)
    # On the machine that built it the predictions are equal: the remaining difference is float16's rounding of logits.
    assert probability <= 2.5e-4
    assert weight <= 2e-4

    file = ViewFile(view_path(cache, 0))
    rows = {name: array.copy() for name, array in file.arrays.items()}
    order = np.argsort(np.where(np.isnan(rows["entropy"]), np.inf, rows["entropy"]))
    surest, least = order[0], order[65 - 1]
    for array in rows.values():
        array[[surest, least]] = array[[least, surest]]
    rewrite(view_path(cache, 0), rows)
    code, out, err = call(capsys, *again)
    assert "all checksums match" in out
    assert (code, "beyond the bound" in err) == (1, True)


def predictions(
    dataset: DatasetFolder, teacher: TeacherFolder, settings: list[str], precision: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and weights of a teacher's evaluation views in float64, from its predictions in a precision."""
    chosen = [word for word in settings[settings.index("--set") :] if word != "--set"]
    rules, split, cpu = (
        load_recipe("smoke", [*chosen, f"teacher.precision={precision}"]),
        dataset.split("train"),
        torch.device("cpu"),
    )
    with contextlib.closing(open_backend("folder", split, cpu)) as backend:
        ensemble = TeacherEnsemble.load([teacher], rules, dataset, cpu)
        (answer,) = predict_blocks(ensemble, backend, split, rules.teacher_spec, 0, 0, [split.ids], unrounded=True)
    p = torch.softmax(answer.logits.double(), -1)
    return p, 1 + (p * p.log()).sum(-1) / math.log(p.shape[1])


def rewrite(path: Path, rows: dict[str, np.ndarray]) -> None:
    """Put other rows into a view file, each block with a matching checksum."""
    header = ViewFile(path).header
    content, start = bytearray(path.read_bytes()), header.data_start
    for spec in header.arrays[:-1]:
        content[start + spec.offset : start + spec.offset + spec.num_bytes] = rows[spec.name].tobytes()
    for block in range(header.num_blocks):
        first, end = header.block_range(block)
        crc = block_checksum(header.checksum, block, [array[first:end] for array in rows.values()])
        offset = start + header.arrays[-1].offset + 4 * block
        content[offset : offset + 4] = crc.to_bytes(4, "little")
    path.write_bytes(content)


NOWHERE = ("build", "--data", "nowhere", "--teacher", "nowhere", "--out", "cache")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("info", "nowhere"), "no such folder"),
        (("verify", "."), "no view"),
        ((*NOWHERE, "--views", "0"), "--views '0'; expected eval or a number"),
        (NOWHERE, "nowhere is not a folder"),
    ],
)
def test_one_clear_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: ")
    assert text in err
    assert list(tmp_path.iterdir()) == []
