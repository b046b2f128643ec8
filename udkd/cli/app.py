"""The `udkd` command."""

import os

# Set before torch loads: two processes whose OpenMP threads spin slow each other down sevenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# Set before pydantic loads: it would read the metadata of every installed package, for plug-ins that udkd does not use.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import typer

from udkd.cli.cache import cache_app
from udkd.cli.eval import eval_command
from udkd.cli.export import export_command
from udkd.cli.predict import predict_command
from udkd.cli.quickstart import quickstart
from udkd.cli.recipe import recipe_app
from udkd.cli.report import report_command
from udkd.cli.run import run_app
from udkd.cli.study import study_command
from udkd.cli.teacher import teacher_app
from udkd.cli.train import train_command
from udkd.data_prep.cli import app as data_app
from udkd.utils import terminal

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain errors, and help texts that keep their brackets
    pretty_exceptions_enable=False,
    help="Train several small image classifiers at once from one large, cached teacher.",
)
app.add_typer(data_app, name="data")
app.add_typer(teacher_app, name="teacher")
app.add_typer(cache_app, name="cache")
app.add_typer(recipe_app, name="recipe")
app.add_typer(run_app, name="run")
_TRAIN = "Example: udkd train imagenet100-paper --data data --cache cache --teacher teacher --out runs/first"
app.command("train", epilog=_TRAIN)(train_command)
app.command("eval", epilog="Example: udkd eval runs/first --teacher teacher")(eval_command)
app.command("report", epilog="Example: udkd report runs/first --baseline runs/second")(report_command)
app.command("export", epilog="Example: udkd export runs/first --student resnet18 --int8")(export_command)
app.command("predict", epilog="Example: udkd predict runs/first cat.jpg dog.png")(predict_command)
app.command("study", epilog="Example: udkd study table1 --data data --out studies --seeds 0,1,2")(study_command)
app.command("quickstart", epilog="Example: udkd quickstart --out quickstart")(quickstart)


def main() -> None:
    """Run the command line; udkd/__main__.py is the entry point."""
    terminal.run(app)
