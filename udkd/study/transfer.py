"""A study of teachers alone: whether they are unsure of the same samples and classes, as rank correlations of their weights.

Letters: N rows of a split, n matched samples or classes.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from udkd.data.dataset import DatasetFolder
from udkd.losses.sample_weight import entropy_weight
from udkd.report import style
from udkd.report.page import Facts, Note, Page, Plot, Plots, Row, Section, Table, render
from udkd.report.style import Palette, plot
from udkd.report.text import comma_list, count
from udkd.study.plan import StudyPlan
from udkd.study.runner import StudyContext, make_cache, make_teacher
from udkd.study.tables import csv_text, signed
from udkd.teacher.cache.reader import Cache
from udkd.utils.errors import DataError
from udkd.utils.files import write_bytes, write_json, write_text
from udkd.utils.statistics import rank_correlation

MIN_MATCHED = 3
"""Fewer matched samples or classes give no correlation."""

GROUPS = ("same architecture, other seed", "other architecture", "other data")


@dataclass(frozen=True, kw_only=True, eq=False)
class TeacherWeights:
    """One teacher's weights of the training samples it was fitted on.

    samples: weight by source name. classes: mean weight by wnid. top1: its validation accuracy, percent, or None.
    """

    teacher: str
    seed: int
    data: str
    samples: dict[str, float]
    classes: dict[str, float]
    top1: float | None


@dataclass(frozen=True, kw_only=True)
class PairAgreement:
    """Spearman's rho of two teachers' weights. group: of GROUPS. level: "samples" or "classes", `n` of which both have."""

    one: str
    other: str
    group: str
    level: str
    n: int
    rho: float


def compare_teachers(plan: StudyPlan, context: StudyContext, others: Sequence[Path]) -> tuple[list[PairAgreement], Path] | None:
    """Fit what is missing, ask every teacher about its own data, and write study.json, table.csv and the page.

    None where it was stopped; the same call goes on. Raises DataError where two folders have one name.
    """
    folders = [context.data, *others]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise DataError(f"dataset folders are called {', '.join(names)}; expected a name each, for the table; rename one")
    teachers = []
    for folder in folders:
        dataset = DatasetFolder.open(folder)
        for trial in plan.trials:
            teacher = make_teacher(trial.recipe, dataset, context)
            if teacher is None or context.stopped():
                return None
            cache = make_cache([trial], dataset, teacher, context)
            if cache is None:
                return None
            teachers.append(
                read_teacher_weights(trial.arm, trial.seed, dataset, Cache.open(cache), teacher.info.accuracy.get("top1"))
            )
    found = agreements(teachers)
    return found, _write(plan, context.folder.result, teachers, found)


def read_teacher_weights(arm: str, seed: int, dataset: DatasetFolder, cache: Cache, top1: float | None) -> TeacherWeights:
    """Read a canonical cache's weights."""
    split = dataset.split("train")
    weight_N: NDArray[np.float32] = entropy_weight(torch.from_numpy(np.array(cache.targets(0)[1])), cache.num_classes).numpy()
    ids, labels = split.ids, split.labels
    return TeacherWeights(
        teacher=arm,
        seed=seed,
        data=dataset.path.resolve().name,
        samples={split.source[n]: float(weight_N[n]) for n in ids.tolist()},
        classes={
            entry.wnid: float(weight_N[ids[labels[ids] == label]].mean())
            for label, entry in enumerate(dataset.classes)
            if (labels[ids] == label).any()
        },
        top1=top1,
    )


def agreements(teachers: Sequence[TeacherWeights]) -> list[PairAgreement]:
    """All pairs in one data set, and pairs of one architecture and seed across data sets, by sample and by class."""
    found = []
    for one, other in combinations(teachers, 2):
        same_teacher = one.teacher == other.teacher
        if one.data == other.data:
            group = GROUPS[0] if same_teacher else GROUPS[1]
        elif same_teacher and one.seed == other.seed:
            group = GROUPS[2]
        else:
            continue
        for level in ("samples", "classes"):
            own: dict[str, float] = getattr(one, level)
            its: dict[str, float] = getattr(other, level)
            both = sorted(own.keys() & its.keys())
            if len(both) >= MIN_MATCHED:
                rho = rank_correlation([own[name] for name in both], [its[name] for name in both])
                if math.isnan(rho):  # a teacher that weighs all alike orders nothing
                    continue
                found.append(
                    PairAgreement(one=_called(one), other=_called(other), group=group, level=level, n=len(both), rho=rho)
                )
    return found


def _called(own: TeacherWeights) -> str:
    return f"{own.teacher}, seed {own.seed}, {own.data}"


