"""The result, and the paper's four tables beside this run's numbers.

A run fills a row only if it has that row's students and loss; the other cells stay empty.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from udkd.losses.methods.builtin import METHODS
from udkd.report import paper
from udkd.report.inputs import ReportInputs
from udkd.report.page import Block, Group, Note, PageSection, Row, Table
from udkd.report.style import NUM_STUDENT_COLOURS
from udkd.report.text import comma_list, count, sentence, setting_text
from udkd.training.run_folder import epoch_seconds, flatten


@dataclass(frozen=True, kw_only=True)
class AccuracyRow:
    """A row of the result table. top1, top5: percent. parameters: None where unknown."""

    name: str
    kind: Literal["student", "average", "teacher"]
    top1: float
    top5: float
    parameters: int | None


def accuracy_rows(evaluation: Mapping[str, Any]) -> list[AccuracyRow]:
    """The rows of eval.json's values: each student, the average of several students, the teacher if it was evaluated."""
    students = [_result(student["name"], "student", student) for student in evaluation["students"]]
    if len(students) > 1:
        students.append(_result("ensemble", "average", evaluation["ensemble"]))
    teacher = evaluation.get("teacher")
    return [*students, _result(f"teacher {teacher['name']}", "teacher", teacher)] if teacher else students


def standard_error(top1: float, num_samples: int) -> float:
    """Binomial standard error, in percentage points, of an accuracy in percent over `num_samples` images."""
    return math.sqrt(top1 * (100 - top1) / num_samples)


def result_section(inputs: ReportInputs) -> PageSection:
    """The run's result and its uncertainty."""
    blocks: list[Block] = []
    results, origin = results_of(inputs)
    if not results:
        blocks.append(Note(text="There are no results yet: no epoch is finished and udkd eval has not run.", missing=True))
        return PageSection(anchor="result", title="Result", blocks=blocks)
    rows, students = [], 0
    hues = {"average": "ink", "teacher": "soft"}
    for result in results:
        is_student = result.kind == "student"
        size = None if result.parameters is None else f"{result.parameters / 1e6:.2f} M"
        cells = (f"{result.top1:.2f}", f"{result.top5:.2f}", size if result.kind != "average" else "")
        hue = f"s{students % NUM_STUDENT_COLOURS}" if is_student else hues[result.kind]
        rows.append(Row(label=result.name, cells=cells, hue=hue, key=is_student, bar=result.top1))
        students += is_student
    head = ("", "top-1 %", "top-5 %", "parameters")
    blocks.append(
        Table(name="accuracy", title="Validation accuracy", head=head, rows=rows, caption=_origin_text(inputs, results, origin))
    )
    if inputs.evaluation is None:
        text = "udkd eval has not run: the numbers are of the last epoch, without parameters and teacher."
        blocks.append(Note(text=text, missing=True))
    elif not inputs.evaluation.get("teacher") and inputs.teacher:
        is_imported = inputs.provenance.get("cache_key", {}).get("claimed")
        why = "its logits were imported, for the training images alone" if is_imported else "udkd eval ran without --teacher"
        text = f"The teacher's row is missing: {why}."
        blocks.append(Note(text=text, missing=True))
    return PageSection(anchor="result", title="Result", blocks=blocks)


def results_of(inputs: ReportInputs) -> tuple[list[AccuracyRow], str]:
    """The rows of eval.json, else of the last epoch, and a text on their origin."""
    if inputs.evaluation is not None:
        return accuracy_rows(inputs.evaluation), f"the checkpoint at step {inputs.evaluation['step']:,}"
    if not inputs.metrics:
        return [], ""
    last = inputs.metrics[-1]
    rows = zip(inputs.student_names, last["val"]["students"], strict=True)
    named = [dict(student) | {"name": name} for name, student in rows if student is not None]  # None: not started yet
    return accuracy_rows({"students": named, "ensemble": last["val"]["ensemble"]}), f"epoch {last['epoch']}"


def paper_section(inputs: ReportInputs) -> PageSection:
    """Tables I to IV."""
    blocks: list[Block] = [Note(text=text) for text in comparability(inputs)]
    blocks += [table_1(inputs), table_2(inputs), table_3(inputs), table_4(inputs)]
    return PageSection(anchor="paper", title="Comparison with the paper’s tables", blocks=blocks)


