"""Accuracy, computed again without PyTorch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories import make_dataset, make_teacher, small_recipe, write_small_teacher
from tests.observers import Notes
from udkd.augment import apply as augment
from udkd.augment.view_table import EpochViews
from udkd.data.batch import Batch
from udkd.data.dataset import DatasetFolder
from udkd.models.build import build
from udkd.teacher.cache.build import build_cache
from udkd.teacher.cache.reader import Cache
from udkd.teacher.folder import TeacherFolder
from udkd.training.evaluate import evaluate
from udkd.training.predictions import TopPredictions, read_predictions
from udkd.training.run_folder import RunFolder
from udkd.training.scoring import Score, score
from udkd.training.trainer import TrainJob, train
from udkd.utils.errors import CacheError, DataError, MismatchError, RunError
from udkd.utils.progress import SILENT

CPU = torch.device("cpu")
DATASET_IMAGES = {"per_class": 8, "val_per_class": 7}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder, teacher: TeacherFolder) -> RunFolder:
    folder = tmp_path_factory.mktemp("run")
    recipe = small_recipe("train.epochs=2", "students.0.lr=0.1")
    build_cache(folder / "cache", dataset=dataset, teacher=teacher, recipe=recipe, device=CPU)
    job = TrainJob(
        recipe=recipe, data=dataset.path, out=folder / "run", device=CPU, cache=folder / "cache", teacher=teacher.path
    )
    train(job)
    return RunFolder.open(folder / "run")


def reference(p_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """Top-1, top-5 in percent and mean cross-entropy, in NumPy's float64."""
    order = np.argsort(-p_NC, axis=1, kind="stable")
    loss = -np.log(p_NC[np.arange(len(labels_N)), labels_N]).mean()
    top1 = 100 * np.mean(order[:, 0] == labels_N)
    return {"top1": float(top1), "top5": float(100 * np.mean((order[:, :5] == labels_N[:, None]).any(1))), "loss": float(loss)}


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


class Fixed:
    """A backend of grey canvases that encode only their ids."""

    def __init__(self, labels: np.ndarray) -> None:
        self.num_samples = len(labels)
        self.labels = torch.from_numpy(labels)

    def epoch(self, order: np.ndarray, batch_size: int):  # type: ignore[no-untyped-def]
        for start in range(0, len(order), batch_size):
            ids = torch.from_numpy(order[start : start + batch_size])
            yield Batch(ids=ids, canvas=torch.zeros(len(ids), 36, 36, 3, dtype=torch.uint8), labels=self.labels[ids])


@pytest.mark.parametrize(("classes", "batch"), [(3, 5), (5, 24), (12, 7), (100, 1)])
def test_scores_against_numpy(dataset: DatasetFolder, classes: int, batch: int) -> None:
    rng = np.random.default_rng(classes)
    ids = dataset.split("val").ids[:24]
    labels = rng.integers(0, classes, dataset.split("val").num_samples)
    logits = [rng.normal(0, 6, (len(ids), classes)).astype(np.float32) for _ in range(3)]
    done = [0, 0, 0]

    def classifier(number: int):  # type: ignore[no-untyped-def]
        def forward(x: torch.Tensor) -> torch.Tensor:
            start = done[number]
            done[number] += len(x)
            return torch.from_numpy(logits[number][start : start + len(x)])

        return forward

    views = EpochViews(small_recipe().evaluation_spec, 0, dataset.split("val"), CPU)
    batch_sizes: list[int] = []
    scores = score(
        [classifier(n) for n in range(3)],
        Fixed(labels),
        ids,
        views,
        batch=batch,
        precision="float32",
        on_batch=batch_sizes.append,
    )  # type: ignore[arg-type]
    assert sum(batch_sizes) == len(ids)
    for z, one in zip(logits, scores.each, strict=True):
        assert one.to_dict() == pytest.approx(reference(softmax(z.astype(np.float64)), labels[ids]), rel=1e-5)
    mean = np.mean([softmax(z.astype(np.float64)) for z in logits], axis=0)
    assert scores.ensemble.to_dict() == pytest.approx(reference(mean, labels[ids]), rel=1e-4)


def test_the_averaged_probabilities_of_confident_students_are_finite(dataset: DatasetFolder) -> None:
    ids = dataset.split("val").ids[:8]
    views = EpochViews(small_recipe().evaluation_spec, 0, dataset.split("val"), CPU)
    sure = torch.tensor([300.0, -300.0, 0.0, 0.0])
    scores = score(
        [lambda x: sure.expand(len(x), 4)] * 2, Fixed(np.ones(100, np.int64)), ids, views, batch=4, precision="float32"
    )  # type: ignore[arg-type]
    assert scores.ensemble == scores.each[0] == Score(top1=0, top5=100, loss=600)