def _write(plan: StudyPlan, folder: Path, teachers: Sequence[TeacherWeights], found: Sequence[PairAgreement]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "format": "udkd-transfer",
        "version": 1,
        "study": plan.study.model_dump(mode="json"),
        "recipe": plan.base.to_dict(),
        "teachers": [
            {"teacher": own.teacher, "seed": own.seed, "data": own.data, "top1": own.top1, "mean_weight": _mean(own)}
            | {"class_weights": own.classes}
            for own in teachers
        ],
        "agreements": [asdict(pair) for pair in found],
    }
    write_json(folder / "study.json", values)
    rows = [(pair.one, pair.other, pair.group, pair.level, pair.n, f"{pair.rho:.6g}") for pair in found]
    write_text(folder / "table.csv", csv_text(("one", "other", "group", "level", "n", "rho"), rows))
    drawn = _picture(found)
    write_bytes(folder / "agreement.png", drawn.png)
    write_text(folder / "index.html", render(_page(plan, teachers, found, drawn), style.css()))
    return folder / "index.html"


def _mean(own: TeacherWeights) -> float:
    return fmean(own.samples.values())


def _picture(found: Sequence[PairAgreement]) -> Plot:
    rows = [(group, level) for group in GROUPS for level in ("samples", "classes")]
    rows = [row for row in rows if any((pair.group, pair.level) == row for pair in found)]

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.add_subplot()
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.axvline(0, color=palette.soft, linewidth=1)
        for place, row in enumerate(rows):
            values = [pair.rho for pair in found if (pair.group, pair.level) == row]
            colour = palette.student(0 if row[1] == "samples" else 1)
            axes.plot(values, [place] * len(values), linestyle="none", marker="o", color=colour, alpha=0.7)
        axes.set_yticks(range(len(rows)), [f"{group}:\n{level}" for group, level in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(min(-0.05, *(pair.rho for pair in found), 0) - 0.05, 1.05)
        axes.set_xlabel("rank correlation of the weights")
        axes.spines["left"].set_visible(False)

    pairs = len({(pair.one, pair.other) for pair in found})
    caption = f"{count(pairs, 'pair')} of teachers: 1 is the same order of samples (or classes), 0 none."
    return plot("agreement", "Agreement on what is unsure", caption, draw, height=0.75 + 0.46 * max(len(rows), 1))


def _page(plan: StudyPlan, teachers: Sequence[TeacherWeights], found: Sequence[PairAgreement], drawn: Plot) -> Page:
    told = []
    for group in GROUPS:
        own = [pair.rho for pair in found if pair.group == group and pair.level == "samples"]
        own = own or [pair.rho for pair in found if pair.group == group]
        if own:
            told.append(f"{group} {signed(fmean(own))}")
    pairs = [
        Row(label=pair.one, detail=f"and {pair.other}", cells=(pair.group, pair.level, f"{pair.n:,}", signed(pair.rho, 3)))
        for pair in found
    ]
    teacher_rows = [
        Row(
            label=_called(own),
            cells=("" if own.top1 is None else f"{own.top1:.2f}", f"{_mean(own):.4f}", f"{len(own.samples):,}"),
        )
        for own in teachers
    ]
    agreement = Table(
        name="agreements",
        title="Every pair",
        head=("", "pair", "level", "n", "rho"),
        rows=pairs,
        caption="Of the weights w = 1 − H / ln C in the canonical view of the training samples.",
        stacked=True,
    )
    asked = Table(
        name="teachers",
        title="The teachers",
        head=("", "top-1 %", "mean weight", "samples"),
        rows=teacher_rows,
        caption="A teacher is sure of images it was fitted on; the weights are those its students would get.",
    )
    notes = [Note(text=note) for note in plan.study.notes]
    return Page(
        title=plan.study.title,
        subtitle=f"{count(len(teachers), 'teacher')} · {plan.base.views.size_px} px",
        lead=f"{plan.study.question} Mean rank correlation: {comma_list(told)}." if told else plan.study.question,
        sections=[
            Section(anchor="agreement", title="Result", blocks=[Plots(plots=[drawn]), _groups(found), *notes, agreement]),
            Section(
                anchor="teachers",
                title="Who was asked",
                blocks=[asked, Facts(title="The study", text=str(plan.study.model_dump()))],
            ),
        ],
        footer="Written by udkd; study.json beside this page holds every number.",
    )


def _groups(found: Sequence[PairAgreement]) -> Table:
    """Each kind of pair in one line: how many, their mean, and how far they spread."""
    rows = []
    for group in GROUPS:
        for level in ("samples", "classes"):
            own = [pair.rho for pair in found if (pair.group, pair.level) == (group, level)]
            if own:
                figures = (signed(fmean(own)), f"{signed(min(own))} to {signed(max(own))}")
                rows.append(Row(label=group, cells=(level, str(len(own)), *figures)))
    return Table(
        name="groups",
        title="Spearman’s rank correlation",
        head=("", "level", "pairs", "mean rho", "lowest to highest"),
        rows=rows,
        caption="Pairs share teachers, so that they are fewer independent findings than their number.",
    )
