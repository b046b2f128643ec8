"""Teachers from runs, from pretrained weights files, and from files that are something else."""

import os
import pickle
import random
import tarfile
import zipfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from tests.factories import CLASSES, small_recipe
from udkd.data.dataset import DatasetFolder
from udkd.models.build import build
from udkd.models.state_dicts import strip_wrappers
from udkd.models.weight_files import read_weights
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.frozen import FrozenTeacher
from udkd.training import make_teacher as teacher_maker
from udkd.training.make_teacher import evaluate_and_write, from_run, from_weights, imagenet_rows
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import TrainJob, train
from udkd.utils.errors import ConfigError, DataError, MismatchError, RunError
from udkd.utils.progress import SILENT

NAMES = small_recipe().student_names()
CPU = torch.device("cpu")
WNIDS = ("n02085620", "n01440764", "n13133613", "n01614925")  # in no order: rows 151, 0, 998, 22
HEADS = {"shufflenet_v2_x0_5": "fc", "squeezenet1_1": "classifier.1", "resnet50": "fc", "mobilenet_v2": "classifier.1"}
DATASET_IMAGES = {"per_class": 4, "val_per_class": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder) -> RunFolder:
    """Hard labels alone, two students, one epoch."""
    recipe = small_recipe("loss.beta=0", 'teacher.source="none"', "train.epochs=1")
    out = tmp_path_factory.mktemp("run") / "run"
    train(TrainJob(recipe=recipe, data=dataset.path, out=out, device=CPU))
    return RunFolder.open(out)


def imagenet_model(architecture: str) -> torch.nn.Module:
    torch.manual_seed(3)
    model = torchvision.models.get_model(architecture, weights=None, num_classes=1000)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.0)  # distinguishable biases
    return model.eval()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "architecture",
    [
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
        *(pytest.param(large, marks=pytest.mark.long) for large in ("resnet50", "mobilenet_v2")),
    ],
)
def test_the_rows_of_the_head_are_those_of_the_classes(tmp_path: Path, architecture: str, ending: str) -> None:
    model = imagenet_model(architecture)
    file = tmp_path / f"weights{ending}"
    torch.save(model.state_dict(), file) if ending == ".pth" else save_file(model.state_dict(), file)
    rows = imagenet_rows(WNIDS)
    assert rows == [151, 0, 998, 22]
    candidate = from_weights(architecture, file, WNIDS)
    picked = build(architecture, len(WNIDS), image_px=64, seed=0)
    picked.load_state_dict(dict(candidate.weights))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, wanted = picked.eval()(x), model(x)[:, rows]
    # The products are the same; a smaller head may sum them in another order.
    torch.testing.assert_close(logits, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))
    state = model.state_dict()
    for name, value in candidate.weights.items():
        assert torch.equal(value, state[name][rows] if name.startswith(HEADS[architecture] + ".") else state[name]), name
    assert candidate.made["rows_of_1000"] == rows


def test_classes_that_are_not_imagenet_s() -> None:
    with pytest.raises(DataError, match=r"2 of 3 classes are not ImageNet's \(cat, dog\); expected wnids"):
        imagenet_rows(["n01440764", "cat", "dog"])


def test_wrong_weights_are_one_short_line(tmp_path: Path) -> None:
    file = tmp_path / "squeezenet.pth"
    model = imagenet_model("squeezenet1_1")
    torch.save(model.state_dict(), file)
    with pytest.raises(DataError, match=r"does not fit resnet18 \(it lacks conv1\.weight; it holds features\.0") as caught:
        from_weights("resnet18", file, WNIDS)
    assert len(str(caught.value)) < 350
    small = torchvision.models.get_model("squeezenet1_1", num_classes=100).state_dict()
    torch.save(small, file)
    with pytest.raises(
        DataError, match=r"has a head of 100 rows and this data 4 classes; expected as many, or ImageNet's 1,000"
    ):
        from_weights("squeezenet1_1", file, WNIDS)
    torch.save(model.state_dict() | {"more": torch.zeros(1)}, file)
    with pytest.raises(DataError, match="it also holds more"):
        from_weights("squeezenet1_1", file, WNIDS)
    with pytest.raises(ConfigError, match="'resnet5' is unknown; expected a name of torchvision, timm/NAME or"):
        from_weights("resnet5", file, WNIDS)


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_a_network_with_several_outputs_is_refused_before_the_download() -> None:
    with pytest.raises(ConfigError, match="auxiliary"):
        from_weights("googlenet", None, WNIDS)


