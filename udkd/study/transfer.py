"""A study that compares teachers: rank correlations of their weights show whether they are unsure of the same samples.

Letters: N rows of a split, n matched samples or classes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from udkd.data.dataset import DatasetFolder
from udkd.losses.sample_weight import entropy_weight
from udkd.report import style
from udkd.report.page import Facts, Note, Page, PageSection, Plot, Plots, Row, Table, render
from udkd.report.style import Palette, plot
from udkd.report.text import comma_list, count, signed
from udkd.study.plan import StudyPlan
from udkd.study.runner import StudyContext, make_cache, make_teacher
from udkd.study.spec import Study
from udkd.study.tables import csv_text
from udkd.teacher.cache.reader import Cache
from udkd.utils.errors import DataError
from udkd.utils.files import write_bytes, write_json, write_text
from udkd.utils.statistics import rank_correlation

FORMAT, VERSION = "udkd-transfer", 1
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

    @property
    def label(self) -> str:
        return f"{self.teacher}, seed {self.seed}, {self.data}"


@dataclass(frozen=True, kw_only=True)
class PairAgreement:
    """Spearman's rho of two teachers' weights. group: of GROUPS. level: "samples" or "classes", of which both have `n`."""

    one: str
    other: str
    group: str
    level: str
    n: int
    rho: float


def compare_teachers(plan: StudyPlan, context: StudyContext, others: Sequence[Path]) -> tuple[list[PairAgreement], Path] | None:
    """Fit the missing teachers, compute each one's weights of its training data, and write study.json, table.csv and the page.

    None where the study was stopped; the same call resumes it. Raises DataError where two folders have one name.
    """
    folders = [context.data, *others]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise DataError(f"dataset folders are called {', '.join(names)}; expected different names, for the table; rename one")
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
            top1 = teacher.info.accuracy.get("top1")
            teachers.append(read_teacher_weights(trial.arm, trial.seed, dataset, Cache.open(cache), top1))
    pairs = agreements(teachers)
    return pairs, _write(plan, context.folder.result, teachers, pairs)


def read_teacher_weights(arm: str, seed: int, dataset: DatasetFolder, cache: Cache, top1: float | None) -> TeacherWeights:
    """A teacher's weights from its cache of evaluation views."""
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
    """All pairs on the same dataset, and pairs of one architecture and seed across datasets, by sample and by class."""
    pairs = []
    for one, other in combinations(teachers, 2):
        same_teacher = one.teacher == other.teacher
        if one.data == other.data:
            group = GROUPS[0] if same_teacher else GROUPS[1]
        elif same_teacher and one.seed == other.seed:
            group = GROUPS[2]
        else:
            continue
        for level in ("samples", "classes"):
            weights: tuple[dict[str, float], dict[str, float]] = getattr(one, level), getattr(other, level)
            common = sorted(weights[0].keys() & weights[1].keys())
            if len(common) < MIN_MATCHED:
                continue
            rho = rank_correlation(*([side[name] for name in common] for side in weights))
            if not math.isnan(rho):  # NaN: one of the teachers gives equal weights
                pairs.append(PairAgreement(one=one.label, other=other.label, group=group, level=level, n=len(common), rho=rho))
    return pairs


def _write(plan: StudyPlan, folder: Path, teachers: Sequence[TeacherWeights], pairs: Sequence[PairAgreement]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "format": FORMAT,
        "version": VERSION,
        "study": plan.study.stored(),
        "recipe": plan.base.to_dict(),
        "teachers": [
            {"teacher": teacher.teacher, "seed": teacher.seed, "data": teacher.data, "top1": teacher.top1}
            | {"mean_weight": fmean(teacher.samples.values()), "class_weights": teacher.classes}
            for teacher in teachers
        ],
        "agreements": [asdict(pair) for pair in pairs],
    }
    write_json(folder / "study.json", values)
    rows = [(pair.one, pair.other, pair.group, pair.level, pair.n, f"{pair.rho:.6g}") for pair in pairs]
    write_text(folder / "table.csv", csv_text(("one", "other", "group", "level", "n", "rho"), rows))
    return write_page(folder, values)


