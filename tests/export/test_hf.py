"""Folders for timm: opened by timm's own create_model, transforms and data config, against the students."""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from torch import nn

from tests.cli.commands import inside, refused
from tests.factories import rewrite_json, small_recipe
from tests.observers import Notes
from udkd.data.dataset import DatasetFolder
from udkd.export import hf
from udkd.export.hf import MAX_DEVIATION, TWINS, _crop_pct, _renamed, export_hf
from udkd.export.predict import evaluation_input
from udkd.training.run_folder import RunFolder
from udkd.training.trained import TrainedClassifier
from udkd.training.trainer import TrainJob, train
from udkd.utils.errors import ConfigError, RunError

CPU = torch.device("cpu")
DATASET_IMAGES = {"per_class": 8, "val_per_class": 2}
STUDENTS = "students=[{architecture='mobilenet_v2', name='a/b', lr=0.05}, {architecture='squeezenet1_1', lr=0.01}]"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder) -> RunFolder:
    out = tmp_path_factory.mktemp("run") / "run"
    recipe = small_recipe("loss.beta=0.0", "teacher.source='none'", "train.epochs=1", "evaluation.resize_px=47", STUDENTS)
    train(TrainJob(recipe=recipe, data=dataset.path, out=out, device=CPU))
    return RunFolder.open(out)


@pytest.mark.parametrize("scheme", ["centre", "centre_squash"])
def test_timm_predicts_as_the_student(tmp_path: Path, run: RunFolder, dataset: DatasetFolder, scheme: str) -> None:
    """From a picture's pixels to logits, by timm alone."""
    rewrite_json(run.path / "config.json", lambda values: values | {"evaluation": values["evaluation"] | {"scheme": scheme}})
    exported = export_hf(run, tmp_path / "out", student="a/b")
    assert exported.difference <= MAX_DEVIATION
    network = timm.create_model(f"local-dir:{exported.folder}", pretrained=True).eval()
    found = timm.data.resolve_data_config(model=network)
    assert (tuple(found["input_size"]), found["interpolation"]) == ((3, 32, 32), "bilinear")
    assert found["crop_mode"] == {"centre": "center", "centre_squash": "squash"}[scheme]
    assert tuple(found["mean"]) == (0.485, 0.456, 0.406)
    assert tuple(found["std"]) == (0.229, 0.224, 0.225)
    transform = timm.data.create_transform(**found)
    student = TrainedClassifier.load(run, "a/b", ensemble=False)
    for height, width in ((50, 70), (90, 40)):
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        theirs = transform(Image.fromarray(pixels))[None]
        ours = evaluation_input(pixels, student.recipe.evaluation_spec)
        assert (theirs - ours).abs().max() <= 2.01 / 255 / 0.224  # two passes of rounding
        with torch.no_grad():
            wanted_BC = student.model(theirs)
            assert wanted_BC.std() > 0.01, "the logits differ by class, so their equality means something"
            assert (network(theirs) - wanted_BC).abs().max() <= MAX_DEVIATION


