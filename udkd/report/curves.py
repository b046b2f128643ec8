"""Losses, accuracy and learning rate by epoch. NaN: a student before its start_epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from udkd.losses.methods.builtin import METHODS
from udkd.report.inputs import ReportInputs
from udkd.report.page import Block, Note, PageSection, Plot, Plots
from udkd.report.style import MARKERS, Palette, plot
from udkd.report.text import comma_list, count, sentence, short_name

_TERMS = {
    "hard": ("Loss against the labels", "cross-entropy, nats", "α", "alpha"),
    "teacher": ("Loss against the teacher", "divergence × τ², nats", "β", "beta"),
    "peer": ("Loss against the peers", "divergence × τ², nats", "γ", "gamma"),
    "method": ("Loss of the method", "the method’s term", "its weight", "method"),
}
"""Term of metrics.jsonl -> title, unit, symbol of its weight, name of its weight in loss.schedules."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line over the epochs. student: the student's number, for colour and marker; None for the average."""

    label: str
    values: Sequence[float]
    student: int | None

    @property
    def finite(self) -> list[float]:
        """The values since the student's start_epoch."""
        return [value for value in self.values if not isnan(value)]


@dataclass(frozen=True, kw_only=True)
class ReferenceLine:
    """A horizontal reference line."""

    label: str
    value: float


def section(inputs: ReportInputs) -> PageSection:
    """Curves, or a note where no epoch is finished."""
    blocks: list[Block] = []
    if inputs.metrics:
        blocks.append(Plots(plots=[*_accuracy(inputs), *_losses(inputs), _rate(inputs)]))
        blocks += [Note(text=text) for text in _absent_terms(inputs)]
    else:
        blocks.append(Note(text="No epoch is finished yet.", missing=True))
    return PageSection(anchor="curves", title="Training curves", blocks=blocks)


def _losses(inputs: ReportInputs) -> list[Plot]:
    loss = inputs.recipe.loss
    plots = []
    for term, (title, unit, _, _) in _TERMS.items():
        if not _is_used(inputs, term):
            continue
        series = _per_student(inputs, [row["train"][term] for row in inputs.metrics])
        ends = [f"{line.label} {_first_to_last(line.finite)}" for line in series if line.finite]
        weighting = (
            f"w ({loss.sample_weighting.text.replace('_', ' ')}) included, "
            if term == "teacher" and loss.sample_weight != "constant"
            else ""
        )
        span = "From the first epoch to the last" if len(inputs.metrics) > 1 else "In the only epoch"
        caption = f"{span} {comma_list(ends)} (epoch means, {weighting}before {_weight(inputs, term)})."
        title += f", {METHODS[loss.method].title}" if term == "method" else ""
        plots.append(_chart(f"loss-{term}", title, unit, caption, inputs, series, from_zero=True))
    return plots


def _weight(inputs: ReportInputs, term: str) -> str:
    """A term's weight, such as `α = 0.4`, or with a schedule `α = 0.4 → 1, linear`."""
    loss, (_, _, symbol, name) = inputs.recipe.loss, _TERMS[term]
    index = ("alpha", "beta", "gamma", "method").index(name)
    schedule = loss.scheduled.get(name)
    return f"{symbol} = {loss.initial_weights[index]:g}" + (f" → {schedule.to:g}, {schedule.kind}" if schedule else "")


def _accuracy(inputs: ReportInputs) -> list[Plot]:
    val = [row["val"] for row in inputs.metrics]
    students = _per_student(inputs, [[student and student["top1"] for student in row["students"]] for row in val])
    several = [sum(student is not None for student in row["students"]) > 1 for row in val]  # else it is the average of one
    ensemble = [row["ensemble"]["top1"] if more else nan for row, more in zip(val, several, strict=True)]
    average = Series(label="ensemble", values=ensemble, student=None)
    series = [*students, average] if len(students) > 1 else students
    trained = _per_student(inputs, [row["train"]["top1"] for row in inputs.metrics])
    teacher = (inputs.evaluation or {}).get("teacher")
    levels = [ReferenceLine(label="teacher", value=teacher["top1"])] if teacher else []
    highest = max(value for line in [*series, *trained] for value in line.finite)
    ceiling = min(100.0, 1.08 * max([highest, *(level.value for level in levels)]))
    best = [f"{line.label} {max(line.finite):.1f} % in epoch {_best_epoch(inputs, line)}" for line in series if line.finite]
    ends = [f"{line.label} {line.finite[-1]:.1f} %" for line in trained if line.finite]
    title, best_text = "Validation accuracy", f"Best: {comma_list(best)}."
    return [
        _chart("accuracy-val", title, "top-1, %", best_text, inputs, series, levels=levels, limits=(0, ceiling)),
        _chart(
            "accuracy-train",
            "Training accuracy",
            "top-1, %",
            f"In the last epoch {comma_list(ends)}, on augmented views, the mean over the epoch’s steps.",
            inputs,
            trained,
            limits=(0, ceiling),
        ),
    ]