def test_the_scores_of_a_run_against_numpy(run: RunFolder, dataset: DatasetFolder, teacher: TeacherFolder) -> None:
    result = evaluate(run, data=None, teacher=None, device=CPU, observer=SILENT)
    assert RunFolder.open(run.path).evaluation == result
    split = dataset.split("val")
    labels = split.labels[split.ids]
    recipe = small_recipe()
    table = EpochViews(recipe.evaluation_spec, 0, split, CPU).table(0)
    canvas = torch.from_numpy(np.stack([split.pixels(sample_id) for sample_id in split.ids.tolist()]))
    x = augment.apply(canvas, table.gather(torch.from_numpy(split.ids)), recipe.evaluation_spec)
    probabilities = []
    tensors = run.load().tensors
    for index, (name, row) in enumerate(zip(recipe.student_names(), result["students"], strict=True)):
        model = build(name, 4, image_px=32, seed=0)
        prefix = f"student.{index}."
        model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        with torch.no_grad():
            probabilities.append(softmax(model.eval()(x).double().numpy()))
        assert row["name"] == name
        assert {k: row[k] for k in ("top1", "top5", "loss")} == pytest.approx(reference(probabilities[-1], labels), rel=1e-4)
        assert row["parameters"] == sum(p.numel() for p in model.parameters())
    assert result["ensemble"] == pytest.approx(reference(np.mean(probabilities, axis=0), labels), rel=1e-4)
    assert result["students"][0]["top5"] == 100, "four classes"
    assert (result["num_samples"], result["num_classes"], result["split"], result["step"]) == (28, 4, "val", 8)
    last = run.metrics()[-1]["val"]
    assert [{k: row[k] for k in ("top1", "top5", "loss")} for row in result["students"]] == last["students"], "bit for bit"
    model = build("squeezenet1_1", 4, image_px=32, seed=0)
    model.load_state_dict(teacher.weights())
    with torch.no_grad():
        p_NC = softmax(model.eval()(x).double().numpy())
    expected = reference(p_NC, labels)
    assert result["teacher"]["name"] == "squeezenet1_1"
    assert {k: result["teacher"][k] for k in expected} == pytest.approx(expected, rel=1e-3)
    kept, sha256 = read_predictions(run.predictions_path)
    assert sha256 == result["predictions_sha256"]
    assert kept.ids.tolist() == split.ids.tolist()
    assert kept.labels.tolist() == labels.tolist()
    assert (kept.step, kept.num_classes, kept.names) == (8, 4, tuple(recipe.student_names()))
    assert kept.dataset_digest == dataset.digest
    for p, answers in zip(
        [*probabilities, p_NC, np.mean(probabilities, axis=0)], [*kept.students, kept.teacher, kept.average], strict=True
    ):
        assert_predictions(answers, p, labels)
    for row, answers in zip(
        [*result["students"], result["teacher"], result["ensemble"]],
        [*kept.students, kept.teacher, kept.average],
        strict=True,
    ):
        assert row["top1"] == pytest.approx(100 * answers.correct(labels).mean()), "the table's figure, image by image"


def assert_predictions(answers: TopPredictions | None, p_NC: np.ndarray, labels_N: np.ndarray) -> None:
    """Answers are those of probabilities [N, C], computed again in float64."""
    assert answers is not None
    for row, (p, label) in enumerate(zip(p_NC, labels_N, strict=True)):
        ranked = sorted(range(len(p)), key=lambda c: -p[c])
        gap = np.min(-np.diff([p[c] for c in ranked]))
        if gap > 1e-5:
            assert answers.top[row].tolist() == ranked[:5]
        assert np.exp(answers.top_log_p[row]) == pytest.approx([p[c] for c in ranked[:5]], abs=2e-5)
        assert answers.confidence[row] == pytest.approx(max(p), abs=2e-5)
        assert answers.label_log_p[row] == pytest.approx(np.log(p[label]), abs=2e-3)
        assert answers.entropy[row] == pytest.approx(-sum(v * np.log(v) for v in p if v > 0), abs=2e-4)
    assert answers.loss == pytest.approx(reference(p_NC, labels_N)["loss"], rel=1e-3)


