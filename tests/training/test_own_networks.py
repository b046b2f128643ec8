"""Networks from elsewhere in a run: a teacher of its own size and preprocessing, students with theirs, frozen ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

from tests.factories import small_recipe, write_small_teacher
from tests.training.runs import checkpoint_hash, checkpoint_tensors
from udkd.augment.apply import apply
from udkd.augment.preprocessing import IMAGENET, Preprocessing
from udkd.augment.view_table import EpochViews
from udkd.config.recipe import Recipe
from udkd.data.backends.registry import open_backend
from udkd.data.dataset import DatasetFolder
from udkd.models.architectures import default_preprocessing
from udkd.models.build import build
from udkd.teacher.cache.build import build_cache
from udkd.teacher.cache.reader import Cache
from udkd.teacher.cache.verify import compare_with_teacher
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.sources import NoTargets
from udkd.training.build_step import build_step
from udkd.training.evaluate import evaluate
from udkd.training.make_teacher import evaluate_and_write, from_weights
from udkd.training.run_folder import RunFolder
from udkd.training.schedule import learning_rates
from udkd.training.student import make_students
from udkd.training.trained import TrainedClassifier
from udkd.training.trainer import TrainJob, train
from udkd.utils.errors import ConfigError, DataError, MismatchError
from udkd.utils.progress import SILENT

CPU = torch.device("cpu")
DATASET_IMAGES = {"per_class": 12, "val_per_class": 3}
OWN = "tests.models.own_models:make"
VIT = "timm/test_vit"
STUDENTS = (
    f"students=[{{architecture='{OWN}', lr=0.01}}, {{architecture='squeezenet1_1', lr=0.01}},"
    "{architecture='timm/test_resnet', lr=0.01, mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.25]}]"
)


def own_recipe(*settings: str) -> Recipe:
    return small_recipe("teacher.size_px=40", "train.epochs=2", STUDENTS, *settings)


@pytest.fixture(scope="module")
def own_teacher(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder) -> TeacherFolder:
    """A network of another size, interpolation and normalisation than the students', with confident predictions."""
    weights = build(OWN, 4, image_px=40, seed=0).state_dict()
    weights["fc.weight"] = weights["fc.weight"] * 20
    classes = [entry.wnid for entry in dataset.classes]
    preprocessing = default_preprocessing(OWN)
    folder = tmp_path_factory.mktemp("own") / "teacher"
    return write_small_teacher(folder, weights, OWN, classes, image_px=40, resize_px=45, preprocessing=preprocessing)


@pytest.fixture(scope="module")
def timm_teacher(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder) -> TeacherFolder:
    """timm's smallest vision transformer with its own preprocessing, at 48 px."""
    weights = build(VIT, 4, image_px=48, seed=0).state_dict()
    weights["head.weight"] = weights["head.weight"] * 40
    classes, preprocessing = [entry.wnid for entry in dataset.classes], default_preprocessing(VIT)
    folder = tmp_path_factory.mktemp("timm") / "teacher"
    return write_small_teacher(folder, weights, VIT, classes, image_px=48, resize_px=54, preprocessing=preprocessing)


@pytest.mark.parametrize(("views", "name", "size_px"), [("'eval'", "own_teacher", 40), ("2", "timm_teacher", 48)])
def test_cached_equals_live_bit_for_bit(
    tmp_path: Path, dataset: DatasetFolder, request: pytest.FixtureRequest, views: str, name: str, size_px: int
) -> None:
    teacher: TeacherFolder = request.getfixturevalue(name)
    settings = [f"teacher.views={views}", f"teacher.size_px={size_px}"]
    recipe, live = own_recipe(*settings), own_recipe(*settings, 'teacher.source="live"')
    built = build_cache(tmp_path / "cache", dataset=dataset, teacher=teacher, recipe=recipe, device=CPU)
    key = built.cache.key
    assert key.normalisation == teacher.info.preprocessing.key_values
    assert key.normalisation["interpolation"] == "bicubic"
    if views == "2":
        assert (key.views["size_px"], key.teacher_size_px) == (32, 48)
    else:
        assert (key.views["size_px"], key.views["resize_px"], key.teacher_size_px) == (40, 45, 0)
        assert "teacher_size_px" not in key.to_json()
    options = {"data": dataset.path, "device": CPU, "teacher": teacher.path}
    train(TrainJob(recipe=recipe, out=tmp_path / "cached", cache=built.cache.folder, **options))
    train(TrainJob(recipe=live, out=tmp_path / "live", **options))
    assert checkpoint_hash(tmp_path / "cached") == checkpoint_hash(tmp_path / "live")

    compared = compare_with_teacher(
        Cache.open(tmp_path / "cache"), dataset=dataset, teachers=[teacher], count=40, seed=0, device=CPU
    )
    assert compared.worst is None
    smaller = small_recipe(f"teacher.views={views}", "train.epochs=2", STUDENTS)
    with pytest.raises(MismatchError, match=rf"teacher\.size_px={size_px}"):
        train(TrainJob(recipe=smaller, out=tmp_path / "refused", cache=built.cache.folder, **options))


