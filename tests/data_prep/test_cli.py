"""The commands of udkd data: exit codes, one-line errors, signals."""

import os
import signal
from pathlib import Path

import pytest

from tests.data_prep.helpers import children, contents, photo, run, small_set, start, write_tar, write_tree
from tests.timeouts import scaled, wait_until


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images for several seconds of work."""
    files = {f"train/c/{n}.jpg": photo(n % 40, 300, 300) for n in range(6000)} | {"val/c/v.jpg": photo(0)}
    return write_tar(tmp_path_factory.mktemp("many") / "t.tar", files)


def test_convert_info_derive_verify(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", small_set())
    code, out, err = run("convert", tree, tmp_path / "d", "--side", 48, "--formats", "none", "--workers", 1)
    assert code == 0, err
    assert "formats  shards\n" in out
    assert "12 images, 6 to 6 per class" in out
    code, out, err = run("derive", tmp_path / "d", "--formats", "resident")
    assert code == 0, err
    code, out, err = run("verify", tmp_path / "d")
    assert (code, out) == (0, f"{tmp_path / 'd'}: intact\n")
    code, out, err = run("info", tmp_path / "d")
    assert "formats  shards, resident" in out
    path = tmp_path / "d" / "train" / "samples-00000.tar"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    code, out, err = run("verify", tmp_path / "d")
    assert code == 1
    assert "1 problems found" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "{t}/nowhere", "{t}/d"), "does not exist"),
        (("convert", "{t}/t", "{t}/d", "--classes", "imagenet100"), "matches nothing"),
        (("convert", "{t}/t", "{t}/d", "--formats", "beton"), "expected a comma-separated list of resident"),
        (("convert", "{t}/t", "/proc/nothing/d"), "/proc/nothing"),
        (("info", "{t}"), "holds no dataset.json"),
        (("derive", "{t}"), "holds no dataset.json"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    write_tree(tmp_path / "t", small_set(train=1, val=1))
    code, out, err = run(*(argument.format(t=tmp_path) for argument in arguments))
    assert code == 1
    assert out == ""
    errors = [line for line in err.splitlines() if not line.startswith("resident format")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert not (tmp_path / "d" / "dataset.json").exists()


def test_bad_images_are_named_ten_at_most(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", small_set() | {f"train/n01440764/bad{n:02d}.JPEG": b"x" for n in range(12)})
    code, _, err = run("convert", tree, tmp_path / "d", "--side", 32, "--workers", 1)
    assert code == 1
    assert err.count("bad image: train/n01440764/bad") == 10
    assert "and 2 more bad images" in err
    assert err.splitlines()[-1].startswith("error: 12 of 28 images cannot be used")
    assert not (tmp_path / "d" / "dataset.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_in_one_line_without_leftovers(many: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = start("convert", many, tmp_path / "d", "--side", 64, "--workers", 2)
    assert wait_until(lambda: list(tmp_path.glob("d/train/*.tar.tmp")))
    workers = children(process.pid)
    assert len(workers) == 2
    process.send_signal(number)
    _, err = process.communicate(timeout=scaled(20))
    assert process.returncode == 128 + number
    assert err.splitlines()[-1] == f"error: stopped by {number.name}; finished work is kept, the same command resumes"
    assert "Traceback" not in err
    assert not list((tmp_path / "d").rglob("*.tmp"))
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert not (tmp_path / "d" / "dataset.json").exists()


def test_a_killed_worker_is_one_clear_error(many: Path, tmp_path: Path) -> None:
    process = start("convert", many, tmp_path / "d", "--side", 64, "--workers", 2)
    assert wait_until(lambda: list(tmp_path.glob("d/train/*.tar.tmp")))
    os.kill(min(children(process.pid)), signal.SIGKILL)
    _, err = process.communicate(timeout=scaled(20))
    assert process.returncode == 1
    assert "was killed by signal 9" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not list((tmp_path / "d").rglob("*.tmp"))


def test_a_full_disk_is_one_clear_error_and_can_be_continued(tmp_path: Path) -> None:
    """A limit on file size simulates the full disk: the same OSError at the same points."""
    tree = write_tree(tmp_path / "t", small_set(train=20, val=2))
    command = ("convert", tree, tmp_path / "d", "--side", 96, "--workers")
    for limit_bytes in (4_000, 20_000, 300_000):
        code, _, err = run(*command, 1, limit_bytes=limit_bytes)
        assert code == 1, limit_bytes
        assert err.splitlines()[-1].startswith("error: ")
        assert "File too large" in err
        assert "Traceback" not in err
        assert not (tmp_path / "d" / "dataset.json").exists()
        assert not list((tmp_path / "d").rglob("*.tmp"))
    assert run(*command, 2)[0] == 0
    run("convert", tree, tmp_path / "e", "--side", 96, "--workers", 1)
    assert contents(tmp_path / "d") == contents(tmp_path / "e")


def test_the_help_names_every_layout_and_format() -> None:
    from udkd.data_prep import cli, formats, image, sources

    assert ", ".join(f"`{name}`" for name in sources.LAYOUTS) == cli.LAYOUTS
    assert ", ".join(f"`{name}` ({writer.files})" for name, writer in formats.WRITERS.items()) == cli.FORMAT_NAMES
    assert cli.PIXEL_LIMIT == image.PIXEL_LIMIT