def test_the_teachers_predictions_of_the_training_images(run: RunFolder, dataset: DatasetFolder, tmp_path: Path) -> None:
    evaluate(run, data=None, teacher=None, device=CPU, observer=SILENT)
    targets = read_predictions(run.predictions_path)[0].targets
    assert targets is not None
    split = dataset.split("train")
    logits, entropy = Cache.open(Path(run.provenance["cache"])).targets(0)
    assert targets.ids.tolist() == split.ids.tolist()
    assert targets.entropy.tolist() == entropy[split.ids].tolist()
    for row, sample in enumerate(split.ids.tolist()):
        z = logits[sample].astype(np.float64)
        ranked = sorted(range(4), key=lambda c: (-z[c], c))
        assert targets.predictions.top[row].tolist() == ranked, "of equal logits the lower class first"
        assert np.exp(targets.predictions.top_log_p[row]) == pytest.approx(softmax(z[None])[0][ranked], abs=1e-6)
        assert targets.predictions.label_log_p[row] == pytest.approx(
            np.log(softmax(z[None])[0][split.labels[sample]]), abs=1e-5
        )
        assert targets.weight[row] == pytest.approx(1 - float(entropy[sample]) / np.log(4), abs=1e-6)
    notes = Notes()
    moved = RunFolder.create(tmp_path / "moved", run.config, run.provenance | {"cache": str(tmp_path / "gone")})
    moved.save(run.load())
    evaluate(moved, data=None, teacher=None, device=CPU, observer=notes)
    assert len(notes.lines) == 1
    assert "left out the teacher's predictions for the training images" in notes.lines[0]
    assert read_predictions(moved.predictions_path)[0].targets is None
    cache = Path(run.provenance["cache"])
    evaluate(moved, data=None, teacher=None, device=CPU, observer=SILENT, cache=cache)
    assert read_predictions(moved.predictions_path)[0].targets is not None
    with pytest.raises(CacheError, match="no such folder"):
        evaluate(moved, data=None, teacher=None, device=CPU, observer=SILENT, cache=tmp_path / "nowhere")


def test_mismatched_inputs_are_refused(
    tmp_path: Path, run: RunFolder, dataset: DatasetFolder, teacher: TeacherFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_data = make_dataset(tmp_path, per_class=2, val_per_class=2)
    other_teacher = make_teacher(tmp_path / "other", dataset, seed=9)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(MismatchError, match=r"evaluate on the data it was trained on \(dataset_digest: "):
        evaluate(run, data=other_data.path, teacher=None, device=CPU, observer=SILENT)
    with pytest.raises(MismatchError, match=r"name the teacher of this run \(teacher_sha256: "):
        evaluate(run, data=None, teacher=other_teacher.path, device=CPU, observer=SILENT)
    with pytest.raises(DataError, match="is not a teacher"):
        evaluate(run, data=None, teacher=tmp_path, device=CPU, observer=SILENT)
    with pytest.raises(RunError, match="is not a run"):
        RunFolder.open(tmp_path)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_run_without_a_teacher(tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder) -> None:
    recipe = small_recipe("train.epochs=1", "loss.beta=0", "students=[{architecture='squeezenet1_1'}]")
    train(TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / "run", device=CPU))
    opened = RunFolder.open(tmp_path / "run")
    result = evaluate(opened, data=None, teacher=None, device=CPU, observer=SILENT)
    assert result["teacher"] is None
    assert result["ensemble"] == pytest.approx({k: result["students"][0][k] for k in ("top1", "top5", "loss")}, rel=1e-5)
    assert evaluate(opened, data=None, teacher=teacher.path, device=CPU, observer=SILENT)["teacher"]["name"] == "squeezenet1_1"
    weights = build("squeezenet1_1", 5, image_px=32, seed=0).state_dict()
    five = write_small_teacher(tmp_path / "five", weights, "squeezenet1_1", "abcde")
    with pytest.raises(MismatchError, match="num_classes: stored 5, wanted 4"):
        evaluate(opened, data=None, teacher=five.path, device=CPU, observer=SILENT)


def test_a_teacher_whose_weights_belong_to_another_network(tmp_path: Path, run: RunFolder, dataset: DatasetFolder) -> None:
    recipe = small_recipe("train.epochs=1", "loss.beta=0", "students=[{architecture='squeezenet1_1'}]")
    train(TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / "run", device=CPU))
    weights = build("squeezenet1_1", 4, image_px=32, seed=0).state_dict()
    other_weights = write_small_teacher(tmp_path / "wrong", weights, "resnet18", [entry.wnid for entry in dataset.classes])
    with pytest.raises(DataError, match=r"weights do not fit resnet18 \(it lacks conv1\.weight\)"):
        evaluate(RunFolder.open(tmp_path / "run"), data=None, teacher=other_weights.path, device=CPU, observer=SILENT)