def comparability(inputs: ReportInputs) -> list[str]:
    """Sentences on why this run's numbers cannot be compared with the paper's."""
    recipe, facts = inputs.recipe, inputs.data
    reasons = []
    if facts is None:
        reasons.append("possibly other images (the dataset folder is missing)")
    elif not facts.imagenet100:
        images = f"{facts.num_classes} classes, {count(facts.train_images, 'training image')}"
        reasons.append(f"other images ({images}) than ImageNet-100’s {paper.TRAIN_IMAGES:,} in {paper.NUM_CLASSES} classes")
    elif facts.train_images != paper.TRAIN_IMAGES:
        reasons.append(f"{facts.train_images:,} training images of ImageNet-100 instead of {paper.TRAIN_IMAGES:,}")
    if facts is not None and facts.imagenet100 and facts.side < paper.SIZE_PX:
        reasons.append(f"images stored at {facts.side} px")
    if recipe.views.size_px != paper.SIZE_PX:
        reasons.append(f"{recipe.views.size_px} px instead of {paper.SIZE_PX}")
    done = int(inputs.metrics[-1]["epoch"]) if inputs.metrics else 0
    if done != paper.EPOCHS:
        reasons.append(f"{count(done, 'epoch')} instead of {paper.EPOCHS}")
    teacher = (inputs.teacher or {}).get("architecture")
    if teacher not in (None, paper.RESNET50):
        reasons.append(f"{teacher} as the teacher instead of {paper.TITLES[paper.RESNET50]}")
    device = inputs.provenance.get("hardware", {}).get("device", "unrecorded hardware")
    first = (
        f"Not comparable with the paper’s numbers: this run had {comma_list(reasons)}."
        if reasons
        else "Images, resolution, epochs and teacher are the paper’s; it reports no seeds and no spread, and this is one seed."
    )
    second = f"It ran on {device}. {paper.NOTE_HARDWARE} Dashes: values that one run with these settings cannot give."
    settings = _other_settings(inputs)
    third = [f"Other settings that differ from the paper’s (in brackets): {'; '.join(settings)}."] if settings else []
    return [f"{first} {second}", *third]


def table_1(inputs: ReportInputs) -> Table:
    """Accuracy of baseline and dual students."""
    rows = []
    for entry in paper.TABLE_1:
        result = _accuracy(inputs, entry.method, entry.student)
        run_cells = (None, None) if result is None else (f"{result[0]:.2f}", f"{result[1]:.2f}")
        cells = (f"{entry.top1:.2f}", f"{entry.top5:.2f}", *run_cells)
        rows.append(Row(label=f"{entry.label}, {paper.TITLES[entry.student]}", cells=cells, strong=result is not None))
    for gain in paper.TABLE_1_GAINS:
        cells = (f"+{gain.top1:.2f}", f"+{gain.top5:.2f}", None, None)
        rows.append(Row(label=f"gain as printed, {paper.TITLES[gain.student]}", cells=cells))
    return Table(
        name="table-1",
        title="Table I: accuracy, %",
        head=("", "top-1", "top-5", "top-1", "top-5"),
        groups=(Group(label="paper", span=2), Group(label="this run", span=2)),
        rows=rows,
        caption=_filled(inputs, rows, "A gain needs a baseline run besides the dual one."),
        notes=(paper.NOTE_GAINS,),
    )


def table_2(inputs: ReportInputs) -> Table:
    """Training time."""
    hours = hours_for(inputs, paper.TABLE_2_EPOCHS)
    architectures = _architectures(inputs)
    rows = []
    for entry in paper.TABLE_2:
        dual = len(entry.students) > 1
        peers = inputs.recipe.loss.gamma > 0
        same = sorted(architectures) == sorted(entry.students) and inputs.recipe.needs_teacher and (peers or not dual)
        same = same and not extra_settings(inputs)
        run_hours = f"{hours:.3g}" if same and hours is not None else None
        ratio = "" if entry.ratio is None else f"{entry.ratio:.2f}×"
        rows.append(Row(label=entry.label, cells=(f"{entry.hours:.2f}", ratio, run_hours, None), strong=run_hours is not None))
    both = Row(label="dual against both singles together", cells=("", f"{paper.TABLE_2_RATIO_OF_BOTH}×", "", None))
    source = {"cache": "cached, without the time to build the cache", "live": "live", "none": "absent"}
    note = (
        f"This run: {paper.TABLE_2_EPOCHS} × the median epoch of {len(inputs.metrics)}, training steps alone, "
        f"without validation; the teacher is {source[inputs.recipe.teacher.source]}."
    )
    return Table(
        name="table-2",
        title=f"Table II: hours for {paper.TABLE_2_EPOCHS} epochs",
        head=("", "hours", "ratio", "hours", "ratio"),
        groups=(Group(label="paper", span=2), Group(label="this run", span=2)),
        rows=[*rows, both],
        caption=_filled(inputs, rows, "A ratio needs single and dual runs on one machine."),
        notes=(note,) if any(row.strong for row in rows) else (),
    )