SMALL = "squeezenet1_1"  # 52 weights
HEAD = "classifier.1.weight"


def own_state(rows: int = 4, **options: object) -> dict[str, torch.Tensor]:
    """A network of 4 other classes, with distinguishable rows of the head."""
    state = build(SMALL, rows, image_px=64, seed=1).state_dict()
    state[HEAD] = state[HEAD] + torch.arange(float(rows)).view(-1, 1, 1, 1)
    return state


def test_weights_as_people_save_them(tmp_path: Path) -> None:
    """Wrapped, prefixed, in half precision, alone or beside an optimiser: the same teacher."""
    state, file = own_state(), tmp_path / "w.pth"
    optimiser = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    module = {f"module.{name}": value for name, value in state.items()}
    inner = {name.replace("features.", "features.module."): value for name, value in state.items()}
    for value in (
        state,
        module,
        inner,  # nn.DataParallel around the features alone, as old ImageNet scripts had it
        {f"_orig_mod.module.{name}": value for name, value in state.items()},
        {"epoch": 90, "arch": SMALL, "state_dict": module, "best_acc1": torch.tensor(70.1), "optimizer": optimiser},
        {"model": state, "args": Namespace(lr=0.1)},
        {"checkpoint": {"model_state_dict": state}},
        {"state_dict": {f"model.{name}": value for name, value in state.items()} | {"criterion.weight": torch.ones(4)}},
        {"ema": {"n_averaged": torch.tensor(5)} | module},
        state | {"total_ops": torch.zeros(1), "features.0.0.total_params": torch.zeros(1)},  # thop counted it
    ):
        torch.save(value, file)
        candidate = from_weights(SMALL, file, CLASSES)
        assert all(torch.equal(candidate.weights[name], state[name]) for name in state)
        assert candidate.made["rows"] == [0, 1, 2, 3]
        assert any("as many as this data has classes: they are taken in sorted order" in note for note in candidate.notes)
    torch.save({name: value.double() for name, value in state.items()}, file)
    assert "float64 weights are converted to float32" in from_weights(SMALL, file, CLASSES).notes
    swapped = from_weights(SMALL, file, CLASSES[::-1])
    assert torch.equal(swapped.weights[HEAD], state[HEAD].flip(0)), "the rows are in sorted order, whatever the data's is"


def test_several_state_dicts_need_a_choice(tmp_path: Path) -> None:
    state, file = own_state(), tmp_path / "w.pth"
    average = {name: value + 1 for name, value in state.items()}
    torch.save({"model": state, "model_ema": average, "other": {"w": torch.zeros(1)}}, file)
    with pytest.raises(DataError, match=r"weights of 2 networks \(model, model_ema\); expected one; name it with --entry"):
        from_weights(SMALL, file, CLASSES)
    assert torch.equal(from_weights(SMALL, file, CLASSES, entry="model_ema").weights[HEAD], average[HEAD])
    with pytest.raises(DataError, match=r"has no entry 'ema' of weights \(it has model, model_ema\)"):
        from_weights(SMALL, file, CLASSES, entry="ema")
    torch.save(state | {f"ema_model.{name}": value for name, value in average.items()}, file)
    with pytest.raises(DataError, match=r"weights of 2 networks \(\., ema_model\)"):
        from_weights(SMALL, file, CLASSES)
    assert torch.equal(from_weights(SMALL, file, CLASSES, entry=".").weights[HEAD], state[HEAD])


