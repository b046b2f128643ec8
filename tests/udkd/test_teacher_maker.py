"""Teachers from runs, from pretrained weights files, and from files that are something else."""

import pickle
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from tests.small import make_dataset, small_recipe
from udkd.actors import teacher_maker
from udkd.actors.teacher_maker import from_imagenet, from_run, imagenet_rows, read_weights, write_measured
from udkd.actors.trainer import Job, train
from udkd.formats.dataset import DatasetFolder
from udkd.formats.run import RunFolder
from udkd.formats.teacher import TeacherFolder
from udkd.operations.models import build
from udkd.parts.frozen_teacher import FrozenTeacher
from udkd.words.errors import ConfigError, DataError, MismatchError, RunError
from udkd.words.observer import SILENT

NAMES = small_recipe().student_names()
CPU = torch.device("cpu")
WNIDS = ("n02085620", "n01440764", "n13133613", "n01614925")  # in no order: rows 151, 0, 998, 22
HEADS = {"resnet50": "fc", "mobilenet_v2": "classifier.1", "squeezenet1_1": "classifier.1"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    return make_dataset(tmp_path_factory.mktemp("data"), per_class=4, val_per_class=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder) -> RunFolder:
    """Hard labels alone, two students, one epoch."""
    recipe = small_recipe("loss.beta=0", 'teacher.source="none"', "train.epochs=1")
    out = tmp_path_factory.mktemp("run") / "run"
    train(Job(recipe=recipe, data=dataset.path, out=out, device=CPU))
    return RunFolder.open(out)


def imagenet_model(architecture: str) -> torch.nn.Module:
    torch.manual_seed(3)
    model = torchvision.models.get_model(architecture, weights=None, num_classes=1000)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.0)  # biases that tell the rows apart
    return model.eval()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("architecture", HEADS)
def test_the_rows_of_the_head_are_those_of_the_classes(tmp_path: Path, architecture: str, ending: str) -> None:
    model = imagenet_model(architecture)
    file = tmp_path / f"weights{ending}"
    torch.save(model.state_dict(), file) if ending == ".pth" else save_file(model.state_dict(), file)
    rows = imagenet_rows(WNIDS)
    assert rows == [151, 0, 998, 22]
    candidate = from_imagenet(architecture, file, WNIDS)
    picked = build(architecture, len(WNIDS), image_px=64, seed=0)
    picked.load_state_dict(dict(candidate.weights))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, wanted = picked.eval()(x), model(x)[:, rows]
    # The products are the same; a smaller head may sum them in another order.
    torch.testing.assert_close(logits, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))
    own = model.state_dict()
    for name, value in candidate.weights.items():
        assert torch.equal(value, own[name][rows] if name.startswith(HEADS[architecture] + ".") else own[name]), name
    assert candidate.made["rows_of_1000"] == rows


def test_classes_that_are_not_imagenet_s() -> None:
    with pytest.raises(DataError, match=r"2 of 3 classes are none of ImageNet's \(cat, dog\); expected wnids"):
        imagenet_rows(["n01440764", "cat", "dog"])


def test_wrong_weights_are_one_short_line(tmp_path: Path) -> None:
    file = tmp_path / "mobilenet.pth"
    model = imagenet_model("mobilenet_v2")
    torch.save(model.state_dict(), file)
    with pytest.raises(DataError, match=r"does not fit resnet50 with 1000 classes \(it lacks conv1\.weight\)") as caught:
        from_imagenet("resnet50", file, WNIDS)
    assert len(str(caught.value)) < 250
    small = torchvision.models.get_model("mobilenet_v2", num_classes=100).state_dict()
    torch.save(small, file)
    said = r"\(classifier\.1\.weight is \[100, 1280\], expected \[1000, 1280\]\)"
    with pytest.raises(DataError, match=said):
        from_imagenet("mobilenet_v2", file, WNIDS)
    torch.save({f"module.{name}": value for name, value in model.state_dict().items()}, file)
    with pytest.raises(DataError, match="it lacks features"):
        from_imagenet("mobilenet_v2", file, WNIDS)
    torch.save(model.state_dict() | {"more": torch.zeros(1)}, file)
    with pytest.raises(DataError, match="it also holds more"):
        from_imagenet("mobilenet_v2", file, WNIDS)
    with pytest.raises(ConfigError, match="'resnet5' is unknown; expected a torchvision classifier; did you mean"):
        from_imagenet("resnet5", file, WNIDS)


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_a_network_of_many_outputs_is_refused_before_it_is_downloaded() -> None:
    with pytest.raises(ConfigError, match="auxiliary"):
        from_imagenet("googlenet", None, WNIDS)


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.target,))


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    for name, write in (
        ("zip.pth", lambda file: torch.save({"w": torch.zeros(1), "x": Attack(target)}, file)),
        ("raw.pth", lambda file: Path(file).write_bytes(pickle.dumps(Attack(target)))),
        ("named.safetensors", lambda file: Path(file).write_bytes(pickle.dumps(Attack(target)))),
    ):
        write(tmp_path / name)
        with pytest.raises(DataError) as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
    assert not target.exists()


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    for name, value in (
        ("list.pth", [1, 2]),
        ("nested.pth", {"state_dict": {"w": torch.zeros(1)}}),
        ("keys.pth", {1: torch.zeros(1)}),
    ):
        torch.save(value, tmp_path / name)
        with pytest.raises(DataError, match="holds no state dict; expected tensors by name"):
            read_weights(tmp_path / name)
    for name in ("a.pth", "a.safetensors"):
        for content in (b"", b"hello", bytes(1000)):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError) as caught:
                read_weights(tmp_path / name)
            assert "\n" not in str(caught.value)
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(DataError, match="is no file; expected weights"):
            read_weights(path)


