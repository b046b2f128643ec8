"""OUT/STUDY/index.html: what a study's numbers allow to be said, in one page, and its pictures as PNG files."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from udkd.report import style
from udkd.report.page import Block, Facts, Note, Page, Plots, Row, Section, Table, render
from udkd.report.text import comma_list, count
from udkd.study.plots import StudyPlots, all_plots
from udkd.study.results import AVERAGED, Comparison, RunResult, Summary, summarise
from udkd.study.spec import Study
from udkd.study.tables import interval, main_comparisons, mean_sd, signed
from udkd.utils.files import write_bytes, write_text
from udkd.utils.statistics import CLAIMS, LEVEL, METHOD, MIN_IMAGES, MIN_RUNS, Spread

_Item = TypeVar("_Item")
_HUES = {"improves": "s2", "worsens": "s1"}


def write_page(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write the page of a study.json; its statistics are computed anew from the runs' numbers. Returns the page's path."""
    study = Study.model_validate_json(json.dumps(values["study"]))
    runs = [RunResult.of(run) for run in values["runs"]]
    summary = summarise(study, runs, values["data"]["val_images"])
    sections = [_runs(runs), _making(values)]
    if runs:
        plots = all_plots(summary, [arm.name for arm in study.arms], runs)
        answers = [_answer(study, summary, plots), _accuracy(study, summary, plots)]
        cost = _cost(study, summary, values)
        sections = [*([cost, *answers] if study.asks == "cost" else [*answers, cost]), *sections]
    page = Page(
        title=study.title,
        subtitle=_subtitle(values, runs),
        lead=_lead(study, summary, values),
        sections=sections,
        footer="Written by udkd from the runs’ own files; study.json beside this page holds every number.",
    )
    for old in folder.glob("*.png"):
        old.unlink()
    for section in sections:
        for name, data in section.files().items():
            write_bytes(folder / name, data)
    path = folder / "index.html"
    write_text(path, render(page, style.css()))
    return path


def _subtitle(values: Mapping[str, Any], runs: Sequence[RunResult]) -> str:
    data, recipe = values["data"], values["recipe"]
    teacher = values["teacher"]
    parts = [
        f"{count(len(values['seeds']), 'seed')}",
        f"{data['name']}: {data['classes']} classes, {data['train_images']:,} + {data['val_images']:,} images",
        f"{recipe['views']['size_px']} px, {count(recipe['train']['epochs'], 'epoch')}",
    ]
    if teacher is not None:
        top1 = f" ({teacher['accuracy']['top1']:.1f} %)" if teacher["accuracy"] else ""
        parts.append(f"taught by {teacher['architecture']}{top1}")
    return " · ".join(parts)


def _lead(study: Study, summary: Summary, values: Mapping[str, Any]) -> str:
    """The answer in two or three sentences."""
    told = [study.question] if study.question else []
    progress = values["progress"]
    if progress["finished"] < progress["total"]:
        told.append(f"Unfinished: {progress['finished']} of {progress['total']} runs are done.")
    told += _costs_told(summary) if study.asks == "cost" else []
    compared = main_comparisons(summary, "last")
    clear = [comparison for comparison in compared if comparison.difference.verdict in CLAIMS]
    if clear:
        told.append(f"Against {_named(study.baseline)}: {_claims(clear)}; {_unclear(len(compared) - len(clear))}.")
    elif compared:
        told.append(_no_claim(compared))
    return " ".join(told) or "Nothing is finished yet."


def _no_claim(compared: Sequence[Comparison]) -> str:
    """Why nothing is claimed."""
    verdicts = {comparison.difference.verdict for comparison in compared}
    if verdicts == {"too few runs"}:
        return f"Fewer than {MIN_RUNS} seeds allow no verdict on top-1."
    if "too few images" in verdicts:
        return f"No difference of top-1 from the baseline keeps clear of 0 and is as large as {MIN_IMAGES} validation images."
    return "No difference of top-1 from the baseline keeps clear of 0."


