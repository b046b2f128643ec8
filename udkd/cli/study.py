"""udkd study."""

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    from udkd.study.share import Share

Results = dict[str, Any]
TIME_IS_UP = 75
"""Exit code of a study that --max-minutes stopped; the same command continues it."""

_OF_SUBMIT = ("submit", "at_once", "gpus", "minutes", "slurm", "as_json")
"""Parameters that the processes of --submit do not get."""

Studies = list[tuple["StudyPlan", "StudyContext"]]


def study_command(
    ctx: typer.Context,
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
    share: Annotated[
        str | None,
        typer.Option(
            "--share",
            metavar="I/N",
            help="Train runs I, I+N, … (I from 0), then what other processes leave. Needs no locks, and --only prepare first.",
        ),
    ] = None,
    only: Annotated[
        Literal["prepare", "page"] | None,
        typer.Option(
            "--only",
            metavar="prepare|page",
            help="prepare: make the teacher and the caches. page: write the result from the runs that are finished.",
        ),
    ] = None,
    submit: Annotated[
        Literal["slurm", "local"] | None,
        typer.Option(
            "--submit",
            metavar="slurm|local",
            help="Start processes for the runs: an array of SLURM jobs, or on this machine, until they end.",
        ),
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option(
            "--at-once",
            metavar="N",
            min=1,
            help="With --submit: processes at the same time. Default: slurm: no limit; local: one per GPU, or one.",
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus",
            metavar="N",
            min=0,
            help="With --submit slurm: GPUs of a job. Default: one per process; with --device cpu none.",
        ),
    ] = None,
    minutes: Annotated[
        int | None,
        typer.Option(
            "--minutes",
            metavar="M",
            min=5,  # SLURM announces the end 90 seconds before it, perhaps a minute earlier
            help="With --submit slurm: time limit of a job, 60 by default. A job that reaches it goes on in the next one.",
        ),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm",
            metavar="KEY=VALUE",
            help="With --submit slurm: an option of sbatch, such as partition=gpu. May be repeated.",
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            "--nproc-per-run",
            metavar="N",
            min=1,
            help="Processes that train each run together, as under torchrun, such as one per GPU. See train.slices.",
        ),
    ] = 1,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare recipes over several seeds.

    Trains the study's arms with every seed and tests which differences are significant. The same command resumes after an
    interruption and skips finished runs. Several processes of the same command, such as one per GPU, share the runs; each
    ends when all are done. On a cluster, --submit starts them, or --share gives each its runs. The result is in OUT/STUDY:
    index.html, study.json, table.csv (accuracies, which depend on the seeds only) and cost.csv (times).
    """
    from udkd.study.plan import make_plan
    from udkd.study.share import Share
    from udkd.study.spec import load_study, study_name
    from udkd.study.submit import parse_slurm_options

    started = time.monotonic()
    if max_minutes is not None and math.isnan(max_minutes):
        raise ConfigError("--max-minutes is nan; expected minutes; change it")
    part = {"--share": share, "--only": only, "--submit": submit}
    _require_fitting(part | {"--dry-run": dry_run or None}, at_once=at_once, slurm_only=[gpus, minutes, slurm or None])
    own = None if share is None else Share.parse(share)
    slurm_options = parse_slurm_options(slurm or [])
    settings = [*(overrides or []), *([f"train.epochs={epochs}"] if epochs else [])]
    names = [study_name(name) for name in studies]
    if len(set(names)) < len(names):
        raise ConfigError(f"studies are named {', '.join(names)}; expected different names, for their folders; rename one")
    plans = [
        make_plan(name, load_study(file), recipe=recipe, overrides=settings, seeds=_seeds(seeds))
        for name, file in zip(names, studies, strict=True)
    ]
    for plan in plans:
        if plan.study.kind != "runs" and any(part.values()):
            given = next(name for name, value in part.items() if value)
            raise ConfigError(f"{plan.name} and {given}; expected studies that train runs; drop one of them")
    from udkd.data.dataset import DatasetFolder  # these imports take seconds: a wrong key is reported before
    from udkd.study.folder import StudyFolder
    from udkd.study.processes import StudyProcess
    from udkd.study.runner import StudyContext
    from udkd.training.exchange import require_divisible
    from udkd.utils.environment import choose_device, set_cublas_workspace

    set_cublas_workspace(deterministic=any(trial.recipe.train.deterministic for plan in plans for trial in plan.trials))
    for trial in [trial for plan in plans for trial in plan.trials]:
        require_divisible(trial.recipe.train, len(trial.recipe.students), processes)
    selected = choose_device("cpu" if submit and device == "cuda" else device)  # the machine that submits may lack a GPU
    DatasetFolder.open(data)
    with (
        json_result(as_json) as results,
        observed() as observer,
        stop_requests() as stop,
        contextlib.ExitStack() as stack,
    ):
        works_here = not (dry_run or submit or only == "page" or all(plan.study.kind == "networks" for plan in plans))
        process = stack.enter_context(StudyProcess(folder)) if works_here else None
        if process is not None and own is None:
            process.require_exclusion()
        todo = [
            (
                plan,
                StudyContext(
                    data=data,
                    folder=StudyFolder(out=folder, name=plan.name),
                    device=selected,
                    teacher=teacher,
                    processes=processes,
                    share=own,
                    process=process,
                    observer=observer,
                    stopped=_until(started, max_minutes, stop),
                ),
            )
            for plan in plans
        ]
        if submit is not None:
            _submit(ctx, todo, results, at_once, gpus, minutes or 60, slurm_options)
        elif only == "prepare":
            _prepare(todo, stop)
        elif only == "page":
            _write_pages(todo, results)
        elif own is not None:
            _run_share(todo, own, results, stop)
        else:
            _run_all(todo, results, other_data or [], dry_run, started, stop)


def _require_fitting(parts: dict[str, Any], *, at_once: int | None, slurm_only: list[Any]) -> None:
    """Raise ConfigError for options that contradict each other. parts: options that exclude each other."""
    given = [name for name, value in parts.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)}; expected one of them; drop the others")
    if at_once is not None and parts["--submit"] is None:
        raise ConfigError("--at-once without --submit; expected both or none; add --submit slurm or local")
    if any(value is not None for value in slurm_only) and parts["--submit"] != "slurm":
        raise ConfigError("--gpus, --minutes or --slurm without --submit slurm; expected them for SLURM's jobs; drop them")


def _run_all(todo: Studies, results: Results, other_data: list[Path], dry_run: bool, started: float, stop: StopRequest) -> None:
    """Do all work that no other process does, then wait for those."""
    from udkd.study.estimate import estimate

    shared: Studies = []
    for plan, context in todo:
        if plan.study.kind == "networks":
            _measure(plan, context, results, dry_run)
        elif plan.study.kind == "teachers":
            _compare(plan, context, results, other_data, dry_run, stop)
        elif dry_run:
            results[plan.name] = _show(plan, estimate(plan, context))
        elif not _run(plan, context, results, started, stop):
            shared.append((plan, context))
    for plan, context in shared:
        context.observer.note(f"{plan.name}: waiting for runs that other processes train")
        _run(plan, context, results, started, stop, wait=True)


def _prepare(todo: Studies, stop: StopRequest) -> None:
    """Make the teachers and caches."""
    from udkd.study.runner import prepare_study

    for plan, context in todo:
        if not prepare_study(plan, context):
            err.print("stopped at a checkpoint; the same command resumes")
            raise typer.Exit(stop.exit_code or TIME_IS_UP)
    err.print("teacher and caches are ready")


def _run_share(todo: Studies, share: "Share", results: Results, stop: StopRequest) -> None:
    """Train a share of the runs and write the results of all that are finished."""
    from udkd.study.runner import run_share

    progresses = run_share(todo, share)
    for (plan, context), progress in zip(todo, progresses, strict=True):
        _write(plan, context, progress, results)
    finished, total = (sum(getattr(progress, name) for progress in progresses) for name in ("finished", "total"))
    summary = f"share {share}: {finished} of all {total} runs are done"
    if todo[0][1].stopped() and finished < total:
        err.print(f"stopped at a checkpoint: {summary}; the same command resumes")
        raise typer.Exit(stop.exit_code or TIME_IS_UP)
    failed = [f"{run}: {reason}" for progress in progresses for run, reason in progress.failed.items()]
    if failed:
        raise RunError(f"{summary}; failed: {'; '.join(failed)}")
    err.print(f"finished: {summary}")


def _write_pages(todo: Studies, results: Results) -> None:
    """Write the results of the runs that are finished."""
    from udkd.study.runner import study_progress

    progresses = []
    for plan, context in todo:
        progresses.append(study_progress(plan, context))
        _write(plan, context, progresses[-1], results)
    finished, total = (sum(getattr(progress, name) for progress in progresses) for name in ("finished", "total"))
    if finished < total:
        err.print(f"unfinished: {finished} of {total} runs are done; the same command without --only resumes")
        raise typer.Exit(TIME_IS_UP)
    err.print(f"finished: {finished} of {total} runs are done")


def _submit(
    ctx: typer.Context,
    todo: Studies,
    results: Results,
    at_once: int | None,
    gpus: int | None,
    minutes: int,
    slurm_options: dict[str, str | bool],
) -> None:
    """Start the study's processes; see udkd.study.submit."""
    from udkd.study.folder import is_finished
    from udkd.study.runner import distinct_runs
    from udkd.study.share import Share
    from udkd.study.submit import MAX_SHARES, SlurmSettings, StudyCommand, run_locally, submit_to_slurm

    runs = distinct_runs(todo)
    left = [index for index, (run, recipe) in enumerate(runs) if not is_finished(run, recipe)]
    if not left:
        _write_pages(todo, results)
        return
    options, on_cpu = _given_options(ctx), ctx.params["device"] == "cpu"
    command = StudyCommand(options=options, studies=ctx.params["studies"])
    folder, observer = todo[0][1].folder.out / "jobs", todo[0][1].observer
    if ctx.params["submit"] == "local":
        visible = [] if on_cpu else _visible_gpus(ctx.params["processes"])
        count = min(len(left), at_once or max(1, len(visible)))
        code = run_locally(command, Share.all(count), folder, visible, observer)
        if code:
            raise typer.Exit(code)
        _write_pages(todo, results)
        return
    if len(left) > MAX_SHARES:
        shares = Share.all(MAX_SHARES)
    else:  # one for each run that is left
        everyone = Share.all(len(runs))
        shares = [everyone[index] for index in left]
    settings = SlurmSettings(
        gpus=gpus if gpus is not None else ctx.params["processes"] * (not on_cpu),
        minutes=minutes,
        at_once=at_once,
        options=slurm_options,
    )
    jobs = submit_to_slurm(command, shares, folder, settings)
    results |= jobs | {"logs": str(folder)}
    out.print(
        f"jobs: {jobs['prepare']} (teacher and caches), {jobs['shares']} ({len(shares)} for the runs), {jobs['page']} (page)",
        soft_wrap=True,
    )
    out.print(f"logs: {folder}", soft_wrap=True)


