"""OUT/STUDY/index.html: the conclusions that a study's numbers support, on one page, and its plots as PNG files."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from udkd.report import style
from udkd.report.page import Block, Facts, Note, Page, PageSection, Plots, Row, Table, render
from udkd.report.text import comma_list, count, interval, signed
from udkd.study import networks, transfer
from udkd.study.plots import StudyPlots, all_plots
from udkd.study.results import FORMAT, VERSION, Comparison, RunResult, Summary, summarise
from udkd.study.spec import Arm, Study
from udkd.study.tables import main_comparisons, mean_sd
from udkd.training.trained import AVERAGED
from udkd.utils.errors import RunError
from udkd.utils.files import read_exact_json, write_bytes, write_text
from udkd.utils.statistics import CLAIMS, LEVEL, METHOD, MIN_IMAGES, MIN_RUNS, MeanStd

_Item = TypeVar("_Item")
_HUES = {"improves": "s2", "worsens": "s1"}


def rewrite_page(folder: Path) -> Path:
    """Write the page of a stored study again, from its study.json alone. Returns the page's path.

    Raises RunError where study.json is missing, damaged or of another version.
    """
    writers = {
        (FORMAT, VERSION): write_page,
        (networks.FORMAT, networks.VERSION): networks.write_page,
        (transfer.FORMAT, transfer.VERSION): transfer.write_page,
    }
    file = folder / "study.json"
    try:
        values = read_exact_json(file)
        write = writers[values["format"], values["version"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{file} cannot be read ({error}); expected the result of udkd study; run the study again") from None
    return write(folder, values)


def write_page(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write the page of a study.json; its statistics are recomputed from the runs' numbers. Returns the page's path."""
    study = Study.of_stored(values["study"])
    runs = [RunResult.of(run) for run in values["runs"]]
    summary = summarise(study, runs, values["data"]["val_images"])
    sections = [_runs(runs), _reproduce(values, study)]
    if runs:
        plots = all_plots(summary, [arm.name for arm in study.arms], runs)
        answers = [_answer(study, summary, plots), _accuracy(study, summary, plots)]
        cost = _cost(study, summary, values)
        sections = [*([cost, *answers] if study.metric == "cost" else [*answers, cost]), *sections]
    page = Page(
        title=study.title,
        subtitle=_subtitle(values),
        lead=_lead(study, summary, values),
        sections=sections,
        footer="Written by udkd from the runs’ own files; every number is in study.json, beside this page.",
    )
    for old in folder.glob("*.png"):
        old.unlink()
    for section in sections:
        for name, data in section.files().items():
            write_bytes(folder / name, data)
    path = folder / "index.html"
    write_text(path, render(page, style.css()))
    return path


def _subtitle(values: Mapping[str, Any]) -> str:
    data, recipe = values["data"], values["recipe"]
    teacher = values["teacher"]
    parts = [
        f"{count(len(values['seeds']), 'seed')}",
        f"{data['name']}: {data['classes']} classes, {data['train_images']:,} + {data['val_images']:,} images",
        f"{recipe['views']['size_px']} px, {count(recipe['train']['epochs'], 'epoch')}",
    ]
    if teacher is not None:
        top1 = f" ({teacher['accuracy']['top1']:.1f} %)" if teacher["accuracy"] else ""
        parts.append(f"teacher {teacher['architecture']}{top1}")
    return " · ".join(parts)


def _lead(study: Study, summary: Summary, values: Mapping[str, Any]) -> str:
    """The answer in two or three sentences."""
    sentences = [study.question] if study.question else []
    progress = values["progress"]
    if progress["finished"] < progress["total"]:
        sentences.append(f"Unfinished: {progress['finished']} of {progress['total']} runs are done.")
    sentences += _cost_sentences(summary) if study.metric == "cost" else []
    compared = main_comparisons(summary, "last")
    clear = [comparison for comparison in compared if comparison.difference.verdict in CLAIMS]
    if clear:
        sentences.append(f"Against {_quoted(study.baseline)}: {_claims(clear)}; {_unclear(len(compared) - len(clear))}.")
    elif compared:
        sentences.append(_no_claim(compared))
    return " ".join(sentences) or "No run is finished yet."


