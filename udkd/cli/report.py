"""udkd report."""

from pathlib import Path
from typing import Annotated

import typer

from udkd.cli.arguments import MovedCacheOption, MovedDatasetOption, RunArgument
from udkd.utils.errors import ConfigError
from udkd.utils.terminal import out


def report_command(
    run: RunArgument,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(
            "--baseline",
            metavar="RUN0",
            help="Another run on the same data to compare with. Repeat it to compare each student with a different run.",
        ),
    ] = None,
    data: MovedDatasetOption = None,
    cache: MovedCacheOption = None,
) -> None:
    """Write a self-contained HTML page about a run.

    The page is RUN/report/index.html, with its figures as PNG files in the same folder. Given the result folder of a study
    (OUT/STUDY of udkd study), write that study's index.html and PNG files again.
    """
    if (run / "study.json").is_file():
        from udkd.study.page import rewrite_page

        if baseline or data or cache:
            raise ConfigError(f"{run} is a study; expected no --baseline, --data or --cache; drop them")
        out.print(f"page: {rewrite_page(run)}", soft_wrap=True)
        return
    from udkd.report.inputs import load_inputs
    from udkd.report.report import write_report  # matplotlib takes a second

    out.print(f"report: {write_report(load_inputs(run, data=data, cache=cache, baselines=baseline or []))}", soft_wrap=True)