def test_a_cached_target_is_the_networks_own(dataset: DatasetFolder, own_teacher: TeacherFolder, tmp_path: Path) -> None:
    """By hand: the students' window and flip, rendered at 40 px with the teacher's interpolation and normalisation."""
    recipe = own_recipe("teacher.views=1", "teacher.logits_dtype='float32'")
    cache = build_cache(tmp_path / "c", dataset=dataset, teacher=own_teacher, recipe=recipe, device=CPU).cache
    network = build(OWN, 4, image_px=40, seed=0).eval()
    network.load_state_dict(own_teacher.weights())
    split = dataset.split("train")
    views = EpochViews(recipe.views.spec, recipe.views.seed, split, CPU)
    backend = open_backend("auto", split, CPU)
    batch = next(backend.epoch(split.ids[:8], 8))
    backend.close()
    spec = replace(recipe.views.spec, size_px=40)
    x_BCHW = apply(batch.canvas, views.table(0).gather(batch.ids), spec, own_teacher.info.preprocessing)
    with torch.no_grad():
        wanted_BC = network(x_BCHW)
    stored_BC = torch.from_numpy(cache.targets(0)[0][split.ids[:8]].copy())
    torch.testing.assert_close(stored_BC, wanted_BC - wanted_BC.amax(1, keepdim=True), rtol=1e-4, atol=1e-4)


def test_students_are_normalised_each_for_itself(dataset: DatasetFolder) -> None:
    """One view of a batch, three normalisations: each student's logits are those of its own input."""
    recipe = own_recipe("loss.beta=0.0", "views.interpolation='bicubic'")
    assert [recipe.student_preprocessing(index).mean for index in range(3)] == [(0.5, 0.4, 0.3), IMAGENET.mean, (0.5, 0.5, 0.5)]
    students = make_students(recipe, 4, CPU)
    split = dataset.split("train")
    views = EpochViews(recipe.views.spec, recipe.views.seed, split, CPU)
    backend = open_backend("auto", split, CPU)
    batch = next(backend.epoch(split.ids[:8], 8))
    backend.close()
    table = views.table(0).gather(batch.ids)
    step = build_step(recipe, recipe.views.spec, students, NoTargets(), CPU)
    inputs = step.augment(batch.canvas, table)
    assert len(inputs) == 3
    with torch.no_grad():
        for student in students:
            student.model.eval()
        logits, _, _ = step.forward_loss(inputs, batch.labels, None, None, torch.ones(3, 3))
        for student, logits_BC in zip(students, logits, strict=True):
            preprocessing = recipe.student_preprocessing(student.index)
            assert preprocessing.interpolation == "bicubic"
            wanted_BC = student.model(apply(batch.canvas, table, recipe.views.spec, preprocessing))
            assert torch.equal(logits_BC, wanted_BC)