def _costs_told(summary: Summary) -> list[str]:
    """How many times a baseline's training time each other arm's is."""
    bases = {name for cost in summary.costs for name in cost.ratios}
    told = []
    for cost in summary.costs:
        ratios = [f"{ratio:.2f} times “{name}”" for name, ratio in cost.ratios.items() if cost.arm not in bases]
        ratios += [f"{cost.to_sum:.2f} times all of these together"] if cost.to_sum is not None else []
        told += [f"“{cost.arm}” trains for {comma_list(ratios)}."] if ratios else []
    return told


def _claims(clear: Sequence[Comparison]) -> str:
    """What each arm improves or worsens, arm by arm."""
    said: dict[tuple[str, str], list[str]] = {}
    for comparison in clear:
        own = comparison.difference
        gain = f"{comparison.learner} by {abs(own.spread.mean):.2f}"
        said.setdefault((comparison.arm, own.verdict), []).append(gain)
    return "; ".join(f"“{arm}” {verdict} {comma_list(gains)} points" for (arm, verdict), gains in said.items())


def _unclear(number: int) -> str:
    return f"{count(number, 'difference')} not clear" if number else "every difference is clear of 0"


def _answer(study: Study, summary: Summary, plots: StudyPlots) -> Section:
    """Differences from the baseline, and the study's contrasts."""
    blocks: list[Block] = [Plots(plots=plots.differences)] if plots.differences else []
    compared = main_comparisons(summary, "last")
    if compared:
        blocks.append(_differences(study, compared, summary))
    contrasts = [found for found in summary.comparisons if found.isolates and found.figure == "last"]
    if contrasts:
        blocks.append(_contrasts(contrasts))
    if compared or contrasts:
        number = sum(comparison.difference.bootstrap is not None for comparison in (*compared, *contrasts))
        text = (
            f"{count(number, 'comparison')} at {LEVEL:.0%} each: about {number * (1 - LEVEL):.1f} would keep clear of 0 "
            "by chance alone if nothing made any difference."
        )
        blocks += [Note(text=METHOD), *([Note(text=text)] if number else [])]
    blocks += [Note(text=note) for note in study.notes]
    return Section(anchor="answer", title="What may be said", blocks=blocks)


def _differences(study: Study, compared: Sequence[Comparison], summary: Summary) -> Table:
    best = {(found.arm, found.learner): found.difference for found in main_comparisons(summary, "best")}
    rows = []
    for comparison, first in _with_firsts(compared, lambda comparison: comparison.arm):
        own, at_best = comparison.difference, best.get((comparison.arm, comparison.learner))
        cells = (*_told(comparison), str(own.spread.n), signed(at_best.spread.mean) if at_best else None)
        rows.append(_row(comparison, cells, comparison.arm, study.arm(comparison.arm).note, first))
    head = ("", *_TOLD, "n", "at the best epoch")
    caption = (
        "Percentage points of top-1 after the last epoch, paired by seed. The last column takes each run at its best "
        "epoch, which is chosen on the validation images themselves and therefore flatters."
    )
    title = f"Against {_named(study.baseline)}"
    return Table(name="differences", title=title, head=head, rows=rows, caption=caption, stacked=True)


def _contrasts(contrasts: Sequence[Comparison]) -> Table:
    rows = []
    for comparison, first in _with_firsts(contrasts, lambda comparison: (comparison.isolates, comparison.arm)):
        cells = (*_told(comparison), str(comparison.difference.spread.n))
        detail = f"{comparison.arm} against {comparison.against}"
        rows.append(_row(comparison, cells, comparison.isolates, detail, first))
    head = ("", *_TOLD, "n")
    caption = "Pairs of arms that differ in one thing: percentage points of top-1 after the last epoch, paired by seed."
    return Table(name="contrasts", title="One thing at a time", head=head, rows=rows, caption=caption, stacked=True)


_TOLD = ("student", "mean ± sd", "verdict", "bootstrap", "Student’s t")


def _told(comparison: Comparison) -> tuple[str | None, ...]:
    """What stands under _TOLD."""
    own = comparison.difference
    sd = f" ± {own.spread.sd:.2f}" if own.spread.sd is not None else ""
    return (
        *(comparison.learner, signed(own.spread.mean) + sd, own.verdict),
        *(interval(own.bootstrap) or None, interval(own.student_t) or None),
    )


