"""The first second: commands that need no network do not import torch, nor other packages that take long."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from tests.cli.commands import ENVIRONMENT, ROOT
from tests.teacher import synthetic_cache
from tests.teacher.cache_fixtures import make_dataset

HEAVY = ("torch", "torchvision", "timm", "matplotlib", "jinja2", "pyarrow", "scipy", "pandas")

# Each call adds to what was imported before, so that one process shows which of them is the first to import a package.
PROGRAM = """
import json, sys
heavy, calls = json.loads(sys.argv[1])
imported = {"start": [name for name in heavy if name in sys.modules]}
import udkd
udkd.load_recipe("imagenet100-paper", ["train.epochs=3"])
imported["import udkd"] = [name for name in heavy if name in sys.modules]
from udkd.__main__ import main
for call in calls:
    sys.argv = ["udkd", *call]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    imported[" ".join(call)] = [code, *(name for name in heavy if name in sys.modules)]
open("imported.json", "w").write(json.dumps(imported))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Exit code and imported packages of each command."""
    folder = tmp_path_factory.mktemp("startup")
    data = make_dataset(folder / "data")
    key = dataclasses.replace(synthetic_cache.KEY, dataset_digest=data.digest, num_classes=len(data.classes))
    train = data.split("train")
    synthetic_cache.build(folder / "cache", [0, 1], key, train.excluded)
    new = ("--data", "data", "--set", "train.epoch=3")
    calls: list[tuple[str, ...]] = [
        ("--help",),
        ("cache", "--help"),
        ("trian",),
        ("recipe", "list"),
        ("recipe", "show", "smoke", "--set", "train.epochs=5"),
        ("recipe", "keys", "train"),
        ("train", "smoke", "--out", "run", *new),
        ("study", "table1", "--out", "studies", *new),
        ("cache", "info", "cache"),
        ("cache", "info", "cache", "--data", "data"),
        ("data", "info", "data"),
    ]
    command = [sys.executable, "-c", PROGRAM, json.dumps([HEAVY, calls])]
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads((folder / "imported.json").read_text())
    return values | {"out": done.stdout, "err": done.stderr}


def test_no_command_of_the_first_minute_imports_torch(imported: dict[str, Any]) -> None:
    out, err = imported.pop("out"), imported.pop("err")
    assert imported.pop("start") == imported.pop("import udkd") == []
    codes = {call: code for call, (code, *_) in imported.items()}
    assert [call for call, code in codes.items() if code == 2] == ["trian"]
    assert [call.split()[0] for call, code in codes.items() if code == 1] == ["train", "study"]
    assert err.count("did you mean train.epochs?\n") == 2
    assert "top-5" in out, "the last commands did all their work"
    packages = {call: names for call, (_, *names) in imported.items()}
    reads_parquet = [call for call, names in packages.items() if names == ["pyarrow"]]
    assert reads_parquet == ["cache info cache --data data", "data info data"], "they read the table of the images"
    assert not any(names for call, names in packages.items() if call not in reads_parquet)