def test_evaluation_uses_each_networks_preprocessing(
    tmp_path: Path, dataset: DatasetFolder, own_teacher: TeacherFolder
) -> None:
    """The scores of a run equal those of its networks as they are exported, also for the mean of their probabilities."""
    recipe = own_recipe('teacher.source="live"', "train.epochs=1")
    options = {"data": dataset.path, "device": CPU, "teacher": own_teacher.path}
    train(TrainJob(recipe=recipe, out=tmp_path / "run", **options))
    result = evaluate(tmp_path / "run", teacher=own_teacher.path)
    run, split = RunFolder.open(tmp_path / "run"), dataset.split("val")
    measured = evaluate_and_write(
        tmp_path / "again",
        from_weights(OWN, own_teacher.path / "weights.safetensors", [entry.wnid for entry in dataset.classes]),
        dataset,
        recipe,
        CPU,
        SILENT,
    )
    assert measured.info.preprocessing == own_teacher.info.preprocessing
    assert measured.info.accuracy["top1"] == result["teacher"]["top1"]
    views, backend = EpochViews(recipe.evaluation_spec, 0, split, CPU), open_backend("auto", split, CPU)
    (batch,) = backend.epoch(split.ids, len(split.ids))
    backend.close()
    table = views.table(0).gather(batch.ids)
    for name, stored in [*((entry["name"], entry) for entry in result["students"]), ("ensemble", result["ensemble"])]:
        trained = TrainedClassifier.load(run, None if name == "ensemble" else name, ensemble=name == "ensemble")
        with torch.no_grad():
            logits_BC = trained.model(apply(batch.canvas, table, views.spec, trained.preprocessing))
        loss = torch.nn.functional.cross_entropy(logits_BC, batch.labels).item()
        assert loss == pytest.approx(stored["loss"], rel=1e-4), name


def test_frozen_layers_stay(tmp_path: Path, dataset: DatasetFolder) -> None:
    recipe = small_recipe(
        f"students=[{{architecture='{OWN}', lr=0.1, frozen=['module.*']}}, {{architecture='{OWN}', name='all', lr=0.1}}]",
        "loss.beta=0.0",
        "train.epochs=1",
    )
    before = [student.model.state_dict() for student in make_students(recipe, 4, CPU)]
    train(TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / "run", device=CPU))
    after = checkpoint_tensors(tmp_path / "run")
    moved = [
        {name for name, value in values.items() if not torch.equal(after[f"student.{index}.{name}"], value)}
        for index, values in enumerate(before)
    ]
    assert moved[0] == {"fc.weight", "fc.bias"}, "the frozen batch norm keeps its statistics too"
    assert {"module.0.weight", "module.1.running_mean", "fc.weight"} <= moved[1]
    assert not any(name.startswith("momentum.0.module") for name in after)
    for pattern, message in (("layer9.*", "no parameter of .* matches; .* such as module.0.weight"), ("*", "freezes all of")):
        recipe = small_recipe(f"students=[{{architecture='{OWN}', frozen=['{pattern}']}}]", "loss.gamma=0.0")
        with pytest.raises(ConfigError, match=message):
            make_students(recipe, 4, CPU)


def test_a_student_starts_from_a_file(tmp_path: Path, dataset: DatasetFolder) -> None:
    """A fine-tuned network keeps its body; its head too where it has this data's classes."""
    for rows, kept in ((4, True), (9, False)):
        weights = build(OWN, rows, image_px=32, seed=5).state_dict()
        save_file(weights, tmp_path / f"{rows}.safetensors")
        recipe = small_recipe(
            f"students=[{{architecture='{OWN}', lr=0.0, init_from='{tmp_path / f'{rows}.safetensors'}'}}]",
            "loss.beta=0.0",
            "train.epochs=1",
        )
        train(TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / f"run{rows}", device=CPU))
        after = checkpoint_tensors(tmp_path / f"run{rows}")
        assert torch.equal(after["student.0.module.0.weight"], weights["module.0.weight"])
        assert (kept and torch.equal(after["student.0.fc.weight"], weights["fc.weight"])) == kept
        assert RunFolder.open(tmp_path / f"run{rows}").provenance["starts"]
    assert learning_rates(recipe, 0, 12) == [0.0]


def test_unpublished_pretrained_weights(tmp_path: Path, dataset: DatasetFolder) -> None:
    recipe = small_recipe(f"students=[{{architecture='{OWN}', pretrained=true}}]", "loss.beta=0.0")
    with pytest.raises(ConfigError, match="which has no published weights"):
        train(TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / "run", device=CPU))
    assert not (tmp_path / "run").exists()
    recipe = small_recipe("students=[{architecture='resnet18', pretrained=true, init_from_student='a'}]", "loss.beta=0.0")
    with pytest.raises(ConfigError, match="init_from_student is a and pretrained has no students"):
        train(TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / "run", device=CPU))
    with pytest.raises(ConfigError, match="pretrained is true and init_from is set"):
        small_recipe("students=[{architecture='resnet18', pretrained=true, init_from='x.pth'}]")