def _rate(inputs: ReportInputs) -> Plot:
    series = _per_student(inputs, [row["lr"] for row in inputs.metrics])
    if len(series) > 1 and all(list(line.values) == list(series[0].values) for line in series):
        series = [Series(label="all students", values=series[0].values, student=None)]
    peaks = sorted({student.lr for student in inputs.recipe.students})
    warm_up = max(student.warmup_epochs for student in inputs.recipe.students)
    after = f" after a warm-up of {warm_up:g} epoch{'' if warm_up == 1 else 's'}" if warm_up else ""
    kinds = list(dict.fromkeys(student.schedule for student in inputs.recipe.students))
    shown = comma_list([f"{peak:g}" for peak in peaks])
    if kinds == ["cosine"] and not any(student.lr_end for student in inputs.recipe.students):
        text = f"Half a cosine from {shown} to 0{after}; each point is an epoch's last step."
    else:
        text = f"Schedule {comma_list(kinds)}, from {shown}{after}; each point is an epoch's last step."
    late = [student.start_epoch for student in inputs.recipe.students if student.start_epoch]
    text += f" One student starts after {count(min(late), 'epoch')}: 0 until then." if late else ""
    return _chart("learning-rate", "Learning rate", "learning rate", text, inputs, series, height=2.1, from_zero=True)


def _first_to_last(values: Sequence[float]) -> str:
    return f"{values[0]:#.3g} → {values[-1]:#.3g}" if len(values) > 1 else f"{values[0]:#.3g}"


def _absent_terms(inputs: ReportInputs) -> list[str]:
    alone = len(inputs.recipe.students) == 1
    texts = []
    for term, (title, _, symbol, _) in _TERMS.items():
        if not _is_used(inputs, term) and term != "method":
            why = "one student has no peers" if term == "peer" and alone else f"{symbol} = 0"
            texts.append(sentence(f"{title}: not part of this run ({why})"))
    return texts


def _is_used(inputs: ReportInputs, term: str) -> bool:
    """Whether a term of the loss ever has a weight above 0."""
    alpha, beta, gamma, method = inputs.recipe.loss.max_weights
    weights = {"hard": alpha, "teacher": beta, "peer": gamma if len(inputs.recipe.students) > 1 else 0.0, "method": method}
    return weights[term] > 0


def _per_student(inputs: ReportInputs, rows: Sequence[Sequence[float | None]]) -> list[Series]:
    """Transpose epoch rows (one value per student) into one line per student; None, before a student's start, becomes NaN."""
    columns = [[nan if value is None else value for value in column] for column in zip(*rows, strict=True)]
    return [
        Series(label=short_name(name, 18), values=values, student=index)
        for index, (name, values) in enumerate(zip(inputs.student_names, columns, strict=True))
    ]


def _best_epoch(inputs: ReportInputs, line: Series) -> int:
    return int(inputs.metrics[list(line.values).index(max(line.finite))]["epoch"])


def _chart(
    name: str,
    title: str,
    unit: str,
    caption: str,
    inputs: ReportInputs,
    series: Sequence[Series],
    *,
    levels: Sequence[ReferenceLine] = (),
    limits: tuple[float, float] | None = None,
    height: float = 2.9,
    from_zero: bool = False,
) -> Plot:
    epochs = [int(row["epoch"]) for row in inputs.metrics]

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.subplots()
        for line in series:
            colour = palette.ink if line.student is None else palette.student(line.student)
            axes.plot(
                epochs,
                line.values,
                color=colour,
                marker=None if line.student is None and len(epochs) > 1 else MARKERS[(line.student or 0) % len(MARKERS)],
                markersize=4,
                markevery=max(1, len(epochs) // 8),
                clip_on=False,
                linestyle="-" if line.student is not None else (0, (5, 1.5)),
            )
        for level in levels:
            axes.axhline(level.value, color=palette.soft, linewidth=1, linestyle=(0, (1, 2)))
        axes.set_ylabel(unit)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        if len(epochs) > 1:
            axes.set_xlim(epochs[0], epochs[-1])
        if limits:
            axes.set_ylim(*limits)
        elif from_zero:
            axes.set_ylim(bottom=0)
        ends = [
            (line.finite[-1], line.label, palette.ink if line.student is None else palette.student(line.student))
            for line in series
            if line.finite
        ]
        _label_ends(axes, [*ends, *((level.value, level.label, palette.soft) for level in levels)], height)

    return plot(name, title, caption, draw, height=height)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], height: float) -> None:
    """Write each line's name beside its end; overlapping names are moved apart."""
    low, high = axes.get_ylim()
    gap = 13 / (height * 72 * 0.76)  # a line of text as a fraction of the axes' height
    ys = space_labels([(value - low) / (high - low or 1.0) for value, _, _ in ends], gap)
    for y, (_, label, colour) in zip(ys, ends, strict=True):
        axes.annotate(
            label,
            xy=(1, y),
            xycoords="axes fraction",
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )


def space_labels(targets: Sequence[float], gap: float) -> list[float]:
    """Positions in [0, 1], at least `gap` apart, in the order of the targets and as near to them as that allows.

    Isotonic regression of (position - rank * gap): neighbours that would overlap are pooled to their mean. The gap shrinks
    where there is no room for all.
    """
    gap = min(gap, 1 / max(1, len(targets) - 1))
    order = sorted(range(len(targets)), key=lambda index: targets[index])
    pools: list[list[float]] = []
    for rank, index in enumerate(order):
        pools.append([targets[index] - rank * gap])
        while len(pools) > 1 and mean(pools[-2]) >= mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    level = [mean(pool) for pool in pools for _ in pool]
    room = 1 - (len(targets) - 1) * gap
    positions = {i: min(max(x, 0.0), room) + rank * gap for rank, (i, x) in enumerate(zip(order, level, strict=True))}
    return [positions[index] for index in range(len(targets))]