def test_names_that_a_file_records_decide_over_its_rows(tmp_path: Path) -> None:
    state, file = own_state(), tmp_path / "w.pth"
    for recorded in ({"class_to_idx": {"dog": 0, "ant": 1, "cat": 2, "bee": 3}}, {"classes": ["dog", "ant", "cat", "bee"]}):
        torch.save({"state_dict": state, **recorded}, file)
        assert torch.equal(from_weights(SMALL, file, CLASSES).weights[HEAD], state[HEAD][[1, 3, 2, 0]])
    with pytest.raises(DataError, match="records outputs such as dog, ant, cat and none is cow"):
        from_weights(SMALL, file, ("ant", "bee", "cow", "dog"))


def test_impossible_weights_are_refused(tmp_path: Path) -> None:
    state, file = own_state(), tmp_path / "w.pth"
    for change, message in (
        (lambda value: value * float("nan"), "not finite in float32"),
        (lambda value: value.double() * 1e300, "not finite in float32"),
        (lambda value: value.to(torch.complex64), "is of complex64, expected plain float32"),
        (lambda value: value.to(torch.int32), "is of int32, expected float32"),
        (lambda value: value.to_sparse(), "is of sparse_coo, expected plain float32"),
    ):
        torch.save(state | {HEAD: change(state[HEAD])}, file)
        with pytest.raises(DataError, match=f"{HEAD}.*{message}"):
            from_weights(SMALL, file, CLASSES)
    giant = torch.zeros(1).expand(10**12)  # four bytes in the file that claim four terabytes
    torch.save(state | {"classifier.1.bias": giant}, file)
    with pytest.raises(DataError, match=r"classifier\.1\.bias is \[1000000000000\], expected \[4\]"):
        from_weights(SMALL, file, CLASSES)


def test_weights_without_the_counters_of_batch_norm(tmp_path: Path) -> None:
    state = imagenet_model("shufflenet_v2_x0_5").state_dict()
    torch.save({name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}, tmp_path / "w.pth")
    weights = from_weights("shufflenet_v2_x0_5", tmp_path / "w.pth", WNIDS).weights
    assert weights.keys() == state.keys()
    assert all(value == 0 for name, value in weights.items() if name.endswith("num_batches_tracked"))


def test_names_that_torchvisions_published_files_still_have() -> None:
    for published, present in (
        ("features.denseblock1.denselayer2.norm.1.weight", "features.denseblock1.denselayer2.norm1.weight"),
        ("encoder.layers.encoder_layer_3.mlp.linear_2.bias", "encoder.layers.encoder_layer_3.mlp.3.bias"),
        ("module.layer1.0.conv1.weight", "layer1.0.conv1.weight"),
    ):
        assert list(strip_wrappers({published: torch.zeros(1)})) == [present]
    both = {"conv1.weight": torch.zeros(1), "module.conv1.weight": torch.ones(1)}
    assert strip_wrappers(both) == both, "two of one name stay apart"


def test_flipped_bits_of_a_zip_are_found_and_files_without_a_checksum_are_named(tmp_path: Path) -> None:
    file, rng = tmp_path / "w.pth", random.Random(0)
    state = {"w": torch.arange(200.0)}
    torch.save(state, file)
    good = file.read_bytes()
    offset = good.index(state["w"].numpy().tobytes())
    for _ in range(20):
        bad = bytearray(good)
        bad[offset + rng.randrange(800)] ^= 1 << rng.randrange(8)
        file.write_bytes(bad)
        with pytest.raises(DataError, match=r"is damaged \(Bad CRC-32 .*; expected the bytes that were saved"):
            read_weights(file)
    for cut in (10, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:cut])
        with pytest.raises(DataError):
            read_weights(file)
    torch.save(state, file, _use_new_zipfile_serialization=False)
    assert "before 1.6 has no checksum" in read_weights(file).unchecked
    save_file(state, file)
    assert "has no checksum" in read_weights(file).unchecked
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, file)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_weights(file).unchecked == "it was saved without checksums"


