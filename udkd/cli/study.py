"""udkd study."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from udkd.cli.arguments import DatasetOption, SetOption
from udkd.cli.completion import recipe_names, study_names
from udkd.utils.errors import ConfigError, RunError
from udkd.utils.files import read_regular
from udkd.utils.output import json_result
from udkd.utils.parsing import parse_json
from udkd.utils.printable import shorten
from udkd.utils.progress import duration
from udkd.utils.terminal import DeviceOption, JsonOption, StopRequest, err, observed, out, print_unwrapped, stop_requests
from udkd.utils.toml_files import shipped_names

if TYPE_CHECKING:
    from udkd.study.estimate import WorkItem
    from udkd.study.plan import StudyPlan
    from udkd.study.results import Summary
    from udkd.study.runner import Progress, StudyContext

Results = dict[str, Any]
TIME_IS_UP = 75
"""Exit code of a study that --max-minutes stopped; the same command continues it."""


def study_command(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY…",
            help=f"Shipped studies ({', '.join(shipped_names('study'))}) or .toml files.",
            autocompletion=study_names,
        ),
    ],
    data: DatasetOption,
    folder: Annotated[
        Path,
        typer.Option("--out", metavar="OUT", help="Output folder. Studies in one share the teacher, caches and equal runs."),
    ],
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", metavar="TEACHER", help="Teacher folder. Default: fit one by the recipe's [fit] section."),
    ] = None,
    other_data: Annotated[
        list[Path] | None,
        typer.Option("--other-data", metavar="DATA", help="For the study transfer: another dataset folder. May be repeated."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="RECIPE", help="Base recipe, instead of the study's.", autocompletion=recipe_names),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", metavar="N", min=1, help="Short for --set train.epochs=N.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", metavar="0,1,2", help="Seeds, instead of the study's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the remaining work and an estimate of its time.")] = False,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            "--max-minutes",
            metavar="M",
            min=0.01,
            help=f"Stop at a checkpoint after about this long, with exit code {TIME_IS_UP}.",
        ),
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare recipes over several seeds.

    Trains the study's arms with every seed and tests which differences are significant. The same command resumes after an
    interruption and skips finished runs. Several processes of the same command, such as one per GPU, share the runs; each
    ends when all are done. The result is in OUT/STUDY: index.html, study.json, table.csv (accuracies, which depend on the
    seeds only) and cost.csv (times).
    """
    from udkd.study.plan import StudyPlan, make_plan
    from udkd.study.spec import load_study, study_name

    started = time.monotonic()
    if max_minutes is not None and math.isnan(max_minutes):
        raise ConfigError("--max-minutes is nan; expected minutes; change it")
    settings = [*(overrides or []), *([f"train.epochs={epochs}"] if epochs else [])]
    names = [study_name(name) for name in studies]
    if len(set(names)) < len(names):
        raise ConfigError(f"studies are named {', '.join(names)}; expected different names, for their folders; rename one")
    plans = [
        make_plan(name, load_study(file), recipe=recipe, overrides=settings, seeds=_seeds(seeds))
        for name, file in zip(names, studies, strict=True)
    ]
    from udkd.study.estimate import estimate  # these imports take seconds: a wrong key is reported before
    from udkd.study.folder import StudyFolder
    from udkd.study.runner import StudyContext
    from udkd.utils.environment import choose_device

    selected = choose_device(device)
    with json_result(as_json) as results, observed() as observer, stop_requests() as stop:
        shared: list[tuple[StudyPlan, StudyContext]] = []
        for plan in plans:
            context = StudyContext(
                data=data,
                folder=StudyFolder(out=folder, name=plan.name),
                device=selected,
                teacher=teacher,
                observer=observer,
                stopped=_until(started, max_minutes, stop),
            )
            if plan.study.kind == "networks":
                _measure(plan, context, results, dry_run)
            elif plan.study.kind == "teachers":
                _compare(plan, context, results, other_data or [], dry_run, stop)
            elif dry_run:
                results[plan.name] = _show(plan, estimate(plan, context))
            elif not _run(plan, context, results, started, stop):
                shared.append((plan, context))
        for plan, context in shared:
            observer.note(f"{plan.name}: waiting for runs that other processes train")
            _run(plan, context, results, started, stop, wait=True)


def _run(
    plan: "StudyPlan", context: "StudyContext", results: Results, started: float, stop: StopRequest, *, wait: bool = False
) -> bool:
    """Run a study and write its result. False, with nothing written, if `wait` is false and others train all missing runs."""
    from udkd.study.runner import run_study
    from udkd.study.writer import write_result

    progress = run_study(plan, context, wait=wait)
    if progress.left_to_others:
        return False
    result = write_result(plan, context, progress)
    print_unwrapped(_table(plan, result.summary))  # 80 columns would cut off the names of the arms
    out.print(f"page: {result.page}", soft_wrap=True)
    results[plan.name] = _stored(context)
    _end(progress, stop, started)
    return True


def _stored(context: "StudyContext") -> Any:
    return parse_json(read_regular(context.folder.result / "study.json"))


