"""The analysis in a report: its numbers against slow recomputation, and pages of runs of many shapes."""

import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.factories import rewrite_json
from tests.report.fake_predictions import fake_predictions
from tests.report.fake_run import fake, fake_baseline
from tests.report.pages import HOSTILE_NAMES, Page, draw_only
from udkd.report import certainty, class_gains, comparison, disagreement
from udkd.report.analysis.calibration import calibration_error_by_chance, calibration_error_interval
from udkd.report.inputs import ReportInputs, combine_baselines, load_inputs
from udkd.report.page import Gallery, Table
from udkd.report.report import write_report
from udkd.training.predictions import TopPredictions, read_predictions, write_predictions
from udkd.training.run_folder import RunFolder
from udkd.utils.errors import MismatchError, RunError


@pytest.fixture(scope="module")
def full_inputs(tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    inputs = fake(tmp_path_factory.mktemp("analysis") / "report")
    inputs = replace(inputs, baseline=fake_baseline(inputs))
    with pytest.MonkeyPatch.context() as patch:
        draw_only(patch)
        write_report(inputs)
    return inputs


@pytest.fixture(scope="module")
def page(full_inputs: ReportInputs) -> Page:
    return Page(full_inputs.out / "index.html")


def correctness(answers: TopPredictions | None, labels: np.ndarray) -> list[bool]:
    """Whether each prediction is correct, by image."""
    assert answers is not None
    return [int(top[0]) == label for top, label in zip(answers.top.tolist(), labels.tolist(), strict=True)]


def minus(text: str) -> str:
    return text.replace("-", "\u2212")


def test_links_lead_to_the_sections(page: Page) -> None:
    assert {"baseline", "calibration", "disagreement", "weight-errors"} <= set(page.links)


def test_calibration_by_hand(full_inputs: ReportInputs, page: Page) -> None:
    predictions = full_inputs.predictions
    assert predictions is not None
    for answers in (*predictions.students, predictions.average, predictions.teacher):
        correct = correctness(answers, predictions.labels)
        assert answers is not None
        confidence = [math.exp(row[0]) for row in answers.top_log_p.tolist()]
        bins: dict[int, list[int]] = {}
        for index, value in enumerate(confidence):
            bins.setdefault(math.ceil(value * 15 - 1e-12), []).append(index)
        error = sum(abs(sum(correct[k] for k in rows) - sum(confidence[k] for k in rows)) for rows in bins.values()) / len(
            correct
        )
        claimed = 100 * sum(confidence) / len(correct)
        accuracy = 100 * sum(correct) / len(correct)
        assert f"Mean confidence {claimed:.1f} %, accuracy {accuracy:.1f} % on 300 validation images" in page.text
        chance = 100 * calibration_error_by_chance(answers.confidence)
        low, high = calibration_error_interval(answers.confidence, np.array(correct))
        assert f"{100 * error:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in page.text
        assert f"ECE {100 * error:.1f} %; a perfectly calibrated network has {chance:.1f} % by chance" in page.text


def test_tenths_of_validation_images_by_hand(full_inputs: ReportInputs, page: Page) -> None:
    predictions = full_inputs.predictions
    assert predictions is not None
    assert predictions.teacher is not None
    entropy, ids = predictions.teacher.entropy.tolist(), predictions.ids.tolist()
    order = sorted(range(300), key=lambda row: (-entropy[row], ids[row]))
    parts = []
    compared = (("resnet18", predictions.students[0]), ("mobilenet_v2", predictions.students[1]))
    for name, answers in (*compared, ("ensemble", predictions.average), ("teacher", predictions.teacher)):
        correct = correctness(answers, predictions.labels)
        first, last = (sum(correct[row] for row in rows) / 30 * 100 for rows in (order[:30], order[-30:]))
        parts.append(f"{name} {first:.0f} → {last:.0f} %")
    assert f"from the lowest tenth to the highest: {', '.join(parts[:-1])} and {parts[-1]}" in page.text
    correct = correctness(predictions.teacher, predictions.labels)
    weights = [1 - value / math.log(10) for value in entropy]
    pairs = [
        (a, b) for a, ok in zip(weights, correct, strict=True) if ok for b, no in zip(weights, correct, strict=True) if not no
    ]
    area = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert f"higher weight than a wrong one with probability {area:.2f}" in page.text


def test_correct_students_by_hand(full_inputs: ReportInputs, page: Page, without_figures: None) -> None:
    predictions = full_inputs.predictions
    assert predictions is not None
    first, second, teacher = (
        correctness(answers, predictions.labels) for answers in (*predictions.students, predictions.teacher)
    )
    rows = list(zip(first, second, teacher, strict=True))
    table = next(
        block
        for block in disagreement.section(full_inputs).blocks
        if isinstance(block, Table)  # type: ignore[union-attr]
    )
    for row, want in zip(table.rows, (None, True, False), strict=True):
        kept = [(a, b) for a, b, t in rows if want is None or t is want]
        counts = [sum(pair == expected for pair in kept) for expected in ((1, 1), (1, 0), (0, 1), (0, 0))]
        assert row.cells[:4] == tuple(str(number) for number in counts)
    some = 100 * sum(a or b for a, b, _ in rows) / 300
    assert f"At least one student is correct on {some:.1f} % of 300 validation images" in page.text
    rescued = sum((a or b) and not t for a, b, t in rows)
    assert f"of the {300 - sum(teacher)} images on which the teacher is wrong, a student is correct on {rescued}" in page.text
    assert f"resnet18 is correct and mobilenet_v2 wrong on {sum(a and not b for a, b, _ in rows)} images" in page.text


def test_gains_by_hand(full_inputs: ReportInputs, page: Page) -> None:
    predictions, baseline = full_inputs.predictions, full_inputs.baseline
    assert predictions is not None
    assert baseline is not None
    ours = [*predictions.students, predictions.average]
    other = [*baseline.predictions.students, baseline.predictions.average]
    matched = comparison.matches(full_inputs, predictions, baseline)
    assert [(match.name, match.against) for match in matched] == [
        ("resnet18", "resnet18"),
        ("mobilenet_v2", "mobilenet_v2"),
        ("ensemble", "ensemble"),
    ]
    assert predictions.teacher is not None
    order = sorted(range(300), key=lambda row: (-float(predictions.teacher.entropy[row]), int(predictions.ids[row])))  # type: ignore[union-attr]
    for match, student, counterpart in zip(matched, ours, other, strict=True):
        a, b = correctness(student, predictions.labels), correctness(counterpart, predictions.labels)
        points = 100 * (sum(a) - sum(b)) / 300
        total = comparison.overall_gain(predictions, match)
        assert total.points == pytest.approx(points)
        resampled = [
            np.mean((np.array(a, int) - np.array(b, int))[np.random.default_rng(k).integers(0, 300, 300)]) for k in range(3000)
        ]
        assert total.low <= 100 * np.quantile(resampled, 0.025) + 0.7
        assert total.high >= 100 * np.quantile(resampled, 0.975) - 0.7
        assert minus(f"{match.name} {points:+.1f} [{total.low:+.1f}, {total.high:+.1f}] points: {total.verdict}") in page.text
        assert (total.verdict == "improves") == (total.low > 0)
        by_tenths = comparison.gains_by_tenths(predictions.val_targets, match)  # type: ignore[arg-type]
        for at, gain in enumerate(by_tenths):
            part = order[30 * at : 30 * at + 30]
            assert gain.points == pytest.approx(100 * (sum(a[k] for k in part) - sum(b[k] for k in part)) / 30)
        by_class = class_gains.class_gains(np.array(a), np.array(b), predictions.labels, 10)
        for entry in by_class:
            part = [k for k in range(300) if predictions.labels[k] == entry.label]
            assert entry.gain.samples == len(part)
            assert entry.gain.points == pytest.approx(100 * (sum(a[k] for k in part) - sum(b[k] for k in part)) / len(part))
        assert [e.gain.points for e in by_class] == sorted((e.gain.points for e in by_class), reverse=True)
        failed = [k for k in range(300) if b[k] and not a[k]]
        surest = sorted(failed, key=lambda k: (-float(student.top_log_p[k, 0]), int(predictions.ids[k])))
        assert comparison.failures(predictions, match).tolist() == surest
        assert total.lost == len(failed)


def test_failures_show_both_guesses(full_inputs: ReportInputs, without_figures: None) -> None:
    predictions, baseline = full_inputs.predictions, full_inputs.baseline
    assert predictions is not None
    assert baseline is not None
    section = comparison.section(full_inputs)
    assert section is not None
    shown = [block for block in section.blocks if isinstance(block, Gallery)]
    assert [block.name for block in shown] == ["failures-0", "failures-1"]
    rows = {int(sample): row for row, sample in enumerate(predictions.ids)}
    for index, block in enumerate(shown):
        assert len(block.cards) == 12
        for card in block.cards:
            row = rows[card.sample_id]
            mine, theirs = predictions.students[index], baseline.predictions.students[index]
            assert card.label == full_inputs.class_names[predictions.labels[row]].split(",")[0]
            assert [guess.by for guess in card.guesses] == ["this run", "baseline"]
            assert [guess.correct for guess in card.guesses] == [False, True]
            assert card.guesses[0].name == full_inputs.class_names[mine.top[row, 0]].split(",")[0]
            assert [guess.percent for guess in card.guesses] == pytest.approx(
                [100 * math.exp(answers.top_log_p[row, 0]) for answers in (mine, theirs)]
            )
            assert card.pixels.ndim == 3
            assert card.kind == "Validation image"


def test_no_verdict_where_the_interval_includes_zero(full_inputs: ReportInputs, without_figures: None, tmp_path: Path) -> None:
    assert full_inputs.predictions is not None
    for skill in (-2.0, -0.2, 0.0, 0.2, 2.0):
        inputs = replace(full_inputs, baseline=fake_baseline(full_inputs, skill=skill), out=tmp_path)
        lead = comparison.lead(inputs)
        for low, high, verdict in re.findall(r"\[([+−]?[\d.]+), ([+−]?[\d.]+)\] points: ([a-z ]+)", lead):
            bounds = [float(value.replace("−", "-")) for value in (low, high)]
            assert (verdict == "improves") == (bounds[0] > 0)
            assert (verdict == "worsens") == (bounds[1] < 0)
    same = replace(full_inputs, baseline=replace(full_inputs.baseline, predictions=full_inputs.predictions))  # type: ignore[type-var]
    assert comparison.lead(same).count("0.0 [") == 3
    assert "improves" not in comparison.lead(same)


STUDENTS = ("resnet18", "mobilenet_v2", "resnet34", "resnet18")
SHAPED = (
    *("accuracy-val", "weights*", "entropies*", "classes", "classes-val", "classes-0-1", "teacher-accuracy*"),
    *("reliability-*", "agreement", "gain-by-weight", "gain-classes-0"),
)
"""One of each kind of figure that depends on the numbers of students, classes or samples."""


@pytest.mark.parametrize(
    ("students", "classes", "samples", "teacher"),
    [
        (1, 2, 1, True),
        (1, 10, 7, False),
        (2, 2, 1, False),
        (3, 30, 20, True),
        pytest.param(2, 3, 2, True, marks=pytest.mark.long),
        pytest.param(3, 10, 7, True, marks=pytest.mark.long),
        pytest.param(3, 150, 40, False, marks=pytest.mark.long),
        pytest.param(4, 3, 2, False, marks=pytest.mark.long),
        pytest.param(4, 150, 40, True, marks=pytest.mark.long),
    ],
)
def test_pages_of_every_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, students: int, classes: int, samples: int, teacher: bool
) -> None:
    draw_only(monkeypatch, *SHAPED)
    listed = ", ".join(f"{{architecture='{STUDENTS[n]}', name='s{n}'}}" for n in range(students))
    alone = () if teacher else ("loss.alpha=1.0", "loss.beta=0.0", "loss.gamma=0.0")
    inputs = fake(
        tmp_path,
        num_classes=classes,
        samples=3 * samples,
        val_samples=samples,
        epochs=1,
        overrides=(f"students=[{listed}]", *alone),
    )
    names = tuple(inputs.recipe.student_names())
    inputs = replace(inputs, predictions=fake_predictions(classes, names, samples=samples, teacher=teacher))
    inputs = replace(inputs, targets=inputs.targets if teacher else None, baseline=fake_baseline(inputs))
    page = Page(write_report(inputs))
    assert not re.search(r"\b(nan|inf)\b", page.text, re.IGNORECASE), re.findall(r".{40}\bnan\b.{20}", page.text)
    svg = (tmp_path / "index.html").read_text()
    assert not re.search(r'="[^"]*\bnan\b', svg), "no coordinate is NaN"
    assert ("There is only one student." in page.text) == (students == 1)
    if samples < 3:
        assert "improves" not in page.text
        assert "worsens" not in page.text


