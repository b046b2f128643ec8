"""`udkd train` against a cache built under other conditions: fields are refused by name, --allow-mismatch accepts them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torch import nn

from tests.cli.commands import code_of, set_options
from tests.factories import CLASSES, SMALL, make_dataset, make_teacher, write_small_teacher
from udkd.config.loading import load_recipe
from udkd.data.backends.resident import ResidentBackend
from udkd.data.dataset import DatasetFolder
from udkd.data_prep.convert import ConvertSettings, convert
from udkd.teacher import target_key
from udkd.teacher.cache.reader import Cache
from udkd.utils.errors import ConfigError
from udkd.utils.progress import SILENT

ONE_STEP = (*SMALL, "train.epochs=1", "students=[{architecture='squeezenet1_1', lr=0.01}]", "teacher.views=1")


@dataclass(frozen=True)
class Inputs:
    """A data set, its teacher and a cache of one view, and variants of each."""

    folder: Path

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def train(self, out: Path, settings: tuple[str, ...], given: dict[str, str], allow: tuple[str, ...] = ()) -> int:
        args = ["train", "smoke", "--cache", self.path("cache"), "--out", str(out), "--device", "cpu"]
        args += [
            "--data",
            self.path(given.get("data", "data") + "/data"),
            "--teacher",
            self.path(given.get("teacher", "teacher")),
        ]
        args += set_options(*ONE_STEP, *settings)
        return code_of(*args, *(arg for name in allow for arg in ("--allow-mismatch", name)))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    dataset = make_dataset(folder / "data", per_class=2, val_per_class=1)
    make_dataset(folder / "other", per_class=2, val_per_class=2)
    make_dataset(folder / "more", per_class=3, val_per_class=1)
    teacher = make_teacher(folder / "teacher", dataset)
    assert code_of("cache", "build", "smoke", "--data", dataset.path, "--teacher", teacher.path, "--out", folder / "cache",
                  "--device", "cpu", *set_options(*ONE_STEP)) == 0  # fmt: skip
    make_teacher(folder / "stranger", dataset, seed=1)
    same = make_teacher(folder / "again", dataset)
    write_small_teacher(folder / "reversed", same.weights(), same.info.architecture, same.info.classes[::-1])
    return Inputs(folder)


@dataclass(frozen=True)
class Case:
    """How a run differs from the cache, and the message expected for each field."""

    messages: dict[str, str]
    settings: tuple[str, ...] = ()
    given: dict[str, str] = field(default_factory=dict)
    patch: Callable[[pytest.MonkeyPatch], None] = lambda patch: None


CASES = {
    "weights": Case({"teacher_sha256": ""}, given={"teacher": "stranger"}),
    "view spec": Case(
        {"views.flip": "stored 0.5, wanted 0.0", "views.scale": "stored [0.08, 1.0], wanted [0.5, 1.0]"},
        ("views.flip=0.0", "views.scale=[0.5, 1.0]"),
    ),
    "seed": Case({"seed": "stored 0, wanted 9"}, ("views.seed=9",)),
    "operations": Case(
        {
            "views.policy": "stored 'none', wanted 'trivial_augment_wide'",
            "views.fill": "stored [0, 0, 0], wanted [1, 2, 3]",
            "views.jitter": "",
        },
        ("views.policy=trivial_augment_wide", "views.fill=[1,2,3]", "views.jitter=uint8"),
    ),
    "dataset": Case({"dataset_digest": ""}, given={"data": "other"}),
    "precision": Case({"precision": "stored 'float32', wanted 'bfloat16'"}, ("teacher.precision=bfloat16",)),
    "folded": Case({"precision": "wanted 'float32, batch norm folded'"}, ("teacher.fold_bn=true",)),
    "estimator": Case(
        {"estimator": "stored 'plain', wanted 'mc_dropout, 4 passes, p 0.3, seed 0'"},
        ("teacher.estimator=mc_dropout", "teacher.mc_samples=4", "teacher.dropout=0.3"),
    ),
    "policy": Case(
        {"policy": "stored 'views', wanted 'canonical'", "seed": "stored 0, wanted None", "views.scheme": "", "views.flip": ""},
        ("teacher.views=eval",),
    ),
    "pixel class": Case(
        {"pixel_class": "wanted 'another decoder'"},
        patch=lambda patch: patch.setattr(ResidentBackend, "describe", lambda self: "another decoder"),
    ),
    "versions": Case(
        {"augment_version": "wanted 99", "views_version": "wanted 98"},
        patch=lambda patch: (
            [
                patch.setattr(name, value)
                for name, value in (("udkd.augment.apply.VERSION", 99), ("udkd.augment.views.VERSION", 98))
            ]
            and None
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_mismatched_fields_are_refused_or_allowed_by_name(
    tmp_path: Path, inputs: Inputs, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case, out = CASES[name], tmp_path / "run"
    case.patch(monkeypatch)
    assert inputs.train(out, case.settings, case.given) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: the cache in {inputs.path('cache')} does not fit; ")
    for differing, values in case.messages.items():
        assert f"{differing}: stored " in error
        assert values in error
    assert not out.exists(), "no incomplete folder is left"

    *some, last = case.messages
    groups = {name.split(".")[0] for name in case.messages}
    if some and len(groups) == len(case.messages):
        assert inputs.train(out, case.settings, case.given, tuple(some)) == 1
        left = capsys.readouterr().err.splitlines()[-1]
        assert f"{last}: stored" in left
        assert f"{some[0]}: stored" not in left

    assert inputs.train(out, case.settings, case.given, tuple(sorted(groups))) == 0
    record = json.loads((out / "run.json").read_text())
    assert set(case.messages) <= set(record["allowed"])
    assert {name.split(".")[0] for name in record["allowed"]} == groups
    (row,) = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    assert (row["step"], row["epoch"]) == (1, 1)


def test_a_run_that_fits_allows_nothing(tmp_path: Path, inputs: Inputs) -> None:
    assert inputs.train(tmp_path / "run", (), {}) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["allowed"] == []


def test_class_order(tmp_path: Path, inputs: Inputs, capsys: pytest.CaptureFixture[str]) -> None:
    """Another order is another data set; a teacher with another class order is refused even if the fields are allowed."""
    images = tmp_path / "images"
    shutil.copytree(inputs.folder / "data" / "images", images)
    for split in ("train", "val"):
        for name, new in zip(CLASSES, CLASSES[::-1], strict=True):
            (images / split / name).rename(images / split / f"new-{new}")
        for name in CLASSES:
            (images / split / f"new-{name}").rename(images / split / name)
    convert([images], inputs.folder / "renamed" / "data", ConvertSettings(side=36), SILENT)
    assert inputs.train(tmp_path / "run", (), {"data": "renamed"}) == 1
    assert "(dataset_digest: stored " in capsys.readouterr().err
    assert inputs.train(tmp_path / "run", (), {"teacher": "reversed"}, ("dataset_digest", "teacher_sha256")) == 1
    assert "class 0: stored 'dog', wanted 'ant'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_differences_that_cannot_be_allowed(tmp_path: Path, inputs: Inputs, capsys: pytest.CaptureFixture[str]) -> None:
    """More images than targets; more epochs than views where the run needs one target for all."""
    assert inputs.train(tmp_path / "run", (), {"data": "more"}, ("dataset_digest",)) == 1
    messages = capsys.readouterr().err.splitlines()[-1]
    assert "holds 8 rows of 4 classes; expected a target for each image, 12 rows of 4 classes" in messages
    settings = ("teacher.views=eval", "train.epochs=2")
    assert inputs.train(tmp_path / "run", settings, {}, ("policy", "seed", "views")) == 1
    assert "lacks views 1; expected 2 views" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_compiled_teacher_is_compiled_or_refused(tmp_path: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each member of an ensemble is; passes with dropout look inside the network, so the recipe is refused."""
    seen: list[str] = []

    def noted(model: nn.Module) -> nn.Module:
        seen.append(type(model).__name__)
        return model

    monkeypatch.setattr("udkd.teacher.frozen.compiled", noted)
    settings = (*ONE_STEP, "teacher.estimator=ensemble", "teacher.compile=true")
    args = set_options(*settings)
    teachers = [arg for name in ("teacher", "stranger", "again") for arg in ("--teacher", inputs.path(name))]
    build = ["cache", "build", "smoke", "--data", inputs.path("data/data"), "--out", str(tmp_path / "cache")]
    assert code_of(*build, *teachers, "--device", "cpu", *args) == 0
    key = Cache.open(tmp_path / "cache").key
    assert (seen, key.precision, key.num_members) == (["SqueezeNet"] * 3, "float32, compiled", 3)
    rules = load_recipe("smoke", settings)
    assert target_key.target_fields(rules, DatasetFolder.open(Path(inputs.path("data/data"))), "")["precision"] == key.precision
    with pytest.raises(
        ConfigError, match=r"teacher: compile is true and estimator is mc_dropout.*set teacher\.compile to false"
    ):
        load_recipe("smoke", ["teacher.estimator=mc_dropout", "teacher.compile=true"])
