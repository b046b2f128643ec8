"""Exported files against the checkpoint and against other runtimes; predictions against evaluation."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from tests.cli.commands import Call, refused
from tests.factories import make_dataset, make_teacher, rewrite_json, small_recipe
from udkd.augment.view_table import EpochViews
from udkd.augment.views import ViewSpec
from udkd.data.backends.registry import open_backend
from udkd.data.dataset import DatasetFolder
from udkd.data.image_files import LONGEST_PX, read_image_file
from udkd.export.export import MAX_DEVIATION, ExportResult, _notes, _require_equal, export
from udkd.export.graphs import export_graphs, onnx_classifier, program_classifier
from udkd.export.predict import evaluation_input, predict
from udkd.training.checkpoints import Checkpoint
from udkd.training.evaluate import evaluate
from udkd.training.run_folder import RunFolder
from udkd.training.scoring import score
from udkd.training.trained import ENSEMBLE, FlipAveraged, TrainedClassifier
from udkd.training.trainer import TrainJob, train
from udkd.utils.errors import DataError, MismatchError, RunError
from udkd.utils.progress import SILENT

CPU = torch.device("cpu")
DATASET_IMAGES = {"per_class": 12, "val_per_class": 6}


def trained(out: Path, dataset: DatasetFolder, students: str, epochs: int) -> RunFolder:
    settings = ("loss.beta=0.0", "teacher.source='none'", f"train.epochs={epochs}", f"students={students}")
    assert train(TrainJob(recipe=small_recipe(*settings), data=dataset.path, out=out, device=CPU)).finished
    return RunFolder.open(out)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder) -> RunFolder:
    students = "[{architecture='squeezenet1_1', name='a/b', lr=0.02}, {architecture='squeezenet1_0', name='c', lr=0.02}]"
    return trained(tmp_path_factory.mktemp("run") / "run", dataset, students, epochs=4)


@pytest.fixture(scope="module")
def exported(run: RunFolder) -> ExportResult:
    return export(run, student=None, ensemble=True, int8=True)


def inputs(dataset: DatasetFolder, run: RunFolder, student: str = "c") -> torch.Tensor:
    split, spec = dataset.split("val"), TrainedClassifier.load(run, student, ensemble=False).recipe.evaluation_spec
    return torch.cat(
        [evaluation_input(split.pixels(int(n))[: split.sizes[n, 2], : split.sizes[n, 3]], spec) for n in split.ids]
    )


def by_torchvision(run: RunFolder, architectures: tuple[str, ...]) -> list[nn.Module]:
    """The students, without any code of ours but the checkpoint's reader."""
    tensors, models = run.load().tensors, []
    for index, name in enumerate(architectures):
        models.append(torchvision.models.get_model(name, weights=None, num_classes=4).eval())
        prefix = f"student.{index}."
        models[-1].load_state_dict(
            {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        )
    return models


def averaged(logits: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([one.softmax(-1) for one in logits]).mean(0).log()


def require_scores(done: ExportResult, wanted: dict[str, float]) -> None:
    """Require the ONNX file's scores to be those of the evaluation during training."""
    assert done.accuracy["model.onnx"].top1 == pytest.approx(wanted["top1"])
    assert done.accuracy["model.onnx"].loss == pytest.approx(wanted["loss"], abs=1e-4)


def test_files_predict_as_the_checkpoint(exported: ExportResult, run: RunFolder, dataset: DatasetFolder) -> None:
    """By torchvision alone, from the checkpoint's bytes; and as evaluation scores them."""
    x_BCHW = inputs(dataset, run)
    with torch.no_grad():
        wanted_BC = averaged([network(x_BCHW) for network in by_torchvision(run, ("squeezenet1_1", "squeezenet1_0"))])
        assert wanted_BC.std() > 0.02  # the logits vary, so their equality means something
        assert torch.allclose(TrainedClassifier.load(run, None, ensemble=True).model(x_BCHW), wanted_BC, atol=MAX_DEVIATION)
        for batch in (1, 7, len(x_BCHW)):
            program = program_classifier((exported.folder / "model.pt2").read_bytes())(x_BCHW[:batch])
            onnx = onnx_classifier((exported.folder / "model.onnx").read_bytes())(x_BCHW[:batch])
            assert torch.allclose(program, wanted_BC[:batch], atol=MAX_DEVIATION)
            assert torch.allclose(onnx, wanted_BC[:batch], atol=MAX_DEVIATION)
    require_scores(exported, run.metrics()[-1]["val"]["ensemble"])


def test_batch_norm_and_mirror_images_are_exported_too() -> None:
    """The paper's students are a long test."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 4))
    plain = nn.Sequential(*layers)
    x_BCHW = torch.rand(4, 3, 16, 16)
    plain(3 * x_BCHW)  # statistics that are not 0 and 1
    model = FlipAveraged(plain).eval().requires_grad_(False)
    wanted_BC = (plain(x_BCHW) + plain(torch.flip(x_BCHW, [3]))) / 2
    assert (wanted_BC - plain(x_BCHW)).abs().max() > 10 * MAX_DEVIATION
    program, onnx = export_graphs(model, 16)
    for actual in (program_classifier(program)(x_BCHW), onnx_classifier(onnx)(x_BCHW)):
        assert (actual - wanted_BC).abs().max() <= MAX_DEVIATION


def test_onnx_by_its_reference_implementation(exported: ExportResult, run: RunFolder, dataset: DatasetFolder) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(exported.folder / "model.onnx")
    onnx.checker.check_model(model)
    x_BCHW = inputs(dataset, run)[:2]
    (actual,) = ReferenceEvaluator(model).run(None, {"images": x_BCHW.numpy()})
    with torch.no_grad():
        assert np.allclose(actual, TrainedClassifier.load(run, None, ensemble=True).model(x_BCHW).numpy(), atol=MAX_DEVIATION)


def test_averaging_is_the_evaluators(run: RunFolder, dataset: DatasetFolder) -> None:
    split = dataset.split("val")
    models = [TrainedClassifier.load(run, name, ensemble=False).model for name in ("a/b", "c")]
    both = TrainedClassifier.load(run, None, ensemble=True)
    backend = open_backend("folder", split, CPU)
    views = EpochViews(both.recipe.evaluation_spec, 0, split, CPU)
    wanted = score(models, backend, split.ids, views, batch=8, precision="float32").ensemble
    actual = score([both.model], backend, split.ids, views, batch=8, precision="float32").each[0]
    backend.close()
    assert actual.top1 == wanted.top1
    assert actual.loss == pytest.approx(wanted.loss, abs=1e-5)


def test_int8_is_exported_beside_float(exported: ExportResult) -> None:
    assert set(exported.accuracy) == {"model.onnx", "model-int8.onnx"}
    assert exported.bytes["model-int8.onnx"] < 0.4 * exported.bytes["model.onnx"]
    assert abs(exported.accuracy["model-int8.onnx"].top1 - exported.accuracy["model.onnx"].top1) <= 25
    import onnx

    kinds = {node.op_type for node in onnx.load(exported.folder / "model-int8.onnx").graph.node}
    assert "QuantizeLinear" in kinds


def test_notes_suffice_to_rebuild_the_input(exported: ExportResult, dataset: DatasetFolder, run: RunFolder) -> None:
    notes = json.loads((exported.folder / "preprocessing.json").read_text())
    assert [entry["id"] for entry in notes["classes"]] == [entry.wnid for entry in dataset.classes]
    assert notes["input"]["shape"] == ["batch", 3, 32, 32]
    assert notes["steps"][1] == (
        "resize the shorter side to 36 px, bilinear with antialiasing (torchvision's Resize(antialias=True) is within 1 of 255)"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    by_torchvision = v2.Compose([v2.Resize(36, antialias=True), v2.CenterCrop(32)])(torch.from_numpy(pixels).permute(2, 0, 1))
    wanted = v2.functional.normalize(by_torchvision.float() / 255, notes["mean"], notes["std"])
    actual = evaluation_input(pixels, TrainedClassifier.load(run, "c", ensemble=False).recipe.evaluation_spec)[0]
    step = 1 / 255 / min(notes["std"])
    assert (actual - wanted).abs().max() <= 1.01 * step
    assert set(notes["validation"]) == {"model.onnx", "model-int8.onnx"}
    assert notes["mirrored"] is False


def test_a_file_with_other_predictions_is_refused(run: RunFolder, dataset: DatasetFolder) -> None:
    trained = TrainedClassifier.load(run, "c", ensemble=False)
    x_BCHW = inputs(dataset, run)[:4]
    assert _require_equal("same", trained.model, trained, [x_BCHW]) == 0.0
    with pytest.raises(RunError, match=r"model\.onnx differs from the checkpoint"):
        _require_equal("model.onnx", lambda x: trained.model(x) + 1e-3, trained, [x_BCHW])
    with pytest.raises(RunError, match="differs from"):
        _require_equal("model.onnx", lambda x: trained.model(x) * float("nan"), trained, [x_BCHW])


def test_students_are_chosen_by_name(run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"holds the students a/b, c; expected one; name it with --student, or use --ensemble"):
        TrainedClassifier.load(run, None, ensemble=False)
    with pytest.raises(RunError, match="holds no student 'd'; expected one of a/b, c"):
        TrainedClassifier.load(run, "d", ensemble=False)
    with pytest.raises(RunError, match="drop one"):
        TrainedClassifier.load(run, "c", ensemble=True)
    assert TrainedClassifier.load(run, None, ensemble=True).name == ENSEMBLE


def test_averaged_weights_are_taken_where_there_are_some(tmp_path: Path, run: RunFolder) -> None:
    values = run.config
    values["train"]["ema_decay"] = 0.9
    copy = RunFolder.create(tmp_path / "r", values, run.provenance)
    checkpoint = run.load()
    doubled = {
        name.replace("student.", "average.", 1): value * 2 if value.is_floating_point() else value
        for name, value in checkpoint.tensors.items()
        if name.startswith("student.")
    }
    copy.save(Checkpoint(tensors={**checkpoint.tensors, **doubled}, progress=checkpoint.progress))
    for name in ("a/b", "c"):
        original, loaded = (TrainedClassifier.load(folder, name, ensemble=False).model.state_dict() for folder in (run, copy))
        assert all(torch.equal(loaded[key], original[key] * 2) for key in original)


def test_other_data_is_refused_for_the_check(tmp_path: Path, run: RunFolder) -> None:
    other = make_dataset(tmp_path, per_class=5, val_per_class=2)
    with pytest.raises(MismatchError, match="dataset_digest"):
        export(run, student="c", ensemble=False, int8=False, data=other.path)


# Pictures


def pictures(folder: Path) -> dict[str, np.ndarray]:
    """Picture files of many kinds, and the pixels they should give."""
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    grey = rng.integers(0, 256, (20, 30), dtype=np.uint8)
    deep = rng.integers(0, 65536, (20, 30), dtype=np.uint16)
    wanted = {"rgb.png": rgb, "rgb.bmp": rgb, "rgb.webp": rgb, "rgb.tiff": rgb, "rgb.ppm": rgb}
    for name in wanted:
        Image.fromarray(rgb).save(folder / name, **({"lossless": True} if name.endswith("webp") else {}))
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(np.dstack([rgb, grey])).save(folder / "alpha.png")
    few = (rgb // 64 * 64).astype(np.uint8)
    Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(folder / "palette.gif")
    Image.fromarray(rgb).convert("CMYK").save(folder / "cmyk.jpg", quality=100)
    Image.fromarray(rgb).save(folder / "plain.jpg", quality=90)
    wanted["grey.png"] = np.dstack([grey] * 3)
    wanted["deep.png"] = np.dstack([(deep >> 8).astype(np.uint8)] * 3)
    wanted["alpha.png"] = rgb
    for name in ("palette.gif", "cmyk.jpg", "plain.jpg"):
        with Image.open(folder / name) as image:
            wanted[name] = np.asarray(image.convert("RGB"))
    return wanted


def test_pictures_of_any_kind(tmp_path: Path) -> None:
    for name, wanted in pictures(tmp_path).items():
        assert np.array_equal(read_image_file(tmp_path / name), wanted), name


def test_orientation_is_ignored_and_large_pictures_shrink(tmp_path: Path) -> None:
    turned = Image.new("RGB", (40, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image_file(tmp_path / "turned.jpg").shape == (20, 40, 3)
    Image.new("RGB", (3 * LONGEST_PX, 60)).save(tmp_path / "long.png")
    assert read_image_file(tmp_path / "long.png").shape == (20, LONGEST_PX, 3)


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:-3000])
    (tmp_path / "drawing.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("text.jpg", "empty.png", "cut.png", "drawing.eps", "absent.png", "."):
        with pytest.raises(DataError) as caught:
            read_image_file(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert "expected" in str(caught.value)


def test_a_validation_image_is_predicted_as_in_evaluation(tmp_path: Path, run: RunFolder, dataset: DatasetFolder) -> None:
    trained, split = TrainedClassifier.load(run, "c", ensemble=False), dataset.split("val")
    backend = open_backend("folder", split, CPU)
    views = EpochViews(trained.recipe.evaluation_spec, 0, split, CPU)
    seen: list[torch.Tensor] = []

    def listening(x_BCHW: torch.Tensor) -> torch.Tensor:
        seen.append(x_BCHW)
        return trained.model(x_BCHW)

    score([listening], backend, split.ids[:3], views, batch=1, precision="float32")
    backend.close()
    files = []
    for number in split.ids[:3].tolist():
        files.append(tmp_path / f"{number}.jpg")
        files[-1].write_bytes(split.read(number))  # pad keeps a small JPEG's bytes: the source file
    names = [entry.name for entry in dataset.classes]
    for x_BCHW, file, prediction in zip(seen, files, predict(trained, files, names), strict=True):
        assert torch.equal(x_BCHW, evaluation_input(read_image_file(file), trained.recipe.evaluation_spec))
        with torch.no_grad():
            p_C = trained.model(x_BCHW.contiguous())[0].softmax(-1)
        assert [guess.percent for guess in prediction.classes] == pytest.approx(
            (100 * p_C.sort(descending=True).values).tolist()
        )
        percents = {names.index(guess.name): guess.percent for guess in prediction.classes}  # equal ones may be in any order
        assert [percents[index] for index in range(len(names))] == pytest.approx((100 * p_C).tolist())
        assert sum(guess.percent for guess in prediction.classes) == pytest.approx(100)


def test_wide_pictures_fill_the_view() -> None:
    spec = ViewSpec(scheme="centre_squash", size_px=8, resize_px=8, flip=0.0)
    x_1CHW = evaluation_input(np.full((5, 40, 3), 255, np.uint8), spec)
    assert x_1CHW.shape == (1, 3, 8, 8)
    assert x_1CHW.min() > 2  # no black from the canvas


# The paper's students


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder) -> RunFolder:
    """ResNet-18 and MobileNetV2, trained a little."""
    students = "[{architecture='resnet18', lr=0.02}, {architecture='mobilenet_v2', lr=0.02}]"
    return trained(tmp_path_factory.mktemp("papers") / "run", dataset, students, epochs=2)


@pytest.mark.long
@pytest.mark.parametrize("student", ["resnet18", "mobilenet_v2", None])
def test_the_papers_students_are_exported_unchanged(papers: RunFolder, dataset: DatasetFolder, student: str | None) -> None:
    done = export(papers, student=student, ensemble=student is None, int8=True)
    x_BCHW, names = inputs(dataset, papers, "resnet18"), ("resnet18", "mobilenet_v2")
    with torch.no_grad():
        logits = [network(x_BCHW) for network in by_torchvision(papers, names)]
    wanted = averaged(logits) if student is None else logits[names.index(student)]
    for actual in (
        onnx_classifier((done.folder / "model.onnx").read_bytes())(x_BCHW),
        program_classifier((done.folder / "model.pt2").read_bytes())(x_BCHW),
    ):
        assert (actual - wanted).abs().max() <= MAX_DEVIATION * wanted.abs().max().clamp(min=1)
    last = papers.metrics()[-1]["val"]
    require_scores(done, last["ensemble"] if student is None else last["students"][names.index(student)])
    assert done.bytes["model-int8.onnx"] < 0.4 * done.bytes["model.onnx"]
    notes = json.loads((done.folder / "preprocessing.json").read_text())
    assert set(notes["validation"]) == {"model.onnx", "model-int8.onnx"}


@pytest.fixture
def mirrored(tmp_path: Path, run: RunFolder) -> RunFolder:
    """The run, as if its recipe had set evaluation.flip_tta."""
    shutil.copytree(run.path, tmp_path / "mirrored", ignore=shutil.ignore_patterns("export"))
    flipped = {"flip_tta": True}
    rewrite_json(tmp_path / "mirrored" / "config.json", lambda values: values | {"evaluation": values["evaluation"] | flipped})
    return RunFolder.open(tmp_path / "mirrored")


def test_predictions_and_notes_mirror_where_evaluation_does(
    tmp_path: Path, mirrored: RunFolder, run: RunFolder, exported: ExportResult, dataset: DatasetFolder
) -> None:
    x_BCHW, plain = inputs(dataset, run), TrainedClassifier.load(run, "c", ensemble=False).model
    trained = TrainedClassifier.load(mirrored, "c", ensemble=False)
    wanted = (plain(x_BCHW) + plain(torch.flip(x_BCHW, [3]))) / 2
    assert (wanted - plain(x_BCHW)).abs().max() > 10 * MAX_DEVIATION
    assert (trained.model(x_BCHW) - wanted).abs().max() <= MAX_DEVIATION
    scored = evaluate(mirrored, data=None, teacher=None, device=CPU, observer=SILENT)["students"][1]
    labels = torch.from_numpy(dataset.split("val").labels[dataset.split("val").ids]).long()
    assert scored["loss"] == pytest.approx(torch.nn.functional.cross_entropy(wanted, labels).item(), abs=1e-4)
    notes = _notes(trained, dataset, exported)
    assert notes["mirrored"] is True
    assert "the image and its mirror image" in notes["output"]["meaning"]
    pixels = np.random.default_rng(3).integers(0, 256, (36, 36, 3), dtype=np.uint8)
    for name, picture in (("a.png", pixels), ("b.png", pixels[:, ::-1])):
        Image.fromarray(picture).save(tmp_path / name)
    one, other = predict(trained, [tmp_path / "a.png", tmp_path / "b.png"], trained.classes, top=4)
    assert [guess.percent for guess in one.classes] == pytest.approx([guess.percent for guess in other.classes], abs=1e-3)


# Commands


def test_the_commands(call: Call, tmp_path: Path, run: RunFolder, dataset: DatasetFolder, exported: ExportResult) -> None:
    pictures(tmp_path)
    (tmp_path / "bad[b].jpg").write_text("no picture")
    result = call("predict", run.path, "grey.png", "bad[b].jpg", "cmyk.jpg", folder=tmp_path)
    assert result.code == 1
    assert result.err.splitlines() == [
        "error: bad[b].jpg: not an image (it starts with b'no picture'); expected an intact image "
        "(JPEG, PNG, GIF, BMP, WEBP, TIFF, PPM); check the file"
    ]
    assert "grey.png" in result.out
    assert all(result.out.count(name) == 4 for name in ("ant", "bee", "cat", "dog"))  # two pictures, name and id
    assert call("predict", run.path, tmp_path / "grey.png", "--student", "c", "--top", 1).code == 0
    deep = tmp_path / ("a-long-name-" * 12) / ("and-another-" * 6)
    deep.mkdir(parents=True)
    shutil.copy(tmp_path / "grey.png", deep / "grey.png")
    assert str(deep / "grey.png") in call("predict", run.path, deep / "grey.png").out, "the path is not wrapped"
    refused(call("predict", run.path, tmp_path / "grey.png", "--student", "x"), "holds no student 'x'")
    refused(call("predict", tmp_path, tmp_path / "grey.png"), "is not a run")
    refused(call("export", run.path), "name it with --student, or use --ensemble")
    refused(call("export", run.path, "--student", "c", "--data", tmp_path), "holds no dataset.json")
    assert sorted(path.name for path in (run.path / "export").iterdir()) == ["ensemble"]


def test_a_run_without_its_data_still_predicts(tmp_path: Path, run: RunFolder) -> None:
    from udkd.export.predict import readable_class_names

    for name in ("run.json", "config.json"):
        shutil.copy(run.path / name, tmp_path / name)
    rewrite_json(tmp_path / "run.json", lambda values: values | {"dataset": str(tmp_path / "gone")})
    assert readable_class_names(RunFolder.open(tmp_path), ["ant", "bee"]) == ["ant", "bee"]


def test_teacher_folders_are_not_runs(tmp_path: Path, dataset: DatasetFolder) -> None:
    with pytest.raises(RunError, match="is not a run"):
        RunFolder.open(make_teacher(tmp_path, dataset).path)