def _no_claim(compared: Sequence[Comparison]) -> str:
    """Why the study claims no difference."""
    verdicts = {comparison.difference.verdict for comparison in compared}
    if verdicts == {"too few runs"}:
        return f"Fewer than {MIN_RUNS} seeds allow no verdict on top-1."
    if "too few images" in verdicts:
        return (
            "No top-1 difference from the baseline both has intervals that exclude 0 and is as large as "
            f"{MIN_IMAGES} validation images."
        )
    return "No top-1 difference from the baseline has intervals that exclude 0."


def _cost_sentences(summary: Summary) -> list[str]:
    """Each arm's training time as a multiple of the baselines'."""
    bases = {name for cost in summary.costs for name in cost.ratios}
    sentences = []
    for cost in summary.costs:
        ratios = [f"{ratio:.2f} times as long as “{name}”" for name, ratio in cost.ratios.items() if cost.arm not in bases]
        ratios += [f"{cost.to_sum:.2f} times as long as all of these together"] if cost.to_sum is not None else []
        sentences += [f"“{cost.arm}” trains {comma_list(ratios)}."] if ratios else []
    return sentences


def _claims(clear: Sequence[Comparison]) -> str:
    """What each arm improves or worsens, arm by arm."""
    gains: dict[tuple[str, str], list[str]] = {}
    for comparison in clear:
        difference = comparison.difference
        gain = f"{comparison.learner} by {abs(difference.spread.mean):.2f}"
        gains.setdefault((comparison.arm, difference.verdict), []).append(gain)
    return "; ".join(f"“{arm}” {verdict} {comma_list(parts)} points" for (arm, verdict), parts in gains.items())


def _unclear(number: int) -> str:
    return f"{count(number, 'difference')} not clear" if number else "every difference is clear"


def _answer(study: Study, summary: Summary, plots: StudyPlots) -> PageSection:
    """Differences from the baseline, and the study's contrasts."""
    blocks: list[Block] = [Plots(plots=plots.differences)] if plots.differences else []
    compared = main_comparisons(summary, "last")
    if compared:
        blocks.append(_differences(study, compared, summary))
    contrasts = [comparison for comparison in summary.comparisons if comparison.isolates and comparison.figure == "last"]
    if contrasts:
        blocks.append(_contrasts(contrasts))
    if compared or contrasts:
        number = sum(comparison.difference.bootstrap is not None for comparison in (*compared, *contrasts))
        text = (
            f"{count(number, 'comparison')} at {LEVEL:.0%} each: about {number * (1 - LEVEL):.1f} would exclude 0 by chance "
            "alone if nothing made any difference."
        )
        blocks += [Note(text=METHOD), *([Note(text=text)] if number else [])]
    blocks += [Note(text=note) for note in study.notes]
    return PageSection(anchor="answer", title="Conclusions", blocks=blocks)


def _differences(study: Study, compared: Sequence[Comparison], summary: Summary) -> Table:
    best = {(each.arm, each.learner): each.difference for each in main_comparisons(summary, "best")}
    rows = []
    for comparison, first in _with_firsts(compared, lambda comparison: comparison.arm):
        at_best = best.get((comparison.arm, comparison.learner))
        n, mean_at_best = comparison.difference.spread.n, signed(at_best.spread.mean, 2) if at_best else None
        cells = (*_verdict_cells(comparison), str(n), mean_at_best)
        rows.append(_row(comparison, cells, comparison.arm, study.arm(comparison.arm).note, first))
    head = ("", *_VERDICT_HEAD, "n", "at the best epoch")
    caption = (
        "Percentage points of top-1 after the last epoch, paired by seed. The last column takes each run at its best "
        "epoch; that epoch is selected on the validation images themselves, so these numbers are optimistic."
    )
    title = f"Against {_quoted(study.baseline)}"
    return Table(name="differences", title=title, head=head, rows=rows, caption=caption, stacked=True)


def _contrasts(contrasts: Sequence[Comparison]) -> Table:
    rows = []
    for comparison, first in _with_firsts(contrasts, lambda comparison: (comparison.isolates, comparison.arm)):
        cells = (*_verdict_cells(comparison), str(comparison.difference.spread.n))
        detail = f"{comparison.arm} against {comparison.against}"
        rows.append(_row(comparison, cells, comparison.isolates, detail, first))
    head = ("", *_VERDICT_HEAD, "n")
    caption = "Pairs of arms that differ in one thing: percentage points of top-1 after the last epoch, paired by seed."
    return Table(name="contrasts", title="One thing at a time", head=head, rows=rows, caption=caption, stacked=True)


