"""The programs in examples/ run on a small data set."""

import importlib
import runpy
import sys
from pathlib import Path

import pytest
import torch

from tests.cli.commands import set_options
from tests.factories import SMALL, make_dataset, make_teacher, small_recipe, unregister_method
from udkd.data.dataset import DatasetFolder
from udkd.models.architectures import own_input
from udkd.models.build import build, num_parameters
from udkd.teacher.cache.build import build_cache
from udkd.teacher.folder import TeacherFolder
from udkd.training.run_folder import RunFolder

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TESTED = (
    "own_loop.py",
    "custom_backend.py",
    "custom_method.py",
    "lightning_students.py",
    "efficientnet_lite.py",
    "timm_students.py",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A data set and a cache."""
    folder = tmp_path_factory.mktemp("examples")
    dataset = make_dataset(folder, per_class=4, val_per_class=1)
    teacher = make_teacher(folder / "teacher", dataset)
    build_cache(folder / "cache", dataset=dataset, teacher=teacher, recipe=small_recipe(), device="cpu")
    return str(dataset.path), str(folder / "cache")


def run(monkeypatch: pytest.MonkeyPatch, name: str, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *args])
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_example_is_tested() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(TESTED)


def test_own_loop(folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data, cache = folders
    run(monkeypatch, "own_loop.py", "--data", data, "--cache", cache, "--epochs", "2", "--batch-size", "8")
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["epoch 1", "epoch 2"]


def test_timm_students(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """From a training script's checkpoint of a vision transformer, whose classes it records, to two trained students."""
    data, _ = folders
    network = build("timm/test_vit", 4, image_px=32, seed=1)
    classes = [entry.wnid for entry in DatasetFolder.open(Path(data)).classes]
    torch.save({"state_dict": network.state_dict(), "classes": classes}, tmp_path / "finetuned.pth")
    teacher = ("--model", "timm/test_vit", "--weights", str(tmp_path / "finetuned.pth"), "--teacher-px", "32")
    students = ("--students", "timm/test_resnet", "squeezenet1_1", "--recipe", "smoke", "--epochs", "1", "--batch-size", "8")
    options = ("--data", data, *teacher, *students, "--out", str(tmp_path / "out"))
    run(monkeypatch, "timm_students.py", *options)
    lines = [line for line in capfd.readouterr().out.splitlines() if ": top-1" in line]
    assert [line.partition(":")[0] for line in lines] == ["timm/test_resnet", "squeezenet1_1"]
    assert TeacherFolder.open(tmp_path / "out" / "teacher").info.preprocessing.interpolation == "bicubic"


def test_efficientnet_lite(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The network is built for any number of classes and says how its input is normalised: (x - 127) / 128."""
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    network = build("efficientnet_lite:make", 10, image_px=64, seed=0)
    assert num_parameters(network) == 4_823_882  # 6.1 M with ImageNet's 1,000 classes
    own = own_input("efficientnet_lite:make")
    assert own is not None
    assert own.size_px == 260
    red = [(x / 255 - own.preprocessing.mean[0]) / own.preprocessing.std[0] for x in (0, 127, 255)]
    assert red == pytest.approx([-127 / 128, 0, 1])


@pytest.mark.filterwarnings("ignore:::lightning")
def test_lightning_students(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning")
    data, cache = folders
    options = ("--epochs", "1", "--batch-size", "8", "--out", str(tmp_path))
    run(monkeypatch, "lightning_students.py", "--data", data, "--cache", cache, *options)
    lines = [line for line in capsys.readouterr().out.splitlines() if "top-1" in line]
    assert [line.partition(":")[0] for line in lines] == ["resnet18", "mobilenet_v2"]
    assert list(tmp_path.rglob("*.ckpt"))


def test_custom_backend(folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    registry = importlib.import_module("udkd.data.backends.registry")
    registry.backend_names()  # registers those of the package, for good
    monkeypatch.setattr(registry, "_OPENERS", dict(registry._OPENERS))
    run(monkeypatch, "custom_backend.py", "--data", folders[0], "--batch-size", "5")
    assert capsys.readouterr().out == "16 canvases equal those of the folder backend\n"


def test_custom_method(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, cache = folders
    settings = set_options(*SMALL, "train.epochs=1")
    out = tmp_path / "run"
    try:
        run(
            monkeypatch, "custom_method.py", "--data", data, "--cache", cache, "--out", str(out), "--recipe", "smoke", *settings
        )
    finally:
        unregister_method("logit_mse")
    assert min(RunFolder.open(out).metrics()[0]["train"]["method"]) > 0
    assert "top-1" in capsys.readouterr().out