def test_importing_a_network_of_ones_own(tmp_path: Path, dataset: DatasetFolder) -> None:
    """Its own normalisation, or the one that is given; a note about the size, or where nothing says how it is normalised."""
    classes = [entry.wnid for entry in dataset.classes]
    file = tmp_path / "w.pth"
    torch.save(build(OWN, 4, image_px=32, seed=1).state_dict(), file)
    candidate = from_weights(OWN, file, classes, image_px=32)
    assert candidate.preprocessing == default_preprocessing(OWN)
    assert any("was trained with images of 40 px and gets 32 px" in note for note in candidate.notes)
    half = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert from_weights(OWN, file, classes, image_px=40, preprocessing=half).preprocessing == half
    returned = from_weights(OWN, None, classes, image_px=40)
    assert returned.made["weights"] == f"what {OWN} returns"
    torch.save(build("tests.models.own_models:bare", 4, image_px=32, seed=1).state_dict(), file)
    bare = from_weights("tests.models.own_models:bare", file, classes, image_px=32)
    assert any("says nothing of its normalisation" in note for note in bare.notes)


def test_a_network_from_a_folder_of_timms(tmp_path: Path, dataset: DatasetFolder) -> None:
    """timm's save_for_hf: its outputs are matched by the label names, and the teacher does not depend on the folder."""
    network = timm.create_model("test_resnet", num_classes=4)
    save_for_hf(network, tmp_path / "hub", model_config={"num_classes": 4, "label_names": ["dog", "cat", "bee", "ant"]})
    classes = [entry.wnid for entry in dataset.classes]
    assert classes == ["ant", "bee", "cat", "dog"]
    candidate = from_weights(f"timm/local-dir:{tmp_path / 'hub'}", None, classes, image_px=48)
    assert candidate.architecture == "timm/test_resnet"
    assert torch.equal(candidate.weights["fc.weight"], network.state_dict()["fc.weight"][[3, 2, 1, 0]])
    assert candidate.preprocessing == default_preprocessing("timm/test_resnet")


def test_a_teacher_is_fitted_in_its_own_size() -> None:
    recipe = own_recipe("teacher.size_px=48", "teacher.resize_px=50").for_teacher()
    assert (recipe.views.size_px, recipe.evaluation.resize_px, recipe.teacher_px) == (48, 50, 48)


def test_weights_of_another_input_size_name_that_size(tmp_path: Path, dataset: DatasetFolder) -> None:
    classes = [entry.wnid for entry in dataset.classes]
    state = build("timm/test_vit", 4, image_px=64, seed=0).state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "vit.pth")
    for image_px in (32, 160):
        with pytest.raises(DataError, match=rf"for 64 px images, and its input has {image_px} px .*set teacher\.size_px=64"):
            from_weights("timm/test_vit", tmp_path / "vit.pth", classes, image_px=image_px)
    folder = write_small_teacher(tmp_path / "teacher", state, "timm/test_vit", classes, image_px=64)
    with pytest.raises(DataError, match=r"weights for 64 px images and gets 32 px .*set teacher\.size_px=64"):
        build_cache(tmp_path / "cache", dataset=dataset, teacher=folder, recipe=small_recipe(), device=CPU)


def test_the_notes_on_a_student_s_weights_name_its_own_settings(tmp_path: Path, dataset: DatasetFolder) -> None:
    classes = [entry.wnid for entry in dataset.classes]
    for architecture in ("timm/test_vit", "tests.models.own_models:bare"):
        torch.save(build(architecture, 4, image_px=32, seed=0).state_dict(), tmp_path / "weights.pth")
        candidate = from_weights(architecture, tmp_path / "weights.pth", classes, image_px=32, new_head=True)
        assert not any("--" in note for note in candidate.notes)
        assert any("160 px" in note or "mean and std" in note for note in candidate.notes)