def test_a_thousand_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_only(monkeypatch, "classes", "gain-classes-0")
    inputs = fake(tmp_path, num_classes=1000, samples=1500, val_samples=1000, epochs=1)
    inputs = replace(inputs, baseline=fake_baseline(inputs))
    page = Page(write_report(inputs))
    assert "Numbers of every class (1000)" in page.text
    assert re.search(r"… \d{3} more", page.text)
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)


def test_five_students_are_counted(tmp_path: Path, without_figures: None) -> None:
    listed = ", ".join(f"{{architecture='resnet18', name='s{n}'}}" for n in range(5))
    inputs = fake(tmp_path, epochs=1, overrides=(f"students=[{listed}]",))
    assert inputs.predictions is not None
    rows = disagreement.correct_patterns(inputs.predictions)
    correct = np.array([correctness(answers, inputs.predictions.labels) for answers in inputs.predictions.students])
    assert [label for label, _ in rows] == [f"{k} of 5 correct" for k in (5, 4, 3, 2, 1, 0)]
    assert [counts["all"] for _, counts in rows] == [int((correct.sum(0) == k).sum()) for k in (5, 4, 3, 2, 1, 0)]
    assert "Classes are shown for the first 3 of 10 pairs" in Page(write_report(inputs)).text


@pytest.mark.parametrize("students", [3, 4])
def test_labels_of_patterns(tmp_path: Path, students: int) -> None:
    listed = ", ".join(f"{{architecture='resnet18', name='{name}'}}" for name in "abcd"[:students])
    predictions = fake(tmp_path, epochs=1, overrides=(f"students=[{listed}]",)).predictions
    assert predictions is not None
    rows = dict(disagreement.correct_patterns(predictions))
    correct = np.array([correctness(answers, predictions.labels) for answers in predictions.students])
    assert len(rows) == 2**students
    assert rows["all correct"]["all"] == int(correct.all(0).sum())
    assert rows["only b"]["all"] == int((correct[1] & (correct.sum(0) == 1)).sum())
    assert rows["all but c"]["all"] == int((~correct[2] & (correct.sum(0) == students - 1)).sum())
    assert sum(counts["all"] for counts in rows.values()) == 300
    assert all(counts["teacher correct"] + counts["teacher wrong"] == counts["all"] for counts in rows.values())


