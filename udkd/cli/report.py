"""udkd report."""

from pathlib import Path
from typing import Annotated

import typer

from udkd.cli.arguments import MovedCacheOption, MovedDatasetOption, RunArgument
from udkd.utils.terminal import err


def report_command(
    run: RunArgument,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(
            "--baseline",
            metavar="RUN0",
            help="Another run on the same data to compare with. Repeat it to compare each student with a run of its own.",
        ),
    ] = None,
    data: MovedDatasetOption = None,
    cache: MovedCacheOption = None,
) -> None:
    """Write a self-contained HTML page about a run.

    It is RUN/report/index.html, with its figures as PNG files beside it.
    """
    from udkd.report.inputs import gather
    from udkd.report.report import write_report  # matplotlib takes a second

    err.print(f"report: {write_report(gather(run, data=data, cache=cache, baselines=baseline or []))}")
