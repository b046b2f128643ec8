"""The result, and the paper's four tables beside what this run can put into them.

A run fills a row only where its students and its loss are that row's; everything else stays a gap.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Literal

from udkd.report import paper
from udkd.report.curves import METHODS
from udkd.report.inputs import ReportInputs
from udkd.report.page import Block, Group, Note, Row, Section, Table
from udkd.report.style import NUM_STUDENT_COLOURS
from udkd.report.text import capital_free, count, listed, sentence
from udkd.training.run_folder import flatten


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of the result table. top1, top5: percent. parameters: None where unknown."""

    name: str
    kind: Literal["student", "average", "teacher"]
    top1: float
    top5: float
    parameters: int | None


def result_table(evaluation: Mapping[str, Any]) -> list[Result]:
    """eval.json's values as lines: each student, the averaged probabilities of several students, the teacher if it is there."""
    students = [_result(student["name"], "student", student) for student in evaluation["students"]]
    if len(students) > 1:
        students.append(_result("students averaged", "average", evaluation["ensemble"]))
    teacher = evaluation.get("teacher")
    return [*students, _result(f"teacher {teacher['name']}", "teacher", teacher)] if teacher else students


def standard_error(top1: float, num_samples: int) -> float:
    """Of an accuracy in percent over that many images, in percentage points (binomial)."""
    return math.sqrt(top1 * (100 - top1) / num_samples)


def result_section(inputs: ReportInputs) -> Section:
    """The run's own result and what it is worth."""
    blocks: list[Block] = []
    results, origin = results_of(inputs)
    if not results:
        blocks.append(Note(text="Nothing is measured yet: no epoch is finished and udkd eval has not run.", missing=True))
        return Section(anchor="result", title="Result", blocks=blocks)
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
        Table(name="accuracy", title="Validation accuracy", head=head, rows=rows, caption=_worth(inputs, results, origin))
    )
    if inputs.evaluation is None:
        text = "udkd eval has not run: the figures are the last epoch's, without parameters and teacher."
        blocks.append(Note(text=text, missing=True))
    elif not inputs.evaluation.get("teacher") and inputs.teacher:
        text = "The teacher's row is missing: udkd eval was not told where the teacher lies (--teacher)."
        blocks.append(Note(text=text, missing=True))
    return Section(anchor="result", title="Result", blocks=blocks)


def results_of(inputs: ReportInputs) -> tuple[list[Result], str]:
    """eval.json's lines, else those of the last epoch, and where they are from."""
    if inputs.evaluation is not None:
        return result_table(inputs.evaluation), "the newest checkpoint"
    if not inputs.metrics:
        return [], ""
    last = inputs.metrics[-1]
    rows = zip(inputs.student_names, last["val"]["students"], strict=True)
    named = [dict(student) | {"name": name} for name, student in rows if student is not None]  # None has not joined yet
    return result_table({"students": named, "ensemble": last["val"]["ensemble"]}), f"epoch {last['epoch']}"


def paper_section(inputs: ReportInputs) -> Section:
    """Tables I to IV."""
    blocks: list[Block] = [Note(text=text) for text in comparability(inputs)]
    blocks += [table_1(inputs), table_2(inputs), table_3(inputs), table_4(inputs)]
    return Section(anchor="paper", title="Beside the paper’s tables", blocks=blocks)


def comparability(inputs: ReportInputs) -> list[str]:
    """Sentences on what keeps this run's figures from being held against the paper's."""
    recipe, facts = inputs.recipe, inputs.data
    reasons = []
    if facts is None:
        reasons.append("other images, for all that is known (the dataset folder is not there)")
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
    device = inputs.provenance.get("hardware", {}).get("device", "hardware that was not recorded")
    first = (
        f"Not comparable with the paper’s figures: this run had {listed(reasons)}."
        if reasons
        else "Images, resolution, epochs and teacher are the paper’s; it gives no seeds and no spread, and this is one seed."
    )
    second = f"It ran on {device}. {paper.NOTE_HARDWARE} A dash is what one run of these settings cannot fill."
    settings = _other_settings(inputs)
    third = [f"Settings that differ from the paper’s besides: {'; '.join(settings)}."] if settings else []
    return [f"{first} {second}", *third]


