"""udkd eval, udkd report."""

from pathlib import Path
from typing import Annotated

import typer

from udkd.cli.outcome import result_table
from udkd.training.evaluate import evaluate
from udkd.training.run_folder import RunFolder
from udkd.utils.environment import choose_device
from udkd.utils.errors import ConfigError
from udkd.utils.terminal import DeviceOption, err, observed, out

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, made by udkd train.")]
DataOption = Annotated[Path | None, typer.Option("--data", help="Dataset folder, if it has moved.")]
CacheOption = Annotated[Path | None, typer.Option("--cache", help="Teacher cache, if it has moved.")]


def eval_command(
    run: RunArgument,
    data: DataOption = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="Teacher folder, to have its accuracy in the table.")
    ] = None,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Score a run on the validation split: each student, their averaged probabilities and the teacher.

    What each says of each image stays in RUN/predictions.safetensors, for udkd report.
    """
    where = choose_device(device)
    with observed() as observer:
        folders = {"data": data, "teacher": teacher, "cache": cache}
        result = evaluate(RunFolder.open(run), **folders, device=where, observer=observer)
    out.print(result_table(result))


def report_command(
    run: RunArgument,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(
            "--baseline",
            metavar="RUN0",
            help="Another run on the same data: what this one gains and loses. May be given again: a dual run has a single "
            "run for each student.",
        ),
    ] = None,
    data: DataOption = None,
    cache: CacheOption = None,
) -> None:
    """Write RUN/report/index.html: one page with everything that can be seen of a run, and its figures as PNG files.

    Of a study's result folder (OUT/STUDY of udkd study), write its index.html and PNG files again.
    """
    if (run / "study.json").is_file():
        from udkd.study.page import rewrite_page

        if baseline or data or cache:
            raise ConfigError(f"{run} is a study; expected no --baseline, --data or --cache; drop them")
        err.print(f"page: {rewrite_page(run)}", soft_wrap=True)
        return
    from udkd.report.inputs import load_inputs
    from udkd.report.report import write_report  # matplotlib takes a second

    err.print(f"report: {write_report(load_inputs(run, data=data, cache=cache, baselines=baseline or []))}")
