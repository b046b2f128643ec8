"""The paper's tables: its numbers as printed, and which rows a run may fill."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.report.fake_run import fake
from udkd.config.loading import load_recipe
from udkd.report import paper, tables
from udkd.report.inputs import ReportInputs
from udkd.report.page import Row, Table
from udkd.report.tables import accuracy_rows

RESNET_ONLY = "students=[{architecture='resnet18', lr=0.05}]"
MOBILENET_ONLY = "students=[{architecture='mobilenet_v2', lr=0.05}]"
BOTH = "students=[{architecture='mobilenet_v2'}, {architecture='resnet18'}]"
THREE = "students=[{architecture='resnet18'}, {architecture='mobilenet_v2'}, {architecture='resnet34'}]"
TWINS = "students=[{architecture='resnet18'}, {architecture='resnet18'}]"
HARD = ("loss.alpha=1.0", "loss.beta=0.0", "loss.gamma=0.0")
BASELINE = ("loss.alpha=0.3", "loss.beta=0.7", "loss.gamma=0.0", 'loss.sample_weight="constant"')
UNCERTAINTY = ("loss.alpha=0.3", "loss.beta=0.7", "loss.gamma=0.0", 'loss.sample_weight="entropy"')
DUAL = ("loss.alpha=0.4", "loss.beta=0.4", "loss.gamma=0.2", 'loss.sample_weight="entropy"')


def run_of(*overrides: str) -> ReportInputs:
    return fake(Path("unused"), samples=640, epochs=2, overrides=overrides)


def run_cells(row: Row) -> tuple[str | None, ...]:
    """The two cells of this run."""
    return row.cells[2:]


def filled(table: Table) -> list[int]:
    """Indices of rows in which this run has a number; these rows are the strong ones."""
    rows = [index for index, row in enumerate(table.rows) if any(run_cells(row))]
    assert rows == [index for index, row in enumerate(table.rows) if row.strong]
    return rows


def test_numbers_are_the_papers() -> None:
    assert [(row.student, row.top1, row.top5) for row in paper.TABLE_1] == [
        ("resnet18", 81.86, 94.54),
        ("mobilenet_v2", 80.54, 94.54),
        ("resnet18", 83.84, 96.36),
        ("mobilenet_v2", 81.46, 95.54),
    ]
    assert [row.hours for row in paper.TABLE_2] == [7.58, 7.50, 12.36]
    assert [row.top1 for row in paper.TABLE_3] == [(78.2, 76.1), (81.9, 80.5), (82.8, 81.0), (83.8, 81.5)]
    assert [(row.millions, row.ratio) for row in paper.TABLE_4] == [(25.6, 1.0), (11.7, 2.19), (3.5, 7.31)]


def test_consistency_of_the_papers_numbers() -> None:
    single, mobile, dual = (row.hours for row in paper.TABLE_2)
    assert round(dual / single, 2) == paper.TABLE_2[2].ratio == 1.63
    assert round(dual / (single + mobile), 2) == paper.TABLE_2_RATIO_OF_BOTH
    for size in paper.TABLE_4:
        assert round(paper.TABLE_4[0].millions / size.millions, 2) == size.ratio
    gains = [
        (round(after.top1 - before.top1, 2), round(after.top5 - before.top5, 2))
        for before, after in zip(paper.TABLE_1[:2], paper.TABLE_1[2:], strict=True)
    ]
    assert gains == [(1.98, 1.82), (0.92, 1.0)]  # the paper prints 2.04 for the first; the footnote notes it
    assert (paper.TABLE_1_GAINS[0].top1, "1.98" in paper.NOTE_GAINS) == (2.04, True)
    assert round(paper.MEAN_NORMALISED_ENTROPY * 4.605, 3) == 0.847
    assert "0.847" in paper.NOTE_ENTROPY
    assert str(paper.MEAN_ENTROPY_PRINTED) in paper.NOTE_ENTROPY


@pytest.mark.parametrize(
    ("overrides", "rows_1", "rows_3"),
    [
        (DUAL, [2, 3], {3: (0, 1)}),
        ((*DUAL, BOTH), [2, 3], {3: (0, 1)}),
        (BASELINE, [0, 1], {1: (0, 1)}),
        ((*BASELINE, RESNET_ONLY), [0], {1: (0,)}),
        ((*BASELINE, MOBILENET_ONLY), [1], {1: (1,)}),
        (UNCERTAINTY, [], {2: (0, 1)}),
        (HARD, [], {0: (0, 1)}),
        ((*HARD, 'loss.sample_weight="constant"'), [], {0: (0, 1)}),
        ((*DUAL, RESNET_ONLY), [], {}),  # alone there are no peers, and (.4, .4, 0) is not a row of the paper
        ((*DUAL, THREE), [], {}),  # peers other than the paper's
        ((*BASELINE, THREE), [0, 1], {1: (0, 1)}),  # without peers each learns alone
        ((*BASELINE, TWINS), [], {}),  # which of the two?
        ((*DUAL, 'loss.sample_weight="constant"'), [], {}),
        ((*DUAL, "loss.gamma=0.0"), [], {}),
        ((*DUAL, "loss.beta=0.5"), [], {}),
        ((*HARD, "loss.alpha=0.5"), [], {}),
        ((*DUAL, 'loss.sample_weight_control="shuffled"'), [], {}),
        ((*DUAL, 'loss.sample_weight_control="equal_mean"'), [], {}),
        ((*UNCERTAINTY, "loss.sample_weight_mean_one=true"), [], {}),
        ((*HARD, 'loss.method="dkd"', 'teacher.source="cache"'), [], {}),  # more than hard labels
        ((*BASELINE, 'loss.schedules.beta={kind="linear", to=0.0}'), [], {}),
        ((*DUAL, "students.1.start_epoch=1"), [], {}),
        ((*DUAL, "students.0.loss_weight=2.0"), [], {}),
        ((*DUAL, 'teacher.estimator="mc_dropout"'), [], {}),
    ],
)
def test_a_run_fills_only_its_rows(overrides: tuple[str, ...], rows_1: list[int], rows_3: dict[int, tuple[int, ...]]) -> None:
    inputs = run_of(*overrides)
    assert inputs.evaluation is not None
    by_architecture: dict[str, Any] = {}
    for student, values in zip(inputs.recipe.students, inputs.evaluation["students"], strict=True):
        by_architecture[student.architecture] = values
    first, third = tables.table_1(inputs), tables.table_3(inputs)
    assert filled(first) == rows_1
    for index in rows_1:
        values = by_architecture[("resnet18", "mobilenet_v2")[index % 2]]
        assert run_cells(first.rows[index]) == (f"{values['top1']:.2f}", f"{values['top5']:.2f}")
    assert filled(third) == sorted(rows_3)
    for index, columns in rows_3.items():
        for column in (0, 1):
            values = by_architecture.get(("resnet18", "mobilenet_v2")[column])
            cell = third.rows[index].cells[2 + column]
            assert cell == (f"{values['top1']:.1f}" if column in columns else None)
    # Missing values stay empty: no cell of this run is a zero.
    assert not [cell for table in (first, third) for row in table.rows for cell in run_cells(row) if cell and float(cell) == 0]


def test_gaps_where_only_the_last_epoch_was_evaluated() -> None:
    inputs = replace(run_of(), evaluation=None)
    last = inputs.metrics[-1]["val"]["students"]
    assert run_cells(tables.table_1(inputs).rows[2]) == (f"{last[0]['top1']:.2f}", f"{last[0]['top5']:.2f}")
    assert filled(tables.table_4(inputs)) == []
    nothing = replace(inputs, metrics=[])
    assert all(filled(table) == [] for table in (tables.table_1(nothing), tables.table_2(nothing), tables.table_3(nothing)))


@pytest.mark.parametrize(
    ("overrides", "row"),
    [(DUAL, 2), ((*BASELINE, RESNET_ONLY), 0), ((*BASELINE, MOBILENET_ONLY), 1), (BASELINE, None), (HARD, None)],
)
def test_hours_are_fifty_median_epochs(overrides: tuple[str, ...], row: int | None) -> None:
    inputs = run_of(*overrides)
    speeds = [80.0, 100.0, 50.0]
    rows = [dict(inputs.metrics[0]) | {"epoch": n + 1, "step": 10 * (n + 1), "images_per_s": speeds[n]} for n in range(3)]
    inputs = replace(inputs, metrics=rows)
    seconds = [10 * inputs.recipe.train.batch_size / speed for speed in speeds]
    hours = 50 * sorted(seconds)[1] / 3600
    assert tables.hours_for(inputs, 50) == pytest.approx(hours)
    table = tables.table_2(inputs)
    assert filled(table) == ([] if row is None else [row])
    if row is not None:
        assert run_cells(table.rows[row]) == (f"{hours:.3g}", None)


def test_parameters_against_the_teachers() -> None:
    table = tables.table_4(run_of())
    assert [row.label for row in table.rows] == ["ResNet-50", "ResNet-18", "MobileNetV2"]
    assert [run_cells(row) for row in table.rows] == [
        ("23.53 M", "1.00×"),
        ("11.18 M", f"{23_528_522 / 11_181_642:.2f}×"),
        ("2.24 M", f"{23_528_522 / 2_236_682:.2f}×"),
    ]
    other = tables.table_4(run_of("students=[{architecture='squeezenet1_1'}]"))
    assert [(row.label, row.cells[:2]) for row in other.rows][-1] == ("squeezenet1_1", ("", ""))
    assert run_cells(other.rows[1]) == (None, None)


def test_the_papers_recipe_differs_only_in_the_teachers_view() -> None:
    inputs = run_of()
    facts = replace(inputs.data, train_images=130_000, val_images=5_000, num_classes=100, side=512, imagenet100=True)  # type: ignore[type-var]
    rows = [dict(inputs.metrics[0]) | {"epoch": n + 1, "step": n + 1} for n in range(50)]
    same = replace(inputs, recipe=load_recipe("imagenet100-paper"), data=facts, metrics=rows)
    first, settings = tables.comparability(same)
    assert first.startswith("Images, resolution, epochs and teacher are the paper’s")
    assert settings.endswith("(in brackets): the teacher sees each image’s evaluation view (the students’ views).")
    exact = replace(same, recipe=load_recipe("imagenet100-paper", ["teacher.views=50"]))
    assert len(tables.comparability(exact)) == 1


def test_differences_from_the_paper_are_listed() -> None:
    inputs = run_of("loss.temperature=2.0", "train.batch_size=32")
    first, settings = tables.comparability(inputs)
    for text in ("10 classes, 640 training images", "48 px instead of 224", "2 epochs instead of 50", "AMD EPYC", "no seeds"):
        assert text in first
    assert "temperature 2 (4)" in settings
    assert "batch size 32 (64)" in settings
    assert "is missing" in tables.comparability(replace(inputs, data=None))[0]


def test_accuracy_rows_are_students_average_and_teacher() -> None:
    evaluation = run_of().evaluation
    assert evaluation is not None
    rows = accuracy_rows(evaluation)
    assert [(row.name, row.kind) for row in rows] == [
        ("resnet18", "student"),
        ("mobilenet_v2", "student"),
        ("ensemble", "average"),
        ("teacher resnet50", "teacher"),
    ]
    assert [row.parameters for row in rows] == [11_181_642, 2_236_682, None, 23_528_522]
    alone = dict(evaluation) | {"students": evaluation["students"][:1], "teacher": None}
    assert [row.kind for row in accuracy_rows(alone)] == ["student"]


def test_the_standard_error_is_the_binomial_one() -> None:
    assert tables.standard_error(50.0, 2500) == pytest.approx(1.0)
    caption = next(block for block in tables.result_section(run_of()).blocks if isinstance(block, Table)).caption
    worst = max((p * (1 - p) / 300) ** 0.5 for p in (0.72333, 0.70333, 0.73667, 0.77))
    assert f"up to {100 * worst:.1f} points" in caption
    assert "one seed (0), no error bars" in caption