_VERDICT_HEAD = ("student", "mean ± sd", "verdict", "bootstrap", "Student’s t")


def _verdict_cells(comparison: Comparison) -> tuple[str | None, ...]:
    """A row's cells under _VERDICT_HEAD."""
    difference = comparison.difference
    sd = f" ± {difference.spread.sd:.2f}" if difference.spread.sd is not None else ""
    intervals = (interval(*pair, 2) if pair else None for pair in (difference.bootstrap, difference.student_t))
    return comparison.learner, signed(difference.spread.mean, 2) + sd, difference.verdict, *intervals


def _row(comparison: Comparison, cells: tuple[str | None, ...], label: str, detail: str, first: bool) -> Row:
    """A row; label and small print are shown once for all learners of an arm, and clear verdicts are coloured."""
    hue = _HUES.get(comparison.difference.verdict, "rule")
    return Row(label=label if first else "", detail=detail if first else "", cells=cells, hue=hue, key=True)


def _with_firsts(items: Sequence[_Item], group: Callable[[_Item], object]) -> list[tuple[_Item, bool]]:
    """Each item, and whether it is the first of its consecutive group."""
    return [(item, index == 0 or group(items[index - 1]) != group(item)) for index, item in enumerate(items)]


def _accuracy(study: Study, summary: Summary, plots: StudyPlots) -> PageSection:
    printed = any(arm.paper for arm in study.arms)
    rows = []
    for results, first in _with_firsts(summary.arm_summaries, lambda results: results.arm):
        arm = study.arm(results.arm)
        paper = arm.paper.get(results.learner)
        cells: tuple[str | None, ...] = (
            *(results.learner, str(results.last.n), mean_sd(results.last), mean_sd(results.last_top5)),
            *(mean_sd(results.best), _range(results.best_epochs)),
        )
        if printed:
            cells = (*cells, f"{paper:.2f}" if paper is not None else "")
        rows.append(Row(label=arm.name if first else "", detail=arm.note if first else "", cells=cells))
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
        "Mean ± standard deviation over seeds, at the last and at the best epoch; the best one is selected on the same images."
    )
    if any(results.learner == AVERAGED for results in summary.arm_summaries):
        caption += f" “{AVERAGED}”: the students’ mean probabilities."
    if printed:
        caption += " The paper’s numbers: ImageNet-100 at 224 px, 50 epochs, as far as it says one run each."
    blocks: list[Block] = [
        Plots(plots=plots.accuracies),
        Table(name="accuracy", title="Validation accuracy", head=head, rows=rows, caption=caption, stacked=True),
        Plots(plots=plots.curves),
    ]
    return PageSection(anchor="accuracy", title="Accuracy", blocks=blocks)


def _cost(study: Study, summary: Summary, values: Mapping[str, Any]) -> PageSection:
    longest = max((cost.seconds.mean for cost in summary.costs), default=0.0)
    unit, divisor = ("hours", 3600) if longest >= 2 * 3600 else ("minutes", 60) if longest >= 120 else ("seconds", 1)
    printed = any(arm.paper_hours for arm in study.arms)
    cache_seconds = _cache_seconds(values)
    rows: list[Row] = []
    for cost in summary.costs:
        arm = study.arm(cost.arm)
        ratios = {f"× {name}": ratio for name, ratio in cost.ratios.items()}
        ratios |= {"× these together": cost.to_sum} if cost.to_sum is not None else {}
        costs: tuple[str, ...] = (str(cost.seconds.n), mean_sd(cost.images_per_s, 0), mean_sd(_scaled(cost.seconds, divisor)))
        costs += (f"{cache_seconds[cost.arm] / divisor:.2f}" if cost.arm in cache_seconds else "",)
        costs += (f"{arm.paper_hours:.2f}" if arm.paper_hours else "",) if printed else ()
        for index, (name, ratio) in enumerate(list(ratios.items()) or [("", None)]):
            cells = costs if index == 0 else ("",) * len(costs)
            label, detail = (cost.arm, arm.note) if index == 0 else ("", "")
            rows.append(Row(label=label, detail=detail, cells=(*cells, "" if ratio is None else f"{ratio:.2f}", name)))
    caption = (
        f"Training steps alone, without validation, in {unit} per run; images/s is the median epoch’s. Cache: the time to "
        "build the arm’s share of its cache, once for all its runs, at the speed it was built with."
    )
    teacher = values["teacher"]
    if teacher is not None and teacher["fit_epochs"]:
        caption += f" Fitting the teacher took {teacher['fit_seconds'] / divisor:.3g} {unit}."
    if printed:
        caption += " The paper’s hours: 50 epochs of ImageNet-100 at 224 px, with a live teacher, on unnamed hardware."
    head = ("", "n", "images/s", f"{unit} a run", f"cache, {unit}", *(["paper, hours"] if printed else []), "ratio", "")
    table = Table(name="cost", title="Training time", head=head, rows=rows, caption=caption, stacked=True)
    return PageSection(anchor="cost", title="Cost", blocks=[table])