def test_files_that_need_code_to_load_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"state_dict": {"w": torch.zeros(1)}, "best": np.float64(3)}, file)
    with pytest.raises(DataError, match=r"holds a Python object \(numpy.*scalar\), which only running its code could read"):
        read_weights(file)
    torch.save(torch.nn.Linear(2, 2), file)
    with pytest.raises(DataError, match=r"holds a Python object \(torch\.nn\.modules\.linear\.Linear\)"):
        read_weights(file)
    for names, message in (
        (["x/constants.pkl", "x/data.pkl"], "TorchScript archive"),
        (["model.pth"], r"zip of model\.pth; .*unpack"),
    ):
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, b"")
        with pytest.raises(DataError, match=message):
            read_weights(file)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10**7))
    with pytest.raises(DataError, match="claims to hold more than 50 times"):
        read_weights(file)
    with tarfile.open(file, "w") as tar:
        tar.addfile(tarfile.TarInfo("pickle"))
    with pytest.raises(DataError, match=r"is a tar, as PyTorch wrote before 0\.1\.10"):
        read_weights(file)
    os.mkfifo(tmp_path / "fifo.pth")
    with pytest.raises(DataError, match="is not a file"):
        read_weights(tmp_path / "fifo.pth")
    loop: dict[str, object] = {"w": torch.zeros(1)}
    loop["itself"] = loop
    torch.save(loop, file)
    assert list(read_weights(file).entries) == [""]


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
        ("empty.pth", {"state_dict": {}, "epoch": 3}),
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
        with pytest.raises(DataError, match="is not a file; expected weights"):
            read_weights(path)


@pytest.mark.parametrize(
    "error", [URLError("no route"), TimeoutError("late"), RuntimeError('invalid hash value (expected "0676ba61")')]
)
def test_without_a_network(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(DataError, match=r"could not be downloaded .* copy the file here and name it with --weights") as caught:
        from_weights("squeezenet1_1", None, WNIDS)
    assert "\n" not in str(caught.value)


def test_a_student_of_a_run_becomes_a_teacher(tmp_path: Path, run: RunFolder, dataset: DatasetFolder) -> None:
    classes = [entry.wnid for entry in dataset.classes]
    recipe = small_recipe()
    for index, name in enumerate(NAMES):
        candidate = from_run(run, name, classes)
        assert candidate.architecture == name
        folder = evaluate_and_write(tmp_path / name, candidate, dataset, recipe, CPU, SILENT)
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


@pytest.mark.parametrize(
    "architecture", ["squeezenet1_1", "shufflenet_v2_x0_5", pytest.param("resnet18", marks=pytest.mark.long)]
)
def test_a_fitted_candidate_of_any_architecture(tmp_path: Path, dataset: DatasetFolder, architecture: str) -> None:
    """A checkpoint's tensors are in no order: nothing may be guessed from the last one."""
    fit_recipe = small_recipe(f"fit.architecture={architecture}", "fit.epochs=1").for_teacher()
    train(TrainJob(recipe=fit_recipe, data=dataset.path, out=tmp_path / "run", device=CPU))
    candidate = from_run(RunFolder.open(tmp_path / "run"), None, [entry.wnid for entry in dataset.classes])
    folder = evaluate_and_write(tmp_path / "teacher", candidate, dataset, fit_recipe, CPU, SILENT)
    assert folder.info.architecture == architecture
    assert folder.info.made["student"] == architecture


def test_nothing_to_measure_on(tmp_path: Path, run: RunFolder, dataset: DatasetFolder) -> None:
    val = dataset.split("val")
    nothing = replace(val, excluded=np.ones(val.num_samples, np.bool_))
    bare = replace(dataset, splits=dataset.splits | {"val": nothing})
    candidate = from_run(run, NAMES[0], [entry.wnid for entry in dataset.classes])
    with pytest.raises(DataError, match="has no validation images"):
        evaluate_and_write(tmp_path / "teacher", candidate, bare, small_recipe(), CPU, SILENT)
    assert not (tmp_path / "teacher").exists()


def test_a_size_that_the_network_cannot_take(tmp_path: Path, dataset: DatasetFolder) -> None:
    candidate = teacher_maker.Candidate(architecture="vit_b_32", weights={}, made={})
    with pytest.raises(ConfigError, match=r"vit_b_32 cannot take 32 px images .* change views\.size_px"):
        evaluate_and_write(tmp_path / "teacher", candidate, dataset, small_recipe(), CPU, SILENT)