def table_1(inputs: ReportInputs) -> Table:
    """Accuracy of baseline and dual students."""
    rows = []
    for entry in paper.TABLE_1:
        own = _accuracy(inputs, entry.method, entry.student)
        cells = (f"{entry.top1:.2f}", f"{entry.top5:.2f}", *(f"{value:.2f}" if own else None for value in own or (0.0, 0.0)))
        rows.append(Row(label=f"{entry.label}, {paper.TITLES[entry.student]}", cells=cells, strong=own is not None))
    for gain in paper.TABLE_1_GAINS:
        cells = (f"+{gain.top1:.2f}", f"+{gain.top5:.2f}", None, None)
        rows.append(Row(label=f"gain as printed, {paper.TITLES[gain.student]}", cells=cells))
    return Table(
        name="table-1",
        title="Table I: accuracy, %",
        head=("", "top-1", "top-5", "top-1", "top-5"),
        groups=(Group(label="paper", span=2), Group(label="this run", span=2)),
        rows=rows,
        caption=_filled(inputs, rows, "A gain needs a baseline run beside the dual one, which one run does not hold."),
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
        same = sorted(architectures) == sorted(entry.students) and _taught(inputs) and (peers or not dual)
        same = same and not beyond(inputs)
        own = f"{hours:.3g}" if same and hours is not None else None
        ratio = "" if entry.ratio is None else f"{entry.ratio:.2f}×"
        rows.append(Row(label=entry.label, cells=(f"{entry.hours:.2f}", ratio, own, None), strong=own is not None))
    both = Row(label="dual against both singles together", cells=("", f"{paper.TABLE_2_RATIO_OF_BOTH}×", "", None))
    source = {"cache": "from the cache, whose building is not counted", "live": "asked live", "none": "absent"}
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
    """What each part of the loss adds."""
    rows = []
    for entry in paper.TABLE_3:
        own = [_accuracy(inputs, entry.method, student) for student in paper.STUDENTS]
        cells = (*(f"{value:.1f}" for value in entry.top1), *(None if value is None else f"{value[0]:.1f}" for value in own))
        rows.append(Row(label=entry.label, detail=_symbols(entry.method), cells=cells, strong=any(own)))
    titles = tuple(paper.TITLES[student] for student in paper.STUDENTS)
    return Table(
        name="table-3",
        title="Table III: top-1, %, by parts of the loss",
        head=("", *titles, *titles),
        groups=(Group(label="paper", span=2), Group(label="this run", span=2)),
        rows=rows,
        caption=_filled(inputs, rows),
        notes=(paper.NOTE_MIXED, "A question mark: the paper does not print these; the row above’s are taken."),
    )


def table_4(inputs: ReportInputs) -> Table:
    """Parameters. Networks that the paper does not list follow its own."""
    own = _parameters(inputs)
    teacher = (inputs.evaluation or {}).get("teacher")
    largest = int(teacher["parameters"]) if teacher else None
    rows = []
    printed = {entry.architecture: (f"{entry.millions:.1f} M", f"{entry.ratio:.2f}×") for entry in paper.TABLE_4}
    for architecture in [*printed, *(name for name in own if name not in printed)]:
        number = own.get(architecture)
        cells = (
            *printed.get(architecture, ("", "")),
            None if number is None else f"{number / 1e6:.2f} M",
            None if number is None or largest is None else f"{largest / number:.2f}×",
        )
        rows.append(Row(label=paper.TITLES.get(architecture, architecture), cells=cells, strong=number is not None))
    classes = (inputs.evaluation or {}).get("num_classes")
    heads = f"; this run’s have {classes}, hence smaller last layers" if classes and classes != 1000 else ""
    return Table(
        name="table-4",
        title="Table IV: parameters, and how many times fewer than the teacher’s",
        head=("", "parameters", "fewer", "parameters", "fewer"),
        groups=(Group(label="paper", span=2), Group(label="this run", span=2)),
        rows=rows,
        caption=f"The paper counts networks of 1,000 classes{heads}.",
    )


def hours_for(inputs: ReportInputs, epochs: int) -> float | None:
    """Hours of training steps for that many epochs, from the median epoch.

    Steps and images/s give an epoch's time; `seconds` alone would be too short for an epoch that was resumed in the middle.
    """
    steps = [0, *(int(row["step"]) for row in inputs.metrics)]
    images = [inputs.recipe.train.batch_size * (after - before) for before, after in pairwise(steps)]
    seconds = [number / row["images_per_s"] for number, row in zip(images, inputs.metrics, strict=True)]
    return epochs * median(seconds) / 3600 if seconds else None


def fits(inputs: ReportInputs, method: paper.Method) -> bool:
    """Whether the run's loss is a row's: alpha, beta, gamma and weight; gamma counts only where there are peers.

    No row of the paper has a further term, weights of the loss that move, students that count differently, join later or
    start part-trained, or weights of samples that are another's, everyone's mean or divided by it.
    """
    loss = inputs.recipe.loss
    gamma = loss.gamma if len(inputs.recipe.students) > 1 else 0.0
    pairs = ((loss.alpha, method.alpha), (loss.beta, method.beta), (gamma, method.gamma))
    same = all(math.isclose(own, wanted) for own, wanted in pairs)
    return same and not beyond(inputs) and (method.weight is None or loss.weighing.text == method.weight)


def beyond(inputs: ReportInputs) -> list[str]:
    """What the run's loss and students have that no row of the paper has, in words."""
    recipe, loss = inputs.recipe, inputs.recipe.loss
    found = [f"a term of {METHODS[loss.method]}"] if loss.largest_weights[3] else []
    found += [f"{name} → {moves.to:g}, {moves.kind}" for name, moves in loss.moving.items()]
    found += [f"hard labels by the {loss.label_loss} loss"] if loss.label_loss != "cross_entropy" else []
    if recipe.needs_teacher and recipe.teacher.estimator != "plain":
        found.append(f"targets of {recipe.teacher.estimator.replace('_', ' ')}")
    for name, student in zip(inputs.student_names, recipe.students, strict=True):
        found += [f"{name} counts {student.loss_weight:g} times"] if student.loss_weight != 1 else []
        found += [f"{name} joins after {count(student.start_epoch, 'epoch')}"] if student.start_epoch else []
        found += [f"{name} starts part-trained"] if student.init_from else []
    return found


def _accuracy(inputs: ReportInputs, method: paper.Method, student: str) -> tuple[float, float] | None:
    """The run's top-1 and top-5 for a row, percent, or None where it cannot fill it.

    With peers the company counts: both of the paper's students and no other. Without, each student learns alone.
    """
    architectures = _architectures(inputs)
    alone = method.gamma == 0
    if not fits(inputs, method) or architectures.count(student) != 1:
        return None
    if not alone and sorted(architectures) != sorted(paper.STUDENTS):
        return None
    results = [result for result in results_of(inputs)[0] if result.kind == "student"]
    if not results:
        return None
    own = results[architectures.index(student)]
    return own.top1, own.top5


def _parameters(inputs: ReportInputs) -> dict[str, int]:
    """Parameters by architecture, the teacher's first."""
    evaluation = inputs.evaluation or {"students": []}
    teacher = evaluation.get("teacher")
    found = {teacher["name"]: int(teacher["parameters"])} if teacher else {}
    for architecture, student in zip(_architectures(inputs), evaluation["students"], strict=False):
        found.setdefault(architecture, int(student["parameters"]))
    return found


def _architectures(inputs: ReportInputs) -> list[str]:
    return [student.architecture for student in inputs.recipe.students]


def _taught(inputs: ReportInputs) -> bool:
    return inputs.recipe.needs_teacher


def _filled(inputs: ReportInputs, rows: Sequence[Row], more: str = "") -> str:
    loss = inputs.recipe.loss
    gamma = loss.gamma if len(inputs.recipe.students) > 1 else 0.0
    method = paper.Method(
        alpha=loss.alpha, beta=loss.beta, gamma=gamma, weight=loss.weighing.text if loss.largest_weights[1] else None
    )
    more_of_it = "".join(f", {part}" for part in beyond(inputs))
    told = f"This run ({_symbols(method)}{more_of_it}; {listed(inputs.student_names)})"
    told += " stands in the rows in bold." if any(row.strong for row in rows) else " is none of these rows."
    return f"{told} {more}".strip()


def _symbols(method: paper.Method) -> str:
    mark = "?" if method.assumed else ""
    weights = f"α\u00a0{method.alpha:g}{mark}, β\u00a0{method.beta:g}{mark}, γ\u00a0{method.gamma:g}"
    if method.weight is None:
        return weights
    kind, *controls = method.weight.split(", ")
    said = {"entropy": "w", "constant": "1"}.get(kind, kind.replace("_", " "))
    return f"{weights}, weight {', '.join([said, *controls])}"


def _other_settings(inputs: ReportInputs) -> list[str]:
    values = flatten(inputs.recipe.to_dict())
    nested = inputs.recipe.to_dict()
    found = []
    for key, words, printed in paper.SETTINGS:
        own = _at(nested, key)
        if own != printed:
            found.append(f"{words} {capital_free(own)} ({capital_free(printed)})")
    for key, words, printed in paper.STUDENT_SETTINGS:
        own_all = list(dict.fromkeys(values[f"students.{index}.{key}"] for index in range(len(inputs.recipe.students))))
        if own_all != [printed]:
            found.append(f"{words} {' and '.join(capital_free(own) for own in own_all)} ({capital_free(printed)})")
    if _taught(inputs) and inputs.recipe.teacher.views == "eval":
        found.append("the teacher sees each image’s evaluation view (the students’ views)")
    return found


def _at(values: Mapping[str, Any], path: str) -> Any:
    for part in path.split("."):
        values = values[part]
    return values


def _result(name: str, kind: Literal["student", "average", "teacher"], values: Mapping[str, Any]) -> Result:
    return Result(name=name, kind=kind, top1=values["top1"], top5=values["top5"], parameters=values.get("parameters"))


def _worth(inputs: ReportInputs, results: Sequence[Result], origin: str) -> str:
    """What the figures are and how far one run carries."""
    images = (inputs.evaluation or {}).get("num_samples") or (inputs.data.val_images if inputs.data else 0)
    seed = inputs.recipe.train.seed
    told = f"One run, one seed ({seed}), no error bars; measured on {origin}"
    if not images:
        return sentence(told)
    error = max(standard_error(result.top1, images) for result in results)
    return sentence(
        f"{told} with {count(images, 'validation image')}, whose number alone leaves a standard error of "
        f"up to {error:.1f} points on a top-1; another seed adds its own"
    )
