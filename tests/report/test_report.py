"""The report page: its numbers against slow recomputation, its escaping, and its notes on missing parts."""

import hashlib
import io
import math
import shutil
from dataclasses import replace
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.factories import make_dataset, make_teacher, small_recipe
from tests.report.fake_run import fake, fake_logits
from tests.report.pages import Page, draw_only
from udkd.data.dataset import DatasetFolder
from udkd.report import certainty, gallery, style, weight_errors
from udkd.report.curves import space_labels
from udkd.report.inputs import THUMBNAIL_PX, ReportInputs, load_inputs, thumbnail
from udkd.report.page import Note
from udkd.report.report import FIGURE_FILES, write_report
from udkd.report.style import DARK, LIGHT
from udkd.report.tables import result_section
from udkd.teacher.cache.build import build_cache
from udkd.teacher.cache.reader import Cache
from udkd.teacher.folder import TeacherFolder
from udkd.training.evaluate import evaluate
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import TrainJob, train
from udkd.utils.progress import SILENT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def full_inputs(tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    inputs = fake(tmp_path_factory.mktemp("full") / "report")
    write_report(inputs)
    return inputs


def page_of(inputs: ReportInputs) -> Page:
    return Page(inputs.out / "index.html")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_one_file_without_a_network(full_inputs: ReportInputs) -> None:
    page = page_of(full_inputs)
    assert not page.tags.keys() & {"script", "link", "iframe", "object", "video", "audio", "source", "form"}
    loaded = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "action")]
    assert loaded
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in loaded)
    text = (full_inputs.out / "index.html").read_text()
    assert "@import" not in text
    assert all(part.startswith(("#", "data:")) for part in text.split("url(")[1:])
    assert "default-src 'none'" in text
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_every_figure_is_a_file_and_stale_files_are_removed(full_inputs: ReportInputs, tmp_path: Path) -> None:
    names = sorted(path.name for path in full_inputs.out.glob("*.png"))
    assert {name for pattern in FIGURE_FILES for name in names if fnmatch(name, pattern)} == set(names)
    assert {path.name for path in full_inputs.out.iterdir()} - set(names) == {"index.html"}
    unused = [pattern for pattern in FIGURE_FILES if not any(fnmatch(name, pattern) for name in names)]
    needing_more = ["loss-method.png", "gain-by-weight.png", "gain-classes-?.png", "failures-?.png"]
    assert unused == needing_more, "the first needs a method, the others a baseline"
    for name in names:
        with Image.open(full_inputs.out / name) as image:
            image.load()
            assert image.width >= 800
    shutil.copytree(full_inputs.out, tmp_path / "report")
    (tmp_path / "report" / "mine.png").write_bytes(b"kept")
    write_report(replace(full_inputs, out=tmp_path / "report", targets=None, predictions=None))
    left = {path.name for path in (tmp_path / "report").iterdir()}
    always = {name for name in FIGURE_FILES if name.startswith(("loss", "accuracy", "learning"))} - {"loss-method.png"}
    assert left == always | {"index.html", "mine.png"}