def write_page(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write the page of a study.json and its plot. Returns the page's path."""
    pairs = [PairAgreement(**pair) for pair in values["agreements"]]
    agreement_plot, path = _plot(pairs), folder / "index.html"
    write_bytes(folder / "agreement.png", agreement_plot.png)
    write_text(path, render(_page(values, pairs, agreement_plot), style.css()))
    return path


def _plot(pairs: Sequence[PairAgreement]) -> Plot:
    rows = [(group, level) for group in GROUPS for level in ("samples", "classes")]
    rows = [row for row in rows if any((pair.group, pair.level) == row for pair in pairs)]

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.add_subplot()
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.axvline(0, color=palette.soft, linewidth=1)
        for y, row in enumerate(rows):
            values = [pair.rho for pair in pairs if (pair.group, pair.level) == row]
            colour = palette.student(0 if row[1] == "samples" else 1)
            axes.plot(values, [y] * len(values), linestyle="none", marker="o", color=colour, alpha=0.7)
        axes.set_yticks(range(len(rows)), [f"{group}:\n{level}" for group, level in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(min(-0.05, *(pair.rho for pair in pairs), 0) - 0.05, 1.05)
        axes.set_xlabel("rank correlation of the weights")
        axes.spines["left"].set_visible(False)

    num_pairs = len({(pair.one, pair.other) for pair in pairs})
    caption = f"{count(num_pairs, 'pair')} of teachers. 1: the same order of samples (or classes); 0: no relation."
    return plot("agreement", "Agreement of the weights", caption, draw, height=0.75 + 0.46 * max(len(rows), 1))


def _page(values: Mapping[str, Any], pairs: Sequence[PairAgreement], agreement_plot: Plot) -> Page:
    study = Study.of_stored(values["study"])
    means = []
    for group in GROUPS:
        rhos = [pair.rho for pair in pairs if pair.group == group and pair.level == "samples"]
        rhos = rhos or [pair.rho for pair in pairs if pair.group == group]
        if rhos:
            means.append(f"{group} {signed(fmean(rhos), 2)}")
    pair_table = Table(
        name="agreements",
        title="Every pair",
        head=("", "pair", "level", "n", "rho"),
        rows=[
            Row(label=pair.one, detail=f"and {pair.other}", cells=(pair.group, pair.level, f"{pair.n:,}", signed(pair.rho, 3)))
            for pair in pairs
        ],
        caption="Weights w = 1 − H / ln C of the training samples, in the evaluation view.",
        stacked=True,
    )
    teacher_table = Table(
        name="teachers",
        title="The teachers",
        head=("", "top-1 %", "mean weight"),
        rows=[
            Row(
                label=f"{teacher['teacher']}, seed {teacher['seed']}, {teacher['data']}",
                cells=("" if teacher["top1"] is None else f"{teacher['top1']:.2f}", f"{teacher['mean_weight']:.4f}"),
            )
            for teacher in values["teachers"]
        ],
        caption="A teacher is sure of the images it was fitted on; these are the weights its students would get.",
    )
    notes = [Note(text=note) for note in study.notes]
    study_facts = Facts(title="The study", text=json.dumps(values["study"], indent=2, ensure_ascii=False))
    return Page(
        title=study.title,
        subtitle=f"{count(len(values['teachers']), 'teacher')} · {values['recipe']['views']['size_px']} px",
        lead=f"{study.question} Mean rank correlation: {comma_list(means)}." if means else study.question,
        sections=[
            PageSection(
                anchor="agreement",
                title="Result",
                blocks=[Plots(plots=[agreement_plot]), _group_table(pairs), *notes, pair_table],
            ),
            PageSection(anchor="teachers", title="The teachers", blocks=[teacher_table, study_facts]),
        ],
        footer="Written by udkd; every number is in study.json, beside this page.",
    )


def _group_table(pairs: Sequence[PairAgreement]) -> Table:
    """A line for each kind of pair: number of pairs, mean and range of rho."""
    rows = []
    for group in GROUPS:
        for level in ("samples", "classes"):
            rhos = [pair.rho for pair in pairs if (pair.group, pair.level) == (group, level)]
            if rhos:
                cells = (signed(fmean(rhos), 2), f"{signed(min(rhos), 2)} to {signed(max(rhos), 2)}")
                rows.append(Row(label=group, cells=(level, str(len(rhos)), *cells)))
    return Table(
        name="groups",
        title="Spearman’s rank correlation",
        head=("", "level", "pairs", "mean rho", "lowest to highest"),
        rows=rows,
        caption="Pairs share teachers, so they are not independent observations.",
    )
