"""The `udkd` command."""

import os

# Two processes that each spin their OpenMP threads slow each other down sevenfold; this must be set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import typer

from udkd.cli.cache import cache_app
from udkd.cli.export import export_command
from udkd.cli.predict import predict_command
from udkd.cli.quickstart import quickstart
from udkd.cli.results import eval_command, report_command
from udkd.cli.run import run_app
from udkd.cli.study import study_command
from udkd.cli.teacher import teacher_app
from udkd.cli.train import train_command
from udkd.utils import terminal

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # whose errors and brackets in help texts are shown as they are
    pretty_exceptions_enable=False,
    help="Train several small image classifiers at once from one big, cached teacher.",
)
app.add_typer(teacher_app, name="teacher")
app.add_typer(cache_app, name="cache")
app.add_typer(run_app, name="run")
app.command("train")(train_command)
app.command("eval")(eval_command)
app.command("report")(report_command)
app.command("export")(export_command)
app.command("predict")(predict_command)
app.command("study")(study_command)
app.command("quickstart")(quickstart)


def main() -> None:
    """Run the command line; udkd/__main__.py is the entry point."""
    terminal.run(app)
