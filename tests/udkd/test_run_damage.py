"""Run folders that are not what was written: every file's every field and bit, and runs of before there were checksums."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from tests.small import change, make_dataset, make_teacher, small_recipe
from udkd.actors import evaluator
from udkd.actors.cache_builder import build_cache
from udkd.actors.evaluator import evaluate
from udkd.actors.predictor import class_names
from udkd.actors.reporter import gather, gallery, style, write_report
from udkd.actors.run_verifier import verify_run
from udkd.actors.trainer import Job, train
from udkd.engine.trained import Trained
from udkd.formats.config import Recipe
from udkd.formats.dataset import DatasetFolder
from udkd.formats.run import RunFolder
from udkd.words.checksums import CHECKSUM, values_of, values_of_line
from udkd.words.errors import RunError, UserError
from udkd.words.observer import SILENT

CPU = torch.device("cpu")
RECIPE = ("train.epochs=2", "train.batch=16", "students=[{architecture='squeezenet1_1', lr=0.01}]")
JSON = ("run.json", "config.json", "eval.json", "checkpoints/last.json", "metrics.jsonl")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetFolder]:
    """A folder with a run that was trained from a cache and evaluated, and its data."""
    folder, threads = tmp_path_factory.mktemp("house"), torch.get_num_threads()
    dataset = make_dataset(folder, per_class=10, val_per_class=2)
    teacher, recipe = make_teacher(folder / "teacher", dataset), small_recipe(*RECIPE)
    build_cache(folder / "cache", dataset=dataset, teacher=teacher, recipe=recipe, device=CPU, observer=SILENT)
    train(job(folder, dataset, folder / "run"))
    evaluate(RunFolder.open(folder / "run"), data=None, teacher=teacher.path, device=CPU, observer=SILENT)
    torch.set_num_threads(threads)
    return folder, dataset


def job(folder: Path, dataset: DatasetFolder, out: Path, *, resume: bool = False, **more: Any) -> Job:
    recipe = small_recipe(*RECIPE)
    return Job(recipe=recipe, data=dataset.path, out=out, device=CPU, cache=folder / "cache", resume=resume, **more)


@pytest.fixture
def run(house: tuple[Path, DatasetFolder], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(house[0] / "run", tmp_path / "run"))


@pytest.fixture
def old(run: Path) -> Path:
    """The run as version 0.1.0 would have left it: no checksums, and the progress in last.json."""
    for name in JSON[:4]:
        values = values_of((run / name).read_bytes())
        if name == "run.json":
            values["format"] = 1
        if name == "checkpoints/last.json":
            file = run / "checkpoints" / values["file"]
            progress = (
                RunFolder.open(run).load().progress.model_dump(exclude_none=True)
                if False
                else {"step": 4, "steps_per_epoch": 2}
            )
            data = save(load(file.read_bytes()))
            file.write_bytes(data)
            values |= {"sha256": sha256(data), "progress": progress}
        (run / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    rows = [values_of_line(line) for line in (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


class Reached(Exception):
    """Everything before the scoring was accepted."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without figures, and without the scoring of an evaluation."""

    def reached(*arguments: object, **options: object) -> None:
        raise Reached

    monkeypatch.setattr(evaluator, "_scored", reached)
    for module in (style, gallery):
        monkeypatch.setattr(module, "png", lambda *arguments, **options: b"")


def everything(run: Path, *, pages: bool = True) -> None:
    """What reads a run, up to where it begins to compute."""
    write_report(gather(run)) if pages else gather(run)
    folder = RunFolder.open(run)
    class_names(folder, Trained.load(folder, None, averaged=False).classes)
    with pytest.raises(Reached):
        evaluate(folder, data=None, teacher=None, device=CPU, observer=SILENT)


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """The path of every field of nested values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield (name,)
        yield from ((name, *rest) for rest in places(inner))


GONE = object()
OTHERS: tuple[Any, ...] = (
    GONE,
    None,
    "x",
    "",
    True,
    -1,
    10**30,
    1e300,
    float("nan"),
    [],
    {},
    [[1]],
    {"a": {"b": []}},
    "\0",
    "/",
)


def changed(values: Any, place: tuple[Any, ...], other: Any) -> Any:
    copy = json.loads(json.dumps(values))
    inner = copy
    for name in place[:-1]:
        inner = inner[name]
    if other is GONE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = other
    return copy


@pytest.mark.parametrize("name", JSON)
def test_every_field_of_every_file(old: Path, quick: None, name: str) -> None:
    """Deleted, of another type, too large, no number: a line that names the file, or it does not matter."""
    file = old / name
    before = file.read_bytes()
    everything(old)
    lines = [json.loads(line) for line in before.splitlines()] if name == "metrics.jsonl" else [json.loads(before)]
    refused = passed = 0
    chance = random.Random(name)
    for place in places(lines[-1]):
        for other in chance.sample(OTHERS, 5) if len(place) > 1 else OTHERS:
            text = [json.dumps(line) for line in [*lines[:-1], changed(lines[-1], place, other)]]
            file.write_text("\n".join(text) + "\n")
            try:
                everything(old, pages=passed < 8)
            except (UserError, OSError) as error:
                refused += 1
                assert "\n" not in str(error)
            else:
                passed += 1
            verify_run(old)
    assert refused > passed
    file.write_bytes(before)
    everything(old)
