"""udkd recipe list, show, keys, as a user runs them."""

import json
import re
from pathlib import Path

import pytest

from tests.cli.commands import inside, refused, run
from udkd.config.loading import load_recipe, shipped_recipes
from udkd.config.recipe import Recipe
from udkd.utils.validation import key_paths


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, "recipe", "list")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == shipped_recipes()
    assert re.search(r"^imagenet100-paper +The setting of arXiv 2511.18826", out, flags=re.MULTILINE)
    entries = json.loads(inside(capsys, "recipe", "list", "--json").out)
    assert [f"{entry['name']:21}  {entry['description']}" for entry in entries] == out.splitlines()


def test_show_prints_a_file_that_is_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("--set", "students.1.lr=0.05", "--set", 'train.loggers=["csv"]')
    code, out, err = inside(capsys, "recipe", "show", "kd", *settings)
    assert (code, err) == (0, "")
    (tmp_path / "mine.toml").write_text(out)
    shown = load_recipe(tmp_path / "mine.toml")
    assert shown == load_recipe("kd", settings[1::2])
    assert shown.students[1].lr == 0.05
    assert inside(capsys, "recipe", "show", tmp_path / "mine.toml").out == out
    long = f'fit.init_from="{"folder/" * 500}"'
    assert long.partition("=")[2] in run("recipe", "show", "kd", "--set", long).out, "no line is shortened"
    values = json.loads(inside(capsys, "recipe", "show", tmp_path / "mine.toml", "--json").out)
    assert Recipe.from_dict(values, "json") == shown
    refused(inside(capsys, "recipe", "show", "kd", "--set", "train.epoch=3"), "did you mean train.epochs?")


def test_keys_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, "recipe", "keys")
    assert (code, err) == (0, "")
    heads, texts = out.splitlines()[::2], out.splitlines()[1::2]
    assert all(text.startswith("    ") and len(text) > 10 for text in texts)
    explained = {head.split(" = ")[0] for head in heads}
    names = {".".join(path) for path in key_paths(Recipe)}
    leaves = {name for name in names if not any(other.startswith(f"{name}.") for other in names)}
    assert explained == {re.sub(r"schedules\.\w+\.", "schedules.NAME.", name) for name in leaves}
    assert "train.epochs = 50  (integer, ≥ 1)" in heads
    assert "students.N.optimizer_options = {}  (table)" in heads
    assert 'loss.method = "none"  ("none", "attention", "crd", "dkd", "fitnets", "reviewkd", "rkd")' in heads


def test_keys_of_a_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    keys = [entry["key"] for entry in json.loads(inside(capsys, "recipe", "keys", "students.0.lr", "--json").out)]
    assert keys == ["students.N.lr", "students.N.lr_end"]
    schedule = json.loads(inside(capsys, "recipe", "keys", "loss.schedules.beta", "--json").out)
    assert [entry["key"].rpartition(".")[0] for entry in schedule] == ["loss.schedules.NAME"] * 3
    (ratio,) = json.loads(inside(capsys, "recipe", "keys", "views.ratio", "--json").out)
    assert tuple(json.loads(ratio["default"])) == Recipe().views.ratio, "the default itself, not a rounded one"
    refused(inside(capsys, "recipe", "keys", "lr"), "no key begins with 'lr'; ", "did you mean fit.lr or students.N.lr?")
    refused(inside(capsys, "recipe", "keys", "trian.batch_size"), "did you mean train.batch_size or")
    refused(inside(capsys, "recipe", "keys", "traim.lr"), "did you mean fit.lr or students.N.lr?")
    refused(inside(capsys, "recipe", "keys", "trian"), "did you mean train?")


def test_a_value_that_is_no_list_says_what_one_looks_like(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = inside(capsys, "recipe", "show", "kd", "--set", "train.loggers=tensorboard,wandb")
    refused(wrong, 'expected a list, such as [1, 2] or ["a", "b"]; ')
    for entry in ("views.ops.0.op=solarize", "views.ops=solarize"):
        wrong = inside(capsys, "recipe", "show", "kd", "--set", entry)
        refused(wrong, "views.ops is ", "expected a list, such as [{op = …, prob = …, low = …, high = …}]; ")


def test_a_folder_is_no_suggestion_for_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").mkdir()
    refused(inside(capsys, "recipe", "show", tmp_path / "mine.toml"), "not found; ", "; correct it")