def table_3(inputs: ReportInputs) -> Table:
    """Accuracy by the terms of the loss."""
    rows = []
    for entry in paper.TABLE_3:
        results = [_accuracy(inputs, entry.method, student) for student in paper.STUDENTS]
        run_cells = (None if result is None else f"{result[0]:.1f}" for result in results)
        cells = (*(f"{top1:.1f}" for top1 in entry.top1), *run_cells)
        rows.append(Row(label=entry.label, detail=_symbols(entry.method), cells=cells, strong=any(results)))
    titles = tuple(paper.TITLES[student] for student in paper.STUDENTS)
    return Table(
        name="table-3",
        title="Table III: top-1, %, by terms of the loss",
        head=("", *titles, *titles),
        groups=(Group(label="paper", span=2), Group(label="this run", span=2)),
        rows=rows,
        caption=_filled(inputs, rows),
        notes=(paper.NOTE_MIXED, "Question marks: not printed in the paper; taken from the row above."),
    )


def table_4(inputs: ReportInputs) -> Table:
    """Numbers of parameters; networks that the paper does not list come last."""
    parameters = _parameters(inputs)
    teacher = (inputs.evaluation or {}).get("teacher")
    largest = int(teacher["parameters"]) if teacher else None
    rows = []
    printed = {entry.architecture: (f"{entry.millions:.1f} M", f"{entry.ratio:.2f}×") for entry in paper.TABLE_4}
    for architecture in [*printed, *(name for name in parameters if name not in printed)]:
        number = parameters.get(architecture)
        cells = (
            *printed.get(architecture, ("", "")),
            None if number is None else f"{number / 1e6:.2f} M",
            None if number is None or largest is None else f"{largest / number:.2f}×",
        )
        rows.append(Row(label=paper.TITLES.get(architecture, architecture), cells=cells, strong=number is not None))
    classes = (inputs.evaluation or {}).get("num_classes")
    note = f"; this run’s have {classes}, hence smaller last layers" if classes and classes != 1000 else ""
    return Table(
        name="table-4",
        title="Table IV: parameters, and the teacher’s as a multiple of them",
        head=("", "parameters", "fewer", "parameters", "fewer"),
        groups=(Group(label="paper", span=2), Group(label="this run", span=2)),
        rows=rows,
        caption=f"The paper counts networks with 1,000 classes{note}.",
    )


def hours_for(inputs: ReportInputs, epochs: int) -> float | None:
    """Hours of training steps for that many epochs, from the median epoch; None without epochs."""
    seconds = epoch_seconds(inputs.metrics, inputs.recipe.train.batch_size)
    return epochs * median(seconds) / 3600 if seconds else None


def matches_method(inputs: ReportInputs, method: paper.PaperLoss) -> bool:
    """Whether the run has the loss of a row: alpha, beta, gamma (only with peers) and sample weight.

    No row of the paper has anything in `extra_settings` or a control of the sample weights.
    """
    loss = inputs.recipe.loss
    gamma = loss.gamma if len(inputs.recipe.students) > 1 else 0.0
    pairs = ((loss.alpha, method.alpha), (loss.beta, method.beta), (gamma, method.gamma))
    same = all(math.isclose(value, printed) for value, printed in pairs)
    return same and not extra_settings(inputs) and (method.weight is None or loss.sample_weighting.text == method.weight)


def extra_settings(inputs: ReportInputs) -> list[str]:
    """Texts for the settings of the run's loss and students that no row of the paper has."""
    recipe, loss = inputs.recipe, inputs.recipe.loss
    texts = [f"a term of {METHODS[loss.method].title}"] if loss.max_weights[3] else []
    texts += [f"{name} → {schedule.to:g}, {schedule.kind}" for name, schedule in loss.scheduled.items()]
    texts += [f"hard labels by the {loss.label_loss} loss"] if loss.label_loss != "cross_entropy" else []
    if recipe.needs_teacher and recipe.teacher.estimator != "plain":
        texts.append(f"targets of {recipe.teacher.estimator.replace('_', ' ')}")
    for name, student in zip(inputs.student_names, recipe.students, strict=True):
        texts += [f"{name} with loss weight {student.loss_weight:g}"] if student.loss_weight != 1 else []
        texts += [f"{name} starts after {count(student.start_epoch, 'epoch')}"] if student.start_epoch else []
        texts += [f"{name} starts from trained weights"] if student.init_from or student.pretrained else []
    return texts


