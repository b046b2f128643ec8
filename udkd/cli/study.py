"""udkd study."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from udkd.study.estimate import Item, estimate
from udkd.study.folder import StudyFolder
from udkd.study.plan import StudyPlan, make_plan
from udkd.study.results import Summary
from udkd.study.runner import Progress, StudyContext, run_study
from udkd.study.spec import MOST_SEEDS, load_study, shipped_studies, study_name
from udkd.study.tables import interval, main_comparisons, mean_sd, signed
from udkd.study.writer import write_result
from udkd.utils.environment import choose_device
from udkd.utils.errors import ConfigError, RunError
from udkd.utils.terminal import DeviceOption, SetOption, StopRequest, err, observed, out, print_unwrapped, stop_requests
from udkd.utils.toml_files import shown

TIME_IS_UP = 75
"""Exit code of a study that --max-minutes ended: the same command goes on."""


def study_command(
    studies: Annotated[
        list[str],
        typer.Argument(metavar="STUDY…", help=f"Shipped studies ({', '.join(shipped_studies())}) or .toml files."),
    ],
    data: Annotated[Path, typer.Option("--data", help="Dataset folder, made by udkd-prep convert.")],
    folder: Annotated[
        Path, typer.Option("--out", help="Where all goes. Studies in one folder share teacher, caches and equal runs.")
    ],
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="Teacher folder; else one is fitted by the recipe's [fit] section.")
    ] = None,
    other_data: Annotated[
        list[Path] | None, typer.Option("--other-data", help="For transfer: another dataset folder; may be given again.")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Base recipe instead of the study's.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Short for --set train.epochs=N.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", metavar="0,1,2", help="Instead of the study's seeds.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is to be done and about how long it takes.")] = False,
    max_minutes: Annotated[
        float | None,
        typer.Option("--max-minutes", min=0.01, help=f"Stop at a checkpoint after about so long, with exit code {TIME_IS_UP}."),
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Run grids of recipes and seeds, and say what their differences allow to be said.

    The same command goes on after any interruption and skips what is done. Given several times at once, say once for each GPU,
    the processes share the runs; each ends when all are done. The result is OUT/STUDY: index.html, study.json,
    table.csv (what seeds decide) and cost.csv (what clocks decide).
    """
    started = time.monotonic()
    if max_minutes is not None and math.isnan(max_minutes):
        raise ConfigError("--max-minutes is nan; expected minutes; change it")
    chosen = [*(overrides or []), *([f"train.epochs={epochs}"] if epochs else [])]
    names = [study_name(name) for name in studies]
    if len(set(names)) < len(names):
        raise ConfigError(f"studies are called {', '.join(names)}; expected a name each, for their folders; rename one")
    plans = [
        make_plan(name, load_study(file), recipe=recipe, overrides=chosen, seeds=_seeds(seeds))
        for name, file in zip(names, studies, strict=True)
    ]
    where = choose_device(device)
    with observed() as observer, stop_requests() as asked:
        shared: list[tuple[StudyPlan, StudyContext]] = []
        for plan in plans:
            site = StudyContext(
                data=data,
                folder=StudyFolder(out=folder, name=plan.name),
                device=where,
                teacher=teacher,
                observer=observer,
                stopped=_until(started, max_minutes, asked),
            )
            if plan.study.kind == "networks":
                _measure(plan, site, dry_run)
            elif plan.study.kind == "teachers":
                _compare(plan, site, other_data or [], dry_run, asked)
            elif dry_run:
                _show(plan, estimate(plan, site))
            elif not _run(plan, site, started, asked):
                shared.append((plan, site))
        for plan, site in shared:
            observer.note(f"{plan.name}: waiting for runs that other processes train")
            _run(plan, site, started, asked, wait=True)


def _run(plan: StudyPlan, site: StudyContext, started: float, asked: StopRequest, *, wait: bool = False) -> bool:
    """False where other processes train all that is missing and nobody asks to wait: nothing is written yet."""
    progress = run_study(plan, site, wait=wait)
    if progress.left_to_others:
        return False
    result = write_result(plan, site, progress)
    print_unwrapped(_table(plan, result.summary))  # in 80 columns the arms would have no names
    err.print(f"page: {result.page}", soft_wrap=True)
    _end(progress, asked, started)
    return True