@pytest.mark.parametrize(
    "error", [URLError("no route"), TimeoutError("late"), RuntimeError('invalid hash value (expected "0676ba61")')]
)
def test_without_a_network(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(DataError, match=r"could not be downloaded .* bring the file and name it with --weights") as caught:
        from_imagenet("squeezenet1_1", None, WNIDS)
    assert "\n" not in str(caught.value)


def test_a_student_of_a_run_becomes_a_teacher(tmp_path: Path, run: RunFolder, dataset: DatasetFolder) -> None:
    classes = [entry.wnid for entry in dataset.classes]
    recipe = small_recipe()
    for index, name in enumerate(NAMES):
        candidate = from_run(run, name, classes)
        assert candidate.architecture == name
        folder = write_measured(tmp_path / name, candidate, dataset, recipe, CPU, SILENT)
        value = run.metrics()[-1]["val"]["students"][index]
        assert folder.info.accuracy == {"top1": value["top1"], "top5": value["top5"]}, "as the run itself measured"
        opened = TeacherFolder.open(tmp_path / name)
        assert opened.info.classes == tuple(classes)
        stored = run.load().tensors
        assert all(torch.equal(v, stored[f"student.{index}.{k}"]) for k, v in opened.weights().items())
        frozen = FrozenTeacher.load(opened, device=CPU, batch=4, precision="float32", image_px=32)
        assert frozen.targets(torch.rand(3, 3, 32, 32)).logits.shape == (3, 4)


def test_which_student_must_be_named(run: RunFolder, dataset: DatasetFolder) -> None:
    classes = [entry.wnid for entry in dataset.classes]
    for student in (None, "resnet50"):
        with pytest.raises(RunError, match=f"holds the students {', '.join(NAMES)}"):
            from_run(run, student, classes)


def test_a_run_on_other_classes_is_refused(run: RunFolder) -> None:
    with pytest.raises(MismatchError, match="num_classes: stored 4, wanted 5"):
        from_run(run, NAMES[0], list("abcde"))
    with pytest.raises(MismatchError, match="class 2: stored 'cat', wanted 'cow'"):
        from_run(run, NAMES[0], ["ant", "bee", "cow", "dog"])


@pytest.mark.parametrize("architecture", ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_fit_s_candidate_of_any_architecture(tmp_path: Path, dataset: DatasetFolder, architecture: str) -> None:
    """A checkpoint's tensors come in no order: nothing may be guessed from the last one."""
    how = small_recipe(f"fit.architecture={architecture}", "fit.epochs=1").for_teacher()
    train(Job(recipe=how, data=dataset.path, out=tmp_path / "run", device=CPU))
    candidate = from_run(RunFolder.open(tmp_path / "run"), None, [entry.wnid for entry in dataset.classes])
    folder = write_measured(tmp_path / "teacher", candidate, dataset, how, CPU, SILENT)
    assert folder.info.architecture == architecture
    assert folder.info.made["student"] == architecture


def test_nothing_to_measure_on(tmp_path: Path, run: RunFolder, dataset: DatasetFolder) -> None:
    val = dataset.split("val")
    nothing = replace(val, excluded=np.ones(val.num_samples, np.bool_))
    bare = replace(dataset, splits=dataset.splits | {"val": nothing})
    candidate = from_run(run, NAMES[0], [entry.wnid for entry in dataset.classes])
    with pytest.raises(DataError, match="has no validation images"):
        write_measured(tmp_path / "teacher", candidate, bare, small_recipe(), CPU, SILENT)
    assert not (tmp_path / "teacher").exists()


def test_a_size_that_the_network_cannot_take(tmp_path: Path, dataset: DatasetFolder) -> None:
    model = torchvision.models.get_model("vit_b_32", num_classes=4)
    candidate = teacher_maker.Candidate(architecture="vit_b_32", weights=model.state_dict(), made={})
    with pytest.raises(ConfigError, match=r"vit_b_32 cannot take 32 px images .* change views\.size_px"):
        write_measured(tmp_path / "teacher", candidate, dataset, small_recipe(), CPU, SILENT)
