"""udkd cache import and export, as a user runs them."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from tests.cli.commands import Result, inside, refused, set_options
from tests.factories import CLASSES, SMALL, make_dataset
from udkd.training.run_folder import RunFolder

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cache.md"


def block(language: str) -> str:
    """The code of a language in the section on own logits."""
    section = PAGE.read_text().split("## Your own logits\n")[1].split("\n## ")[0]
    found = re.search(rf"^```{language}\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_the_documented_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of logits from PyTorch alone, then import, training, evaluation and report."""
    make_dataset(tmp_path, per_class=6, val_per_class=2)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(torchvision.models.resnet18(num_classes=len(CLASSES)).state_dict(), "teacher.pth")
        code = block("python").replace("256", "36").replace("224", "32")  # pixels
        exec(compile(code, PAGE.name, "exec"), {})
    convert, *commands, report = [shlex.split(line)[1:] for line in block("bash").replace("\\\n", " ").splitlines()]
    assert convert == ["data", "convert", "images", "--out", "data"]  # as make_dataset did
    assert report == ["report", "run"]  # its figures take longer than all the rest: tests/report has a run like this one
    results: dict[str, Result] = {}
    for command in commands:
        small = ["smoke" if word == "imagenet100-paper" else word for word in command]
        small += set_options(*SMALL, "train.epochs=1") if command[0] == "train" else []
        result = results[command[0]] = inside(capsys, *small)
        assert result.code == 0, result.err
    assert "classes: 4 of 4 columns are taken by their names" in results["cache"].err
    assert "imported 24 rows" in results["cache"].err
    assert re.search(r"top-1 \d+\.\d\d %, top-5 100", results["cache"].out)
    assert "the cache was imported from my-resnet18: its augment_version, " in results["train"].err
    key = RunFolder.open(Path("run")).provenance["cache_key"]
    assert (key["teacher"], "views" in key["claimed"]) == ("my-resnet18", True)

    info = inside(capsys, "cache", "info", "cache", "--data", "data").out
    assert re.search(r"teacher +my-resnet18, imported, sha256 [0-9a-f]{16}", info)
    assert re.search(r"not checked +augment_version, channels_last, device, normalisation", info)
    assert "libjpeg" not in info
    assert inside(capsys, "cache", "verify", "cache").code == 0
    refused(inside(capsys, "cache", "verify", "cache", "--recompute", "1%"), "was imported: udkd has no teacher to recompute")
    exported = inside(capsys, "cache", "export", "cache", "--out", "out/logits.npy")
    assert (exported.code, exported.err) == (0, "24 rows in out/logits.npy\n")
    refused(inside(capsys, "cache", "export", "cache", "--out", "out/logits.npy"), "exists; expected a new file")
    given, stored = np.load("logits.npy"), np.load("out/logits.npy")
    np.testing.assert_array_equal(stored, (given - given.max(1, keepdims=True)).astype(np.float16))


def test_a_wrong_order_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_dataset(tmp_path, per_class=6, val_per_class=2)
    sure = 9 * np.eye(len(CLASSES), dtype=np.float32)[dataset.train.labels]
    for name, logits, top1, noticed in (("right", sure, "100.00", False), ("wrong", np.roll(sure, 1, axis=1), "0.00", True)):
        np.save(tmp_path / "logits.npy", logits)
        arguments = ("cache", "import", tmp_path / "logits.npy", "--data", dataset.path, "--out", tmp_path / name, "--top-k", 2)
        code, out, err = inside(capsys, *arguments, "--logits-dtype", "float32")
        assert code == 0, err
        assert "the 4 columns are taken in this data's order, ant, bee, cat, …" in err
        assert f"top-1 {top1} %" in out
        assert "stored as float32 top-2" in out
        assert ("hardly better than chance" in err) == noticed
    code, out, err = inside(capsys, *arguments, "--logits-dtype", "float32")
    assert (code, "nothing to do: the cache is complete" in err) == (0, True)
    probabilities = np.full((24, 4), 0.25)
    np.save(tmp_path / "p.npy", probabilities)
    more = ("cache", "import", tmp_path / "p.npy", "--data", dataset.path, "--out", tmp_path / "p")
    refused(inside(capsys, *more, "--set", "nothing=1"), "nothing is not a key")
    assert inside(capsys, *more, "--probabilities").code == 0