def _accuracy(inputs: ReportInputs, method: paper.PaperLoss, student: str) -> tuple[float, float] | None:
    """The run's top-1 and top-5 for a row, percent, or None where it cannot fill it.

    With peers the run must have exactly the paper's two students; without, each student trains independently.
    """
    architectures = _architectures(inputs)
    alone = method.gamma == 0
    if not matches_method(inputs, method) or architectures.count(student) != 1:
        return None
    if not alone and sorted(architectures) != sorted(paper.STUDENTS):
        return None
    results = [result for result in results_of(inputs)[0] if result.kind == "student"]
    if not results:
        return None
    result = results[architectures.index(student)]
    return result.top1, result.top5


def _parameters(inputs: ReportInputs) -> dict[str, int]:
    """Parameters by architecture, the teacher's first."""
    evaluation = inputs.evaluation or {"students": []}
    teacher = evaluation.get("teacher")
    parameters = {teacher["name"]: int(teacher["parameters"])} if teacher else {}
    for architecture, student in zip(_architectures(inputs), evaluation["students"], strict=False):
        parameters.setdefault(architecture, int(student["parameters"]))
    return parameters


def _architectures(inputs: ReportInputs) -> list[str]:
    return [student.architecture for student in inputs.recipe.students]


def _filled(inputs: ReportInputs, rows: Sequence[Row], more: str = "") -> str:
    loss = inputs.recipe.loss
    gamma = loss.gamma if len(inputs.recipe.students) > 1 else 0.0
    method = paper.PaperLoss(
        alpha=loss.alpha, beta=loss.beta, gamma=gamma, weight=loss.sample_weighting.text if loss.max_weights[1] else None
    )
    extra = "".join(f", {part}" for part in extra_settings(inputs))
    text = f"This run ({_symbols(method)}{extra}; {comma_list(inputs.student_names)})"
    text += " is in the rows in bold." if any(row.strong for row in rows) else " is in none of these rows."
    return f"{text} {more}".strip()


def _symbols(method: paper.PaperLoss) -> str:
    mark = "?" if method.assumed else ""
    weights = f"α\u00a0{method.alpha:g}{mark}, β\u00a0{method.beta:g}{mark}, γ\u00a0{method.gamma:g}"
    if method.weight is None:
        return weights
    kind, *controls = method.weight.split(", ")
    symbol = {"entropy": "w", "constant": "1"}.get(kind, kind.replace("_", " "))
    return f"{weights}, weight {', '.join([symbol, *controls])}"


def _other_settings(inputs: ReportInputs) -> list[str]:
    values = flatten(inputs.recipe.to_dict())
    nested = inputs.recipe.to_dict()
    texts = []
    for key, name, printed in paper.SETTINGS:
        value = _value_at(nested, key)
        if value != printed:
            texts.append(f"{name} {setting_text(value)} ({setting_text(printed)})")
    for key, name, printed in paper.STUDENT_SETTINGS:
        different = list(dict.fromkeys(values[f"students.{index}.{key}"] for index in range(len(inputs.recipe.students))))
        if different != [printed]:
            texts.append(f"{name} {' and '.join(map(setting_text, different))} ({setting_text(printed)})")
    if inputs.recipe.needs_teacher and inputs.recipe.teacher.views == "eval":
        texts.append("the teacher sees each image’s evaluation view (the students’ views)")
    return texts


def _value_at(values: Mapping[str, Any], path: str) -> Any:
    for part in path.split("."):
        values = values[part]
    return values


def _result(name: str, kind: Literal["student", "average", "teacher"], values: Mapping[str, Any]) -> AccuracyRow:
    return AccuracyRow(name=name, kind=kind, top1=values["top1"], top5=values["top5"], parameters=values.get("parameters"))


def _origin_text(inputs: ReportInputs, results: Sequence[AccuracyRow], origin: str) -> str:
    """The origin of the numbers and the uncertainty of one run."""
    images = (inputs.evaluation or {}).get("num_samples") or (inputs.data.val_images if inputs.data else 0)
    seed = inputs.recipe.train.seed
    text = f"One run, one seed ({seed}), no error bars; measured on {origin}"
    if not images:
        return sentence(text)
    error = max(standard_error(result.top1, images) for result in results)
    return sentence(
        f"{text} with {count(images, 'validation image')}, whose sampling gives top-1 a standard error of up to {error:.1f} "
        "points; the variation between seeds comes on top"
    )
