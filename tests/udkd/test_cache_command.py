"""udkd cache build, info, verify, as a user meets them."""

from pathlib import Path

import pytest
from PIL import Image

from tests.udkd.test_cache_builder import make_dataset, make_teacher
from udkd.commands.cache import cache_app
from udkd.console import terminal
from udkd.formats.cache.view_file import ViewFile, block_checksum, view_path

SETTINGS = ["--recipe", "smoke", "--device", "cpu", "--backend", "folder"]
for override in ("views.size_px=32", "views.resize_px=36", "evaluation.resize_px=36", "teacher.batch=16", "train.threads=1"):
    SETTINGS += ["--set", override]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    code: int | str | None = 0
    try:
        terminal.run(lambda: cache_app([str(argument) for argument in arguments]))  # type: ignore[arg-type]
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    return int(code or 0), printed.out, printed.err


def test_build_info_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    data, teacher, cache = make_dataset(tmp_path / "data").path, make_teacher(tmp_path / "teacher").path, tmp_path / "cache"
    code, out, err = call(capsys, "build", data, teacher, cache, "--views", 2, *SETTINGS)
    assert code == 0, err
    assert "mean weight" in out
    assert "mean entropy" in out
    assert "top-1" in out
    assert "asked about 130 images" in err
    code, _, err = call(capsys, "build", data, teacher, cache, "--views", 1, *SETTINGS)
    assert (code, "nothing to do" in err) == (0, True)

    code, out, err = call(capsys, "info", cache, "--data", data, "--picture", tmp_path / "pictures" / "weights.png")
    assert code == 0, err
    assert "top-5" in out
    assert "2 (views, random_resized, 32 px" in out
    with Image.open(tmp_path / "pictures" / "weights.png") as image:
        assert image.width > 500
    assert call(capsys, "verify", cache)[:2] == (0, "2 views, 0.0 MB: every checksum matches\n")

    code, _, err = call(capsys, "build", data, teacher, cache, "--views", "canonical", *SETTINGS)
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


def test_verify_asks_the_teacher_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    data, teacher, cache = make_dataset(tmp_path / "data").path, make_teacher(tmp_path / "teacher").path, tmp_path / "cache"
    assert call(capsys, "build", data, teacher, cache, "--views", 2, "--top-k", 3, *SETTINGS)[0] == 0
    again = ("verify", cache, "--data", data, "--teacher", teacher, "--device", "cpu", "--backend", "folder")
    code, out, err = call(capsys, *again, "--recompute", "20%")
    assert code == 0, err
    assert "26 of 130 pairs asked again" in out
    assert "(bound 2.50e-04)" in " ".join(out.split())
    assert "(bound 2.00e-04)" in " ".join(out.split())

    (cache / "view-1.udkd").write_bytes(b"")
    code, _, err = call(capsys, "verify", cache)
    assert (code, "view-1.udkd is no part of a cache" in err) == (1, True)
    (cache / "view-1.udkd").unlink()
    kept = view_path(cache, 0).rename(tmp_path / "kept")
    code, _, err = call(capsys, "verify", cache)
    assert (code, "view 0 is missing" in err) == (1, True)
    kept.rename(view_path(cache, 0))

    other = make_teacher(tmp_path / "other", seed=1).path
    code, _, err = call(capsys, *again[:4], "--teacher", other, "--device", "cpu", "--recompute", "3")
    assert (code, "teacher_sha256" in err) == (1, True)
    # Whole, checksummed, and not what the teacher says: one entropy of one row is another's.
    file = ViewFile(view_path(cache, 1))
    rows = {name: array.copy() for name, array in file.arrays.items()}
    rows["entropy"][[1, 2]] = rows["entropy"][[2, 1]]
    start = file.header.data_start
    content = bytearray(view_path(cache, 1).read_bytes())
    for spec in file.header.arrays[:-1]:
        content[start + spec.offset : start + spec.offset + rows[spec.name].nbytes] = rows[spec.name].tobytes()
    crc = block_checksum(file.header.checksum, 0, list(rows.values()))
    place = start + file.header.arrays[-1].offset
    content[place : place + 4] = crc.to_bytes(4, "little")
    view_path(cache, 1).write_bytes(content)
    code, out, err = call(capsys, *again, "--recompute", "100%")
    assert "every checksum matches" in out
    assert code == 1
    assert "of view 1 is beyond the bound" in err
    for bad in ("0", "x", "200%", "-1"):
        assert call(capsys, *again, "--recompute", bad)[0] == 1
    assert "--recompute needs the data and the teacher" in call(capsys, "verify", cache, "--recompute", "1%")[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("info", "nowhere"), "no such folder"),
        (("verify", "."), "no view"),
        (("build", "nowhere", "nowhere", "cache", "--views", "0"), "--views '0'; expected canonical or a number"),
        (("build", "nowhere", "nowhere", "cache"), "nowhere is not a folder"),
    ],
)
def test_one_clear_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: ")
    assert said in err
    assert list(tmp_path.iterdir()) == []