def _scaled(spread: MeanStd, divisor: float) -> MeanStd:
    return MeanStd(n=spread.n, mean=spread.mean / divisor, sd=None if spread.sd is None else spread.sd / divisor)


def _cache_seconds(values: Mapping[str, Any]) -> dict[str, float]:
    """Seconds to compute each arm's targets: the cache's build time by the arm's share of its images."""
    costs = {name: cost["seconds"] / cost["images"] for name, cost in values["caches"].items() if cost["images"]}
    targets = values.get("targets", {})
    return {arm: target["images"] * costs[target["cache"]] for arm, target in targets.items() if target["cache"] in costs}


def _runs(runs: Sequence[RunResult]) -> PageSection:
    if not runs:
        return PageSection(anchor="runs", title="Every run", blocks=[Note(text="No run is finished yet.", missing=True)])
    rows = [
        Row(
            label=run.arm if index == 0 else "",
            cells=(
                *(str(run.seed), result.learner, f"{result.last:.2f}", f"{result.last_top5:.2f}", f"{result.best:.2f}"),
                *(str(result.best_epoch), f"{run.images_per_s:,.0f}", f"{run.seconds:,.1f}", run.run),
            ),
        )
        for run in runs
        for index, result in enumerate(run.outcomes)
    ]
    head = ("", "seed", "student", "top-1, last", "top-5, last", "top-1, best", "best at", "images/s", "seconds", "run")
    caption = (
        "The numbers behind everything above. Accuracies in percent; “best at”: the best epoch’s number. The last column names "
        "the folder under runs/."
    )
    return PageSection(
        anchor="runs",
        title="Every run",
        blocks=[Table(name="runs", title="Per-run numbers", head=head, rows=rows, caption=caption)],
    )


def _reproduce(values: Mapping[str, Any], study: Study) -> PageSection:
    """Everything needed to run the study again."""
    data, teacher = values["data"], values["teacher"]
    facts = [
        ("dataset", f"{data['name']}, digest {data['digest'][:16]}…, stored at {data['side']} px"),
        ("teacher", "none" if teacher is None else f"{teacher['architecture']}, weights {teacher['weights_sha256'][:16]}…"),
        *(
            (kind, ", ".join(f"{name} {value}" for name, value in recorded.items()))
            for kind in ("hardware", "versions")
            for recorded in values["machine"][kind]
        ),
        *((f"failed: {run}", why) for run, why in values["progress"]["failed"].items()),
    ]
    blocks: list[Block] = [
        Facts(title="Data, teacher, hardware, versions", facts=facts, open=True),
        Facts(title="What each arm sets", facts=[(arm.name, _settings(arm)) for arm in study.arms], open=True),
        Facts(title="The study", text=json.dumps(values["study"], indent=2, ensure_ascii=False)),
        Facts(title="Its base recipe", text=json.dumps(values["recipe"], indent=2, ensure_ascii=False)),
    ]
    return PageSection(anchor="reproduce", title="How to reproduce it", blocks=blocks)


def _settings(arm: Arm) -> str:
    """An arm's changes to the recipe, as in the study file."""
    settings = [f"students = {', '.join(arm.students)}"] if arm.students else []
    settings += [*arm.set, *(["teacher.views = train.epochs"] if arm.teacher_views == "all" else [])]
    return "; ".join(settings) or "nothing: the study’s recipe as it is"


def _quoted(names: Sequence[str]) -> str:
    return comma_list([f"“{name}”" for name in names]) or "the baseline"


def _range(epochs: Sequence[int]) -> str:
    low, high = min(epochs), max(epochs)
    return str(low) if low == high else f"{low}–{high}"