def _measure(plan: "StudyPlan", context: "StudyContext", results: Results, dry_run: bool) -> None:
    """Run a study of kind "networks", which trains nothing."""
    if dry_run:
        out.print(f"{len(plan.arms)} networks to measure on this CPU, about a minute; nothing is trained", soft_wrap=True)
        results[plan.name] = {"networks": len(plan.arms)}
        return
    from udkd.study.networks import measure_networks, parameter_ratios  # matplotlib takes a second

    measured, page = measure_networks(plan, context.data, context.folder.result, context.observer)
    table = Table("", "parameters", "fewer", "MB", "ms an image", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for network, ratio in zip(measured, parameter_ratios(plan.study, measured), strict=True):
        size = f"{network.parameters_1000 / 1e6:.1f} M"
        table.add_row(network.arm, size, f"{ratio:.2f}×", f"{network.bytes / 1e6:.1f}", f"{network.latency_ms:.2f}")
    print_unwrapped(table)
    out.print(f"page: {page}", soft_wrap=True)
    results[plan.name] = _stored(context)


def _compare(
    plan: "StudyPlan", context: "StudyContext", results: Results, others: list[Path], dry_run: bool, stop: StopRequest
) -> None:
    """Run a study of kind "teachers"."""
    if context.teacher is not None:
        raise ConfigError(f"--teacher with {plan.name}; expected none, because it fits its own teachers; drop --teacher")
    if dry_run:
        number = len(plan.trials) * (1 + len(others))
        epochs = plan.base.fit.epochs
        out.print(f"{number} teachers to fit, {epochs} epochs each; each predicts the training images once", soft_wrap=True)
        results[plan.name] = {"teachers": number, "epochs": epochs}
        return
    from udkd.study.transfer import compare_teachers  # matplotlib takes a second

    result = compare_teachers(plan, context, others)
    if result is None:
        err.print("stopped at a checkpoint; the same command resumes")
        raise typer.Exit(stop.exit_code or TIME_IS_UP)
    table = Table("", "", "by", "n", "rho", box=None, pad_edge=False)
    for pair in result[0]:
        table.add_row(pair.one, pair.other, pair.level, f"{pair.n:,}", f"{pair.rho:.3f}")
    print_unwrapped(table)
    out.print(f"page: {result[1]}", soft_wrap=True)
    results[plan.name] = _stored(context)


def _until(started: float, max_minutes: float | None, stop: Callable[[], bool]) -> Callable[[], bool]:
    """A function that returns whether to stop: at the user's request, or when the time is up."""
    end = math.inf if max_minutes is None else started + 60 * max_minutes
    return lambda: stop() or time.monotonic() > end


def _end(progress: "Progress", stop: StopRequest, started: float) -> None:
    minutes = (time.monotonic() - started) / 60
    summary = f"{progress.finished} of {progress.total} runs are done, {minutes:.1f} minutes"
    if progress.complete:
        err.print(f"finished: {summary}")
        return
    if progress.failed and progress.finished + len(progress.failed) == progress.total:
        raise RunError(f"{summary}; failed: {'; '.join(f'{run}: {reason}' for run, reason in progress.failed.items())}")
    err.print(f"stopped at a checkpoint: {summary}; the same command resumes")
    raise typer.Exit(stop.exit_code or TIME_IS_UP)


def _seeds(text: str | None) -> list[int]:
    from udkd.study.spec import MAX_SEEDS

    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 20 for part in parts) or len({int(part) for part in parts}) < len(parts):
        raise ConfigError(f"--seeds {shorten(text)!r}; expected different numbers from 0, such as 0,1,2; correct it")
    seeds = [int(part) for part in parts]
    if len(seeds) > MAX_SEEDS or max(seeds) >= 2**63:
        raise ConfigError(f"--seeds {shorten(text)!r}; expected up to {MAX_SEEDS} numbers below 2^63; correct it")
    return seeds


def _show(plan: "StudyPlan", items: "list[WorkItem]") -> dict[str, Any]:
    title = plan.study.title
    table = Table("", "", "done", "time left", box=None, pad_edge=False, title=title, title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for item in items:
        table.add_row(item.kind, item.detail, f"{item.done} of {item.total}", _duration(item.seconds))
    print_unwrapped(table)
    total = sum(item.seconds for item in items)
    out.print(f"about {_duration(total)} in total, at this machine's current load", soft_wrap=True)
    return {"work": [asdict(item) for item in items], "seconds": total}


def _duration(seconds: float) -> str:
    return duration(seconds) if seconds > 0 else "nothing"


def _table(plan: "StudyPlan", summary: "Summary") -> Table:
    """The main columns of table.csv."""
    from udkd.report.text import interval, signed
    from udkd.study.tables import main_comparisons, mean_sd

    table = Table(title=plan.study.title, title_justify="left", box=None, pad_edge=False)
    for name in ("", "student", "top-1 %", "n", "difference", "bootstrap", "verdict"):
        table.add_column(name, justify="left" if name in ("", "student", "verdict") else "right")
    previous_arm = ""
    differences = {(each.arm, each.learner): each.difference for each in main_comparisons(summary, "last")}
    for results in summary.arm_summaries:
        difference = differences.get((results.arm, results.learner))
        cells = ("", "", "")
        if difference is not None:
            bootstrap = interval(*difference.bootstrap, 2) if difference.bootstrap else ""
            cells = (signed(difference.spread.mean, 2), bootstrap, difference.verdict)
        name = "" if results.arm == previous_arm else results.arm
        table.add_row(name, results.learner, mean_sd(results.last), str(results.last.n), *cells)
        previous_arm = results.arm
    return table