def _measure(plan: StudyPlan, site: StudyContext, dry_run: bool) -> None:
    """A study that trains nothing."""
    if dry_run:
        out.print(f"{len(plan.arms)} networks to measure on this CPU: about a minute, nothing is trained", soft_wrap=True)
        return
    from udkd.study.networks import measure_networks, ratios  # matplotlib takes a second

    measured, page = measure_networks(plan, site.data, site.folder.result, site.observer)
    table = Table("", "parameters", "fewer", "MB", "ms an image", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for own, ratio in zip(measured, ratios(plan, measured), strict=True):
        size = f"{own.parameters_1000 / 1e6:.1f} M"
        table.add_row(own.arm, size, f"{ratio:.2f}×", f"{own.bytes / 1e6:.1f}", f"{own.latency_ms:.2f}")
    out.print(table)
    err.print(f"page: {page}", soft_wrap=True)


def _compare(plan: StudyPlan, site: StudyContext, others: list[Path], dry_run: bool, asked: StopRequest) -> None:
    """A study of teachers."""
    if site.teacher is not None:
        raise ConfigError(f"--teacher with {plan.name}; expected it to fit its own teachers; drop --teacher")
    if dry_run:
        number = len(plan.trials) * (1 + len(others))
        epochs = plan.base.fit.epochs
        out.print(f"{number} teachers to fit, {epochs} epochs each, and to ask once about every training image", soft_wrap=True)
        return
    from udkd.study.transfer import compare_teachers  # matplotlib takes a second

    result = compare_teachers(plan, site, others)
    if result is None:
        err.print("stopped at a checkpoint; the same command goes on")
        raise typer.Exit(asked.exit_code or TIME_IS_UP)
    table = Table("", "", "by", "n", "rho", box=None, pad_edge=False)
    for pair in result[0]:
        table.add_row(pair.one, pair.other, pair.level, f"{pair.n:,}", f"{pair.rho:.3f}")
    out.print(table)
    err.print(f"page: {result[1]}", soft_wrap=True)


def _until(started: float, max_minutes: float | None, asked: Callable[[], bool]) -> Callable[[], bool]:
    """Whether to stop: the user said so, or the time is up."""
    end = math.inf if max_minutes is None else started + 60 * max_minutes
    return lambda: asked() or time.monotonic() > end


def _end(progress: Progress, asked: StopRequest, started: float) -> None:
    minutes = (time.monotonic() - started) / 60
    said = f"{progress.finished} of {progress.total} runs are done, {minutes:.1f} minutes"
    if progress.complete:
        err.print(f"finished: {said}")
        return
    if progress.failed and progress.finished + len(progress.failed) == progress.total:
        raise RunError(f"{said}; failed: {'; '.join(f'{run}: {why}' for run, why in progress.failed.items())}")
    err.print(f"stopped at a checkpoint: {said}; the same command goes on")
    raise typer.Exit(asked.exit_code or TIME_IS_UP)


def _seeds(text: str | None) -> list[int]:
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 20 for part in parts) or len({int(part) for part in parts}) < len(parts):
        raise ConfigError(f"--seeds {shown(text)!r}; expected different numbers from 0, such as 0,1,2; correct it")
    seeds = [int(part) for part in parts]
    if len(seeds) > MOST_SEEDS or max(seeds) >= 2**63:
        raise ConfigError(f"--seeds {shown(text)!r}; expected up to {MOST_SEEDS} numbers below 2^63; correct it")
    return seeds


def _show(plan: StudyPlan, items: list[Item]) -> None:
    title = plan.study.title
    table = Table("", "", "done", "still takes", box=None, pad_edge=False, title=title, title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for item in items:
        table.add_row(item.what, item.detail, f"{item.done} of {item.total}", _duration(item.seconds))
    out.print(table)
    total = sum(item.seconds for item in items)
    out.print(f"about {_duration(total)} in all, if this machine stays as busy as it is", soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds <= 0:
        return "nothing"
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _table(plan: StudyPlan, summary: Summary) -> Table:
    """What matters of table.csv."""
    table = Table(title=plan.study.title, title_justify="left", box=None, pad_edge=False)
    for name in ("", "student", "top-1 %", "n", "difference", "bootstrap", "verdict"):
        table.add_column(name, justify="left" if name in ("", "student", "verdict") else "right")
    said = ""
    compared: dict[Any, Any] = {(found.arm, found.learner): found.difference for found in main_comparisons(summary, "last")}
    for standing in summary.standings:
        own = compared.get((standing.arm, standing.learner))
        cells = (signed(own.spread.mean), interval(own.bootstrap), own.verdict) if own else ("", "", "")
        name = "" if standing.arm == said else standing.arm
        table.add_row(name, standing.learner, mean_sd(standing.last), str(standing.last.n), *cells)
        said = standing.arm
    return table