def test_equal_inputs_give_equal_bytes(full_inputs: ReportInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The complete page, and the first PNG of each kind of figure."""
    drawn, kinds = style.png, set()

    def png(draw: style.Draw, *size: float, **more: float) -> bytes:
        kind = draw.__qualname__  # type: ignore[attr-defined]
        if kind in kinds:
            return b""
        kinds.add(kind)
        return drawn(draw, *size, **more)

    monkeypatch.setattr(style, "png", png)
    monkeypatch.setattr(gallery, "png", png)
    write_report(fake(tmp_path))
    for path in tmp_path.glob("*.png"):
        if not path.stat().st_size:
            path.unlink()
    again = digests(tmp_path)
    assert len(again) == 1 + len(kinds) == 11
    assert again == {name: digest for name, digest in digests(full_inputs.out).items() if name in again}


def test_light_and_dark_share_one_figure(full_inputs: ReportInputs) -> None:
    text = (full_inputs.out / "index.html").read_text()
    assert "prefers-color-scheme: dark" in text
    for palette in (LIGHT, DARK):
        assert all(f"--{role}: {colour};" in text for role, colour in palette.roles().items())
    drawings = [part.split("</svg>")[0] for part in text.split("<svg ")[1:]]
    assert len(drawings) == 6 + 6 + 2 + 4 + 2  # curves, certainty, tenths, reliability, disagreement
    assert not any("#fe00" in drawing for drawing in drawings)  # no placeholder colour is left


def test_numbers_of_the_teacher_by_hand(full_inputs: ReportInputs) -> None:
    targets = full_inputs.targets
    assert targets is not None
    n, text = len(targets.ids), page_of(full_inputs).text
    weights, entropies, correct = [], [], []
    for logits, label in zip(fake_logits(1600, 10)[2].astype(np.float64), targets.labels, strict=True):
        p = torch.softmax(torch.from_numpy(logits), 0).tolist()
        h = -sum(value * math.log(value) for value in p if value > 0)
        entropies.append(h)
        weights.append(1 - h / math.log(10))
        correct.append(p.index(max(p)) == label)
    mean = sum(weights) / n
    sure = [index for index in range(n) if weights[index] > 0.9]
    assert f"Mean weight {mean:.3f}: the teacher is nearly certain (w > 0.9) of {100 * len(sure) / n:.0f} %" in text
    assert f"Its accuracy is {100 * sum(correct) / n:.1f} % on all of them" in text
    assert f"and {100 * sum(correct[index] for index in sure) / len(sure):.1f} % on those" in text
    assert f"Mean entropy {sum(entropies) / n:.3f} of at most ln 10 = 2.303 nats" in text
    assert any(f"the median is {sorted(entropies)[index]:.3f} nats" in text for index in (n // 2 - 1, n // 2))
    by_class = {
        label: sum(w for w, class_label in zip(weights, targets.labels, strict=True) if class_label == label)
        / list(targets.labels).count(label)
        for label in range(10)
    }
    surest, least = max(by_class, key=by_class.__getitem__), min(by_class, key=by_class.__getitem__)
    classes, means = certainty.class_means(targets)
    assert (classes[0], classes[-1]) == (surest, least)
    assert means == pytest.approx([by_class[int(label)] for label in classes], abs=1e-6)
    order = sorted(range(n), key=lambda index: (-targets.entropy[index], targets.ids[index]))
    tenths = [order[start : start + n // 10] for start in range(0, n, n // 10)]
    shares = weight_errors.accuracy_by_tenths(targets, np.array(correct))
    assert [fraction for fraction, _, _ in shares] == pytest.approx(
        [100 * sum(correct[index] for index in tenth) / len(tenth) for tenth in tenths]
    )
    assert all(low <= fraction <= high for fraction, low, high in shares)


def test_the_papers_mean_weight_is_shown(full_inputs: ReportInputs) -> None:
    text = page_of(full_inputs).text
    assert "The paper's mean weight is 0.816" in text
    assert "4.533" in text


def test_surest_and_least_sure_images_by_hand(full_inputs: ReportInputs, tmp_path: Path, without_figures: None) -> None:
    targets = full_inputs.targets
    assert targets is not None
    ranked = sorted(range(len(targets.ids)), key=lambda row: (float(targets.entropy[row]), int(targets.ids[row])))
    surest, least = gallery.extremes(targets)
    assert surest.tolist() == ranked[:12]
    assert [float(targets.entropy[row]) for row in least] == [float(targets.entropy[row]) for row in ranked[::-1][:12]]
    logits = fake_logits(1600, 10)[2]
    for row in [*surest, *least]:
        chances = torch.softmax(torch.from_numpy(logits[row].astype(np.float64)), 0).tolist()
        names = sorted(range(10), key=lambda label: (-chances[label], label))[:3]
        guessed = gallery.guesses(targets.predictions, targets.labels, int(row), full_inputs.class_names)
        assert [guess.percent for guess in guessed] == pytest.approx([100 * chances[name] for name in names], rel=1e-5)
        assert [guess.name for guess in guessed] == [full_inputs.class_names[name].split(",")[0] for name in names]
        assert [guess.correct for guess in guessed] == [name == targets.labels[row] for name in names]
    write_report(replace(full_inputs, predictions=None, out=tmp_path))
    page = Page(tmp_path / "index.html")
    mistakes = [row for row in [*surest, *least] if logits[row].argmax() != targets.labels[row]]
    assert page.classes["card"] == 24
    assert page.classes["wrong"] == page.text.count("✗ wrong") == len(mistakes) > 0
    assert page.text.count("✓ correct") == 24 - len(mistakes)
    assert sorted(value for name, value in page.attributes if name == "title" and value.startswith("id ")) == sorted(
        f"id {targets.ids[row]}" for row in [*surest, *least]
    )


def test_no_image_is_both_surest_and_least_sure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_only(monkeypatch, "weights", "entropies", "classes", "teacher-accuracy")
    inputs = fake(tmp_path, samples=5)
    assert inputs.targets is not None
    surest, least = gallery.extremes(inputs.targets)
    assert len(surest) == len(least) == 2
    assert not set(surest) & set(least)
    write_report(inputs)
    write_report(fake(tmp_path, samples=1))


def test_captions_of_curves_match_the_metrics(full_inputs: ReportInputs) -> None:
    text = page_of(full_inputs).text
    for index, name in enumerate(("resnet18", "mobilenet_v2")):
        top1 = [row["val"]["students"][index]["top1"] for row in full_inputs.metrics]
        assert f"{name} {max(top1):.1f} % in epoch {1 + top1.index(max(top1))}" in text
        hard = [row["train"]["hard"][index] for row in full_inputs.metrics]
        assert f"{name} {hard[0]:#.3g} → {hard[-1]:#.3g}" in text
    assert "Top-1: resnet18 72.3 % and mobilenet_v2 70.3 %; ensemble 73.7 %; the teacher 77.0 %. Chance is 10 %." in text


def test_a_methods_term_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_only(monkeypatch, "loss-method")
    inputs = fake(tmp_path, overrides=("loss.method='dkd'", "loss.method_weight=0.7", "loss.sample_weight_control='shuffled'"))
    for row in inputs.metrics:
        row["train"]["method"] = [4.0 - row["epoch"] / 6, 3.0 - row["epoch"] / 12]
    text = Page(write_report(inputs)).text
    assert "Loss of the method, DKD" in text
    first, last = (inputs.metrics[at]["train"]["method"][0] for at in (0, -1))
    assert f"resnet18 {first:#.3g} → {last:#.3g}" in text
    assert "before its weight = 0.7" in text
    assert (tmp_path / "loss-method.png").exists()
    assert (
        "each sample by another sample’s weight, a control "
        "(loss.sample_weight = entropy and loss.sample_weight_control = shuffled)" in text
    )
    assert "weight w, shuffled, a term of DKD; resnet18 and mobilenet_v2) is in none of these rows" in text


def test_a_student_has_no_values_before_its_start_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_only(monkeypatch, "loss-*", "accuracy-*", "learning-rate")
    inputs = fake(tmp_path, overrides=("students.1.start_epoch=4",))
    for row in inputs.metrics[:4]:
        for values in row["train"].values():
            values[1] = None
        row["val"]["students"][1] = None
    text = Page(write_report(inputs)).text
    top1 = [row["val"]["students"][1]["top1"] for row in inputs.metrics[4:]]
    assert f"mobilenet_v2 {max(top1):.1f} % in epoch {5 + top1.index(max(top1))}" in text
    hard = [row["train"]["hard"][1] for row in inputs.metrics[4:]]
    assert f"mobilenet_v2 {hard[0]:#.3g} → {hard[-1]:#.3g}" in text
    assert "mobilenet_v2 starts after 4 epochs" in text
    assert "nan" not in text
    early = replace(inputs, metrics=inputs.metrics[:2], evaluation=None, predictions=None)
    assert f"Top-1: resnet18 {inputs.metrics[1]['val']['students'][0]['top1']:.1f} %." in Page(write_report(early)).text


def test_no_evaluation_no_cache_no_data_no_metrics(
    full_inputs: ReportInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_only(monkeypatch, "accuracy-val")
    text = Page(write_report(replace(full_inputs, out=tmp_path / "a", evaluation=None))).text
    assert "udkd eval has not run" in text
    assert "measured on epoch 12" in text
    text = Page(write_report(replace(full_inputs, out=tmp_path / "b", targets=None, why_no_targets="the cache is gone"))).text
    assert text.count("The cache is gone.") == 2
    bare = replace(
        full_inputs,
        out=tmp_path / "c",
        targets=None,
        thumbnail=None,
        evaluation=None,
        metrics=[],
        teacher=None,
        data=None,
        predictions=None,
    )
    text = Page(write_report(bare)).text
    assert "There are no results yet" in text
    assert "No epoch is finished yet" in text
    assert "0 of 12 epochs" in text


def test_one_student_of_hard_labels(tmp_path: Path, without_figures: None) -> None:
    alone = ("loss.alpha=1.0", "loss.beta=0.0", "students=[{architecture='resnet18'}]")
    inputs = replace(fake(tmp_path, epochs=1, overrides=alone), targets=None, evaluation=None)
    text = Page(write_report(inputs)).text
    assert "ensemble" not in text
    assert "one student has no peers" in text
    assert "In the only epoch" in text
    assert "resnet18, teacher" not in text


def test_the_teachers_row_cannot_be_there_for_imported_logits(tmp_path: Path) -> None:
    inputs = fake(tmp_path, samples=20, val_samples=10)
    inputs = replace(inputs, evaluation=dict(inputs.evaluation or {}) | {"teacher": None})
    imported = dict(inputs.provenance) | {"cache_key": dict(inputs.provenance["cache_key"]) | {"claimed": ["views"]}}
    for provenance, text in (
        (inputs.provenance, "udkd eval ran without --teacher"),
        (imported, "its logits were imported, for"),
    ):
        notes = [
            block.text for block in result_section(replace(inputs, provenance=provenance)).blocks if isinstance(block, Note)
        ]
        assert any(text in note for note in notes)


def test_many_students_and_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_only(monkeypatch, "accuracy-*", "classes", "agreement", "teacher-accuracy-val")
    students = ", ".join(f"{{architecture='resnet18', name='student number {n} of a long name'}}" for n in range(8))
    inputs = fake(tmp_path, num_classes=120, samples=2400, epochs=2, overrides=(f"students=[{students}]",))
    text = Page(write_report(inputs)).text
    assert "the 10 highest and the 10 lowest of 120 classes" in text
    assert "… 100 more" in text


@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=8))
def test_labels_keep_their_order_and_their_distance(requested: list[float]) -> None:
    placed = space_labels(requested, 0.08)
    order = sorted(range(len(requested)), key=lambda index: requested[index])
    assert all(placed[above] - placed[below] >= 0.08 - 1e-9 for below, above in pairwise(order))
    assert all(-1e-9 <= value <= 1 + 1e-9 for value in placed)
    apart = all(requested[above] - requested[below] >= 0.08 for below, above in pairwise(order))
    if apart and requested[order[0]] >= 0 and requested[order[-1]] <= 1:
        assert placed == pytest.approx(requested)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetFolder, TeacherFolder]:
    """A run folder written by the real trainer and evaluator, with its data and teacher."""
    folder = tmp_path_factory.mktemp("trained")
    threads = torch.get_num_threads()
    recipe = small_recipe("train.epochs=1")
    dataset = make_dataset(folder)
    teacher = make_teacher(folder / "teacher", dataset)
    build_cache(folder / "cache", dataset=dataset, teacher=teacher, recipe=recipe, device=CPU, observer=SILENT)
    train(TrainJob(recipe=recipe, data=dataset.path, out=folder / "run", device=CPU, cache=folder / "cache"))
    evaluate(RunFolder.open(folder / "run"), data=None, teacher=teacher.path, device=CPU, observer=SILENT)
    torch.set_num_threads(threads)
    return folder, dataset, teacher


def test_loaded_from_a_real_run(trained: tuple[Path, DatasetFolder, TeacherFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, dataset, teacher = trained
    inputs = load_inputs(folder / "run")
    split = dataset.split("train")
    assert inputs.targets is not None
    assert inputs.targets.ids.tolist() == split.ids.tolist()
    assert inputs.targets.labels.tolist() == split.labels[split.ids].tolist()
    logits, entropy = Cache.open(folder / "cache").targets(0)
    p = torch.softmax(torch.from_numpy(logits[split.ids].astype(np.float64)), 1)
    assert inputs.targets.entropy.tolist() == entropy[split.ids].tolist()
    assert inputs.targets.predictions.confidence == pytest.approx(p.amax(1).numpy(), abs=1e-6)
    assert inputs.targets.weight == pytest.approx(1 - inputs.targets.entropy / math.log(4), abs=1e-5)
    assert inputs.teacher is not None
    assert inputs.teacher["weights_sha256"] == teacher.info.weights_sha256
    assert inputs.class_names == ("ant", "bee", "cat", "dog")
    assert inputs.data is not None
    assert (inputs.data.train_images, inputs.data.val_images, inputs.data.imagenet100) == (96, 24, False)
    draw_only(monkeypatch, "accuracy-val", "weights", "classes-val", "teacher-accuracy", "reliability-0", "agreement")
    path = write_report(inputs)
    assert path == folder / "run" / "report" / "index.html"
    page = Page(path)
    assert page.classes["card"] >= 24
    assert inputs.evaluation is not None
    for student in inputs.evaluation["students"]:
        assert f"{student['name']} {student['top1']:.2f}" in page.text


def test_missing_or_different_parts_become_a_sentence(
    trained: tuple[Path, DatasetFolder, TeacherFolder], tmp_path: Path, without_figures: None
) -> None:
    folder, _, _ = trained
    targets = load_inputs(folder / "run").targets
    inputs = load_inputs(folder / "run", cache=tmp_path / "nowhere")
    assert targets is not None
    assert inputs.targets is not None, "udkd eval stored the cache's targets"
    assert all(
        np.array_equal(value, vars(inputs.targets.predictions)[name]) for name, value in vars(targets.predictions).items()
    )
    assert "nowhere" in inputs.targets_from
    assert "The cache was not read" in Page(write_report(replace(inputs, out=tmp_path / "report"))).text
    bare = tmp_path / "bare"
    shutil.copytree(folder / "run", bare)
    (bare / "predictions.safetensors").unlink()
    inputs = load_inputs(bare, cache=tmp_path / "nowhere")
    assert inputs.targets is None
    assert "nowhere" in inputs.why_no_targets
    assert inputs.thumbnail is not None
    assert f"has no predictions; run udkd eval {bare}" in Page(write_report(inputs)).text
    inputs = load_inputs(folder / "run", data=tmp_path / "nowhere")
    assert inputs.data is None
    assert "nowhere" in inputs.why_no_data
    assert "nowhere" in Page(write_report(replace(inputs, out=tmp_path / "report"))).text
    damaged = tmp_path / "cache"
    shutil.copytree(folder / "cache", damaged)
    view = damaged / "view-0000.udkd"
    data = bytearray(view.read_bytes())
    data[-600] ^= 1
    view.write_bytes(data)
    assert "view-0000.udkd" in load_inputs(bare, cache=damaged).why_no_targets
    assert "view-0000.udkd" in load_inputs(folder / "run", cache=damaged).targets_from


def test_runs_without_a_cache_say_why(
    trained: tuple[Path, DatasetFolder, TeacherFolder], tmp_path: Path, without_figures: None
) -> None:
    folder, _, teacher = trained
    run = RunFolder.open(folder / "run")
    provenance = {name: value for name, value in run.provenance.items() if name not in ("cache", "cache_key")}
    live = RunFolder.create(
        tmp_path / "live",
        run.config,
        provenance | {"teacher": str(teacher.path), "teacher_sha256": teacher.info.weights_sha256},
    )
    inputs = load_inputs(live.path)
    assert inputs.targets is None
    assert "had a live teacher" in inputs.why_no_targets
    assert inputs.teacher is not None
    assert inputs.teacher["architecture"] == "squeezenet1_1"
    write_report(inputs)
    hard = dict(run.config) | {"loss": dict(run.config["loss"]) | {"beta": 0.0}}
    assert "had no teacher" in load_inputs(RunFolder.create(tmp_path / "hard", hard, provenance).path).why_no_targets


def test_thumbnails_have_their_sources_shape(trained: tuple[Path, DatasetFolder, TeacherFolder]) -> None:
    split = trained[1].split("train")
    sample = int(split.ids[3])
    height, width = split.sizes[sample, 2:].tolist()
    assert np.array_equal(thumbnail(split, sample), split.pixels(sample)[:height, :width])

    class Squashed:
        sizes = np.array([[300, 600, 200, 200]], np.int32)

        def pixels(self, sample_id: int) -> np.ndarray:
            return np.asarray(Image.effect_noise((256, 256), 40).convert("RGB"))

    assert thumbnail(Squashed(), 0).shape == (THUMBNAIL_PX // 2, THUMBNAIL_PX, 3)  # type: ignore[arg-type]


def test_cards_are_jpegs(full_inputs: ReportInputs) -> None:
    import base64

    source = next(value for name, value in page_of(full_inputs).attributes if name == "src")
    with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
        assert image.format == "JPEG"