def _row(comparison: Comparison, cells: tuple[str | None, ...], label: str, detail: str, first: bool) -> Row:
    """A row whose label and small print are said once for all learners of an arm; clear verdicts have a colour."""
    hue = _HUES.get(comparison.difference.verdict, "rule")
    return Row(label=label if first else "", detail=detail if first else "", cells=cells, hue=hue, key=True)


def _with_firsts(items: Sequence[_Item], group: Callable[[_Item], object]) -> list[tuple[_Item, bool]]:
    """Each item, and whether it is the first of a run of equal groups."""
    return [(item, place == 0 or group(items[place - 1]) != group(item)) for place, item in enumerate(items)]


def _accuracy(study: Study, summary: Summary, plots: StudyPlots) -> Section:
    printed = any(arm.paper for arm in study.arms)
    rows = []
    for arm_summary, first in _with_firsts(summary.arm_summaries, lambda arm_summary: arm_summary.arm):
        arm = study.arm(arm_summary.arm)
        paper = arm.paper.get(arm_summary.learner)
        cells: tuple[str | None, ...] = (
            *(arm_summary.learner, str(arm_summary.last.n), mean_sd(arm_summary.last), mean_sd(arm_summary.last_top5)),
            *(mean_sd(arm_summary.best), _range(arm_summary.best_epochs)),
        )
        if printed:
            cells = (*cells, f"{paper:.2f}" if paper is not None else "")
        rows.append(Row(label=arm_summary.arm if first else "", detail=arm.note if first else "", cells=cells))
    head = (
        "",
        "student",
        "n",
        "top-1 %, last",
        "top-5 %, last",
        "top-1 %, best",
        "best epoch",
        *(["paper"] if printed else []),
    )
    caption = (
        "Mean ± standard deviation over seeds. Last and best epoch stand apart: the best one is chosen on the same images."
    )
    if any(arm_summary.learner == AVERAGED for arm_summary in summary.arm_summaries):
        caption += f" “{AVERAGED}”: the students’ mean probabilities."
    if printed:
        caption += " The paper’s figures are of ImageNet-100 at 224 px after 50 epochs, one run each as far as it says."
    blocks: list[Block] = [
        Plots(plots=plots.accuracies),
        Table(name="accuracy", title="Validation accuracy", head=head, rows=rows, caption=caption, stacked=True),
        Plots(plots=plots.curves),
    ]
    return Section(anchor="accuracy", title="Accuracy", blocks=blocks)


def _cost(study: Study, summary: Summary, values: Mapping[str, Any]) -> Section:
    longest = max((cost.seconds.mean for cost in summary.costs), default=0.0)
    unit, divisor = ("hours", 3600) if longest >= 2 * 3600 else ("minutes", 60) if longest >= 120 else ("seconds", 1)
    printed = any(arm.paper_hours for arm in study.arms)
    filling = _filling(values)
    rows: list[Row] = []
    for cost in summary.costs:
        arm = study.arm(cost.arm)
        of = {f"× {name}": ratio for name, ratio in cost.ratios.items()}
        of |= {"× these together": cost.to_sum} if cost.to_sum is not None else {}
        own: tuple[str, ...] = (str(cost.seconds.n), mean_sd(cost.images_per_s, 0), mean_sd(_scaled(cost.seconds, divisor), 2))
        own += (f"{filling[cost.arm] / divisor:.2f}" if cost.arm in filling else "",)
        own += (f"{arm.paper_hours:.2f}" if arm.paper_hours else "",) if printed else ()
        for place, (name, ratio) in enumerate(list(of.items()) or [("", None)]):
            cells = own if place == 0 else ("",) * len(own)
            label, detail = (cost.arm, arm.note) if place == 0 else ("", "")
            rows.append(Row(label=label, detail=detail, cells=(*cells, "" if ratio is None else f"{ratio:.2f}", name)))
    caption = (
        f"Training steps alone, without validation, in {unit} of a whole run; a run’s images/s is its median epoch. Cache: "
        "the time that an arm’s own share of its cache takes to build, once for all its runs, at the speed it was built with."
    )
    teacher = values["teacher"]
    if teacher is not None and teacher["fit_epochs"]:
        caption += f" Fitting the teacher took {teacher['fit_seconds'] / divisor:.3g} {unit}."
    if printed:
        caption += (
            " The paper’s hours are of 50 epochs of ImageNet-100 at 224 px, with a live teacher, on hardware it does not name."
        )
    head = ("", "n", "images/s", f"{unit} a run", f"cache, {unit}", *(["paper, hours"] if printed else []), "ratio", "")
    table = Table(name="cost", title="What it costs", head=head, rows=rows, caption=caption, stacked=True)
    return Section(anchor="cost", title="Cost", blocks=[table])