def test_what_the_folder_says(tmp_path: Path, run: RunFolder, dataset: DatasetFolder) -> None:
    exported = export_hf(run, tmp_path / "out", student="a/b")
    assert sorted(path.name for path in exported.folder.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((exported.folder / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("mobilenetv2_100", 4, 1280)
    assert config["label_names"] == [entry.wnid for entry in dataset.classes]
    assert config["label_descriptions"] == {entry.wnid: entry.name for entry in dataset.classes}
    assert config["pretrained_cfg"]["first_conv"] == "conv_stem"
    assert config["pretrained_cfg"]["classifier"] == "classifier"
    assert "url" not in config["pretrained_cfg"]
    assert config["udkd"]["student"] == "a/b"
    assert config["udkd"]["top1"] == run.metrics()[-1]["val"]["students"][0]["top1"]
    with safe_open(exported.folder / "model.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
    before = {path.name: path.read_bytes() for path in exported.folder.iterdir()}
    export_hf(run, tmp_path / "out", student="a/b")
    assert {path.name: path.read_bytes() for path in exported.folder.iterdir()} == before


def test_other_networks_and_folders_are_refused(tmp_path: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def twin(name: str, **arguments: float) -> None:
        monkeypatch.setattr(hf, "TWINS", {"mobilenet_v2": (name, arguments)})

    twin("mobilenetv2_100", bn_eps=0.1)
    with pytest.raises(RunError, match=r"timm's network differs from a/b \(logits by .*; nothing was written"):
        export_hf(run, out, student="a/b")
    twin("resnet18")
    with pytest.raises(ConfigError, match=r"weights of mobilenet_v2 do not fit timm .*'s resnet18"):
        export_hf(run, out, student="a/b")
    twin("mobilenetv2_101")
    with pytest.raises(ConfigError, match=r"cannot make mobilenetv2_101 \(.*\); expected the twin of mobilenet_v2"):
        export_hf(run, out, student="a/b")
    with pytest.raises(ConfigError, match=r"squeezenet1_1 has no known twin in timm; .*--format safetensors"):
        export_hf(run, out, student="squeezenet1_1")
    assert not out.exists()
    monkeypatch.undo()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"out holds notes\.txt; expected a new folder"):
        export_hf(run, out, student="a/b")
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    with pytest.raises(RunError, match=r"notes\.txt is a file; expected a new folder"):
        export_hf(run, out / "notes.txt", student="a/b")
    monkeypatch.setattr(hf, "find_spec", lambda name: None if name == "timm" else find_spec(name))
    with pytest.raises(ConfigError, match=r"timm is not installed; .* pip install 'udkd\[timm\]'"):
        export_hf(run, tmp_path / "new", student="a/b")


def test_mirror_images_are_mentioned_and_left_out(tmp_path: Path, run: RunFolder) -> None:
    notes = Notes()
    plain = export_hf(run, tmp_path / "plain", student="a/b", observer=notes)
    assert notes.lines == []
    rewrite_json(run.path / "config.json", lambda values: values | {"evaluation": values["evaluation"] | {"flip_tta": True}})
    flipped = export_hf(run, tmp_path / "flipped", student="a/b", observer=notes)
    assert "a network of timm has the image alone" in notes.lines[0]
    assert len({(done.folder / "model.safetensors").read_bytes() for done in (plain, flipped)}) == 1


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, run: RunFolder) -> None:
    result = inside(capsys, "export", run.path, "--format", "hf", "--student", "a/b")
    assert result.code == 0, result
    assert f"timm.create_model('local-dir:{run.path / 'hf' / 'a-b'}', pretrained=True)" in result.out
    assert sorted(path.name for path in (run.path / "hf" / "a-b").iterdir()) == ["config.json", "model.safetensors"]
    assert inside(capsys, "export", run.path, "--out", tmp_path / "w", "--format", "safetensors").code == 0
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == ["a-b.safetensors", "squeezenet1_1.safetensors"]
    refused(inside(capsys, "export", run.path, "--format", "hf"), "students a/b, squeezenet1_1; expected one; name it")
    refused(inside(capsys, "export", run.path, "--format", "hf", "--int8"), "--int8 with --format hf; expected --format onnx")


def test_timms_resize_is_the_recipes() -> None:
    for size in (7, 32, 64, 224, 299, 384):
        for resize in range(size, 2 * size + 1):
            fraction = json.loads(json.dumps(_crop_pct(size, resize)))
            assert 0 < fraction <= 1
            assert math.floor(size / fraction) == resize


def trained_a_little(architecture: str) -> nn.Module:
    """torchvision's network with statistics and weights that differ by channel."""
    torch.manual_seed(0)
    network: nn.Module = torchvision.models.get_model(architecture, weights=None, num_classes=7)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    for name, parameter in network.named_parameters():
        if "layer_scale" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.count_nonzero() == 0:
            nn.init.normal_(parameter, std=0.05)
    return network.eval()


FAMILIES = (
    *("resnext50_32x4d", "densenet121", "convnext_tiny", "efficientnet_b0", "efficientnet_b5", "efficientnet_v2_s"),
    *("vgg11_bn", "mobilenet_v2", "mnasnet1_0", "vit_b_32"),
)
"""One network of each; the others differ in depth and width, and every export is compared."""


@pytest.mark.parametrize("architecture", ["resnet18", *(pytest.param(name, marks=pytest.mark.long) for name in FAMILIES)])
def test_the_twins_are_the_same_networks(architecture: str) -> None:
    network = trained_a_little(architecture)
    name, arguments = TWINS[architecture]
    twin = timm.create_model(name, num_classes=7, **arguments).eval()
    weights = _renamed(network.state_dict(), twin.state_dict())
    assert weights is not None
    twin.load_state_dict(weights)
    px = 224 if "vit" in architecture or "vgg" in architecture else 64
    x_BCHW = torch.randn(2, 3, px, px)
    with torch.no_grad():
        wanted_BC, actual_BC = network(x_BCHW), twin(x_BCHW)
    assert wanted_BC.std() > 1e-3
    assert (actual_BC - wanted_BC).abs().max() <= MAX_DEVIATION * max(1.0, float(wanted_BC.abs().max()))