def _given_options(ctx: typer.Context) -> list[str]:
    """The options of the command line, for the processes of --submit."""
    words = [name for name, is_given in (("--quiet", err.quiet), ("--verbose", err.verbose)) if is_given]
    for param in ctx.command.params:
        source = ctx.get_parameter_source(str(param.name))
        if param.param_type_name == "argument" or param.name in _OF_SUBMIT or source is None or source.name != "COMMANDLINE":
            continue
        value = ctx.params[str(param.name)]
        words += [f"{param.opts[0]}={each}" for each in (value if isinstance(value, list | tuple) else [value])]
    return words


def _visible_gpus(each: int) -> list[str]:
    """Values of CUDA_VISIBLE_DEVICES, one for every `each` of the GPUs that this process may use. Raises ConfigError."""
    import torch

    given, number = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()
    gpus = given.split(",")[:number] if given else [str(index) for index in range(number)]
    if 0 < number < each:
        raise ConfigError(f"--nproc-per-run {each} and {number} GPUs; expected as many; lower it, or use --device cpu")
    return [",".join(gpus[first : first + each]) for first in range(0, number - each + 1, each)]


def _run(
    plan: "StudyPlan", context: "StudyContext", results: Results, started: float, stop: StopRequest, *, wait: bool = False
) -> bool:
    """Run a study and write its result. False, with nothing written, if `wait` is false and others train all missing runs."""
    from udkd.study.runner import run_study

    progress = run_study(plan, context, wait=wait)
    if progress.left_to_others:
        return False
    _write(plan, context, progress, results)
    _end(progress, stop, started)
    return True


def _write(plan: "StudyPlan", context: "StudyContext", progress: "Progress", results: Results) -> None:
    """Write a study's result from the runs that are finished."""
    from udkd.study.writer import write_result

    result = write_result(plan, context, progress)
    print_unwrapped(_table(plan, result.summary))  # 80 columns would cut off the names of the arms
    out.print(f"page: {result.page}", soft_wrap=True)
    results[plan.name] = _stored(context)


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