def _scaled(own: Spread, divisor: float) -> Spread:
    return Spread(n=own.n, mean=own.mean / divisor, sd=None if own.sd is None else own.sd / divisor)


def _filling(values: Mapping[str, Any]) -> dict[str, float]:
    """Seconds that each arm's targets take to compute: those of its cache, by its share of the cache's images."""
    costs = {name: cost["seconds"] / cost["images"] for name, cost in values["caches"].items() if cost["images"]}
    asked = values.get("targets", {})
    return {arm: own["images"] * costs[own["cache"]] for arm, own in asked.items() if own["cache"] in costs}


def _runs(runs: Sequence[RunResult]) -> Section:
    if not runs:
        return Section(anchor="runs", title="Every run", blocks=[Note(text="No run is finished yet.", missing=True)])
    rows = [
        Row(
            label=run.arm if place == 0 else "",
            cells=(
                *(str(run.seed), outcome.learner, f"{outcome.last:.2f}", f"{outcome.last_top5:.2f}", f"{outcome.best:.2f}"),
                *(str(outcome.best_epoch), f"{run.images_per_s:,.0f}", f"{run.seconds:,.1f}", run.run),
            ),
        )
        for run in runs
        for place, outcome in enumerate(run.outcomes)
    ]
    head = ("", "seed", "student", "top-1, last", "top-5, last", "top-1, best", "best at", "images/s", "seconds", "run")
    caption = (
        "What all of the above is computed from; accuracies in percent, the best epoch’s number beside its top-1. The last "
        "column names the folder under runs/."
    )
    return Section(
        anchor="runs",
        title="Every run",
        blocks=[Table(name="runs", title="Per-run numbers", head=head, rows=rows, caption=caption)],
    )


def _making(values: Mapping[str, Any]) -> Section:
    """Everything needed to make the study again."""
    data, teacher = values["data"], values["teacher"]
    facts = [
        ("data set", f"{data['name']}, digest {data['digest'][:16]}…, stored at {data['side']} px"),
        ("teacher", "none" if teacher is None else f"{teacher['architecture']}, weights {teacher['weights_sha256'][:16]}…"),
        *(("hardware", ", ".join(f"{name} {value}" for name, value in seen.items())) for seen in values["machine"]["hardware"]),
        *(("versions", ", ".join(f"{name} {value}" for name, value in seen.items())) for seen in values["machine"]["versions"]),
        *((f"failed: {run}", why) for run, why in values["progress"]["failed"].items()),
    ]
    arms = [(arm["name"], _set(arm)) for arm in values["study"]["arms"]]
    blocks: list[Block] = [
        Facts(title="Data, teacher, hardware, versions", facts=facts, open=True),
        Facts(title="What each arm sets", facts=arms, open=True),
        Facts(title="The study", text=json.dumps(values["study"], indent=2, ensure_ascii=False)),
        Facts(title="Its base recipe", text=json.dumps(values["recipe"], indent=2, ensure_ascii=False)),
    ]
    return Section(anchor="making", title="How to make it again", blocks=blocks)


def _set(arm: Mapping[str, Any]) -> str:
    """What an arm changes in the recipe, as the study file has it."""
    told = [f"students = {', '.join(arm['students'])}"] if arm["students"] else []
    told += [*arm["set"], *(["teacher.views = train.epochs"] if arm["exact"] else [])]
    return "; ".join(told) or "nothing: the study’s recipe as it is"


def _named(names: Sequence[str]) -> str:
    return comma_list([f"“{name}”" for name in names]) or "the baseline"


def _range(epochs: Sequence[int]) -> str:
    low, high = min(epochs), max(epochs)
    return str(low) if low == high else f"{low}–{high}"