def test_a_class_without_validation_images(full_inputs: ReportInputs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    draw_only(monkeypatch, "classes-*")
    predictions = full_inputs.predictions
    assert predictions is not None
    moved = replace(predictions, labels=np.where(predictions.labels == 4, 5, predictions.labels))
    text = Page(write_report(replace(full_inputs, predictions=moved, out=tmp_path, baseline=None))).text
    assert "validation 0 images" in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    assert 4 not in certainty.class_means(moved.val_targets)[0]  # type: ignore[arg-type]


def test_hostile_names_are_text(full_inputs: ReportInputs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tags, formulas, control characters, a lone surrogate, a right-to-left mark, megabytes; figures stay valid XML."""
    draw_only(monkeypatch, "*")
    hostile = "a\x1b[31m\x00\x07\u202e\u2028\udcff\x85"
    huge = hostile * 30_000
    inputs = fake(tmp_path, num_classes=14, epochs=1)
    baseline = replace(fake_baseline(inputs), name="<b>$x_1$</b>")
    named = replace(
        inputs,
        baseline=baseline,
        class_names=(*HOSTILE_NAMES, hostile, f"{hostile}1", huge, huge + "2"),
        name=f"<b>run</b>{huge}",
        provenance=dict(inputs.provenance) | {"command": f"udkd train {huge}", f"key{hostile}": hostile},
        teacher={"architecture": huge, hostile: hostile},
    )
    path = write_report(named)
    page, text = Page(path), path.read_text()
    assert page.tags["script"] == page.tags["b"] - page.tags["li"] == 0
    assert page.tags["img"] == 24 + 12 + 24
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "<b>run</b>" in page.text
    assert "Against the baseline <b>$x_1$</b>" in page.text
    assert "$\\frac{1}{0$" in page.text
    assert "红鸢" in page.text
    assert {character for character in text if not (character.isprintable() or character in "\n\u00a0")} == set()
    assert text.count(r"\x1b[31m\x00\x07\u202e\u2028\udcff\x85") > 20
    assert len(text) < 4 * 10**6
    for drawing in re.findall(r"<svg .*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(drawing.replace("xlink:href", "href"))


def test_counterparts_of_students(full_inputs: ReportInputs) -> None:
    predictions, baseline = full_inputs.predictions, full_inputs.baseline
    assert predictions is not None
    assert baseline is not None

    def pairs(names: tuple[str, ...], architectures: tuple[str, ...]) -> list[tuple[str, str]]:
        theirs = replace(predictions, names=names, students=predictions.students[:1] * len(names))
        other = replace(baseline, student_names=names, architectures=architectures, predictions=theirs)
        return [(match.name, match.against) for match in comparison.matches(full_inputs, predictions, other)]

    assert pairs(("big",), ("resnet18",)) == [("resnet18", "big")]
    assert pairs(("x",), ("vgg11",)) == []
    twice = pairs(("other", "resnet18", "y"), ("resnet18", "resnet18", "mobilenet_v2"))
    assert twice == [("resnet18", "resnet18"), ("mobilenet_v2", "y"), ("ensemble", "ensemble")]
    none = replace(full_inputs, baseline=replace(baseline, architectures=("vgg11", "vgg13")))
    section = comparison.section(none)
    assert section is not None
    assert "has a counterpart" in section.blocks[0].text  # type: ignore[union-attr]
    assert comparison.lead(none) == ""


@pytest.fixture
def runs(tmp_path: Path, full_inputs: ReportInputs) -> tuple[Path, Path]:
    """Two run folders as udkd train and udkd eval write them, without checkpoints."""
    folders = (tmp_path / "mine", tmp_path / "theirs")
    for seed, folder in enumerate(folders):
        run = RunFolder.create(folder, full_inputs.recipe.to_dict(), full_inputs.provenance)
        predictions = fake_predictions(10, ("resnet18", "mobilenet_v2"), seed=seed)
        sha256 = write_predictions(run.predictions_path, predictions)
        run.write_evaluation(dict(full_inputs.evaluation or {}) | {"predictions_sha256": sha256})
    return folders


def test_a_baseline_is_loaded(runs: tuple[Path, Path], without_figures: None) -> None:
    inputs = load_inputs(runs[0], baselines=[runs[1]])
    assert inputs.baseline is not None
    assert inputs.baseline.name == "theirs"
    assert inputs.baseline.architectures == ("resnet18", "mobilenet_v2")
    text = Page(write_report(inputs)).text
    assert "Against the baseline theirs" in text
    assert "the images cannot be shown" in text
    assert "baseline" not in Page(write_report(load_inputs(runs[0]))).classes


def test_unusable_baselines_are_refused(runs: tuple[Path, Path]) -> None:
    mine, theirs = runs
    with pytest.raises(RunError, match="is the run itself; expected another run"):
        load_inputs(mine, baselines=[mine])
    facts = (theirs / "run.json").read_bytes()
    rewrite_json(theirs / "run.json", lambda values: values | {"dataset_digest": "00" * 32})
    with pytest.raises(MismatchError, match=r"name a run on the same data \(dataset_digest: "):
        load_inputs(mine, baselines=[theirs])
    (theirs / "run.json").write_bytes(facts)
    load_inputs(mine, baselines=[theirs])
    (theirs / "predictions.safetensors").rename(theirs / "kept")
    with pytest.raises(RunError, match=f"a baseline was named and {theirs} has no predictions; run udkd eval {theirs}"):
        load_inputs(mine, baselines=[theirs])
    with pytest.raises(RunError, match=f"a baseline was named and {theirs} has no predictions"):
        load_inputs(theirs, baselines=[mine])
    (theirs / "predictions.safetensors").write_bytes((theirs / "kept").read_bytes()[:-4])
    with pytest.raises(RunError, match="cannot be read"):
        load_inputs(mine, baselines=[theirs])
    other = fake_predictions(10, ("resnet18", "mobilenet_v2"), samples=299)
    sha256 = write_predictions(theirs / "predictions.safetensors", other)
    rewrite_json(theirs / "eval.json", lambda values: values | {"num_samples": 299, "predictions_sha256": sha256})
    with pytest.raises(RunError, match="was evaluated on other images than"):
        load_inputs(mine, baselines=[theirs])


def test_each_student_has_its_baseline(tmp_path: Path, full_inputs: ReportInputs, without_figures: None) -> None:
    """A dual run against two single runs; errors name what is missing."""
    folders = {}
    for seed, (name, students) in enumerate(
        {"dual": ("resnet18", "mobilenet_v2"), "alone-r": ("resnet18",), "alone-m": ("mobilenet_v2",)}.items()
    ):
        sections = ", ".join(f"{{architecture='{student}', lr=0.05}}" for student in students)
        recipe = fake(tmp_path / "unused", overrides=(f"students=[{sections}]",)).recipe
        run = RunFolder.create(tmp_path / name, recipe.to_dict(), full_inputs.provenance)
        sha256 = write_predictions(run.predictions_path, fake_predictions(10, students, seed=seed))
        evaluation = dict(full_inputs.evaluation or {})
        selected = [student for student in evaluation["students"] if student["name"] in students]
        run.write_evaluation(evaluation | {"predictions_sha256": sha256, "students": selected})
        folders[name] = tmp_path / name
    dual, one, other = folders.values()
    inputs = load_inputs(dual, baselines=[other, one])
    predictions, baseline = inputs.predictions, inputs.baseline
    assert predictions is not None
    assert baseline is not None
    matched = comparison.matches(inputs, predictions, baseline)
    assert [(match.name, match.against) for match in matched] == [
        ("resnet18", "resnet18 of alone-r"),
        ("mobilenet_v2", "mobilenet_v2 of alone-m"),
    ]
    for match, folder in zip(matched, (one, other), strict=True):
        theirs, _ = read_predictions(RunFolder.open(folder).predictions_path)
        a, b = (correctness(each.students[at], predictions.labels) for each, at in ((predictions, match.index), (theirs, 0)))
        assert comparison.overall_gain(predictions, match).points == pytest.approx(100 * (sum(a) - sum(b)) / 300)
    text = Page(write_report(replace(inputs, evaluation=None))).text
    assert "Against the baselines alone-m and alone-r" in text
    assert "the images cannot be shown" in text
    with pytest.raises(RunError, match=r"the baseline alone-m has mobilenet_v2; expected a student of resnet18; drop it"):
        load_inputs(dual, baselines=[other, other])
    with pytest.raises(RunError, match=r"the baseline alone-m has mobilenet_v2; expected a student of this run that no other"):
        load_inputs(one, baselines=[dual, other])
    three = fake(
        tmp_path / "unused",
        overrides=("students=[{architecture='resnet18'}, {architecture='vgg11'}, {architecture='mobilenet_v2'}]",),
    ).recipe
    with pytest.raises(RunError, match=r"no baseline has vgg11 \(alone-m: mobilenet_v2; alone-r: resnet18\); expected one for"):
        combine_baselines(three, baseline.parts)


def test_the_interval_of_an_ece_by_hand() -> None:
    random = np.random.default_rng(5)
    confidence = random.uniform(0.2, 1, 120).astype(np.float32)
    correct = random.random(120) < 0.7
    interval = calibration_error_interval(confidence, correct, seed=3)
    draws, errors = np.random.Generator(np.random.PCG64(3)), []
    for _ in range(1000):
        bins: dict[int, float] = {}
        for row in draws.integers(0, 120, 120).tolist():
            bin_index = max(1, math.ceil(float(confidence[row]) * 15 - 1e-9))
            bins[bin_index] = bins.get(bin_index, 0.0) + float(correct[row]) - float(confidence[row])
        errors.append(sum(abs(value) for value in bins.values()) / 120)
    assert interval == pytest.approx(tuple(np.quantile(errors, [0.025, 0.975])), abs=1e-9)
    assert calibration_error_interval(confidence, correct, seed=3) == interval
    assert calibration_error_interval(confidence, correct, seed=4) != interval


def test_predictions_of_another_evaluation_are_not_shown(runs: tuple[Path, Path], without_figures: None) -> None:
    mine, _ = runs
    run = RunFolder.open(mine)
    run.write_evaluation(dict(run.evaluation or {}) | {"predictions_sha256": "0" * 64})
    inputs = load_inputs(mine)
    assert inputs.predictions is None
    text = Page(write_report(inputs)).text
    assert "expected them of one evaluation; run udkd eval again" in text
    assert "Reliability" not in text
    run.predictions_path.unlink()
    text = Page(write_report(load_inputs(mine))).text
    assert text.count("run udkd eval") == 1
    assert f"{mine} has no predictions; run udkd eval {mine}" in text
