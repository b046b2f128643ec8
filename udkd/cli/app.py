"""The `udkd` command."""

import os

# Set before torch loads: two processes whose OpenMP threads spin slow each other down sevenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# Set before pydantic loads: it would read the metadata of every installed package, for plug-ins that udkd does not use.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import platform
import sys
from typing import Annotated, Any

import typer
from rich.text import Text

from udkd.utils import terminal
from udkd.utils.commands import Commands, Group
from udkd.utils.output import err, out

ORDER = (
    "quickstart",
    "data",
    "teacher",
    "recipe",
    "views",
    "cache",
    "train",
    "eval",
    "report",
    "export",
    "predict",
    "study",
    "run",
)
"""The commands in the order of the work; typer lists groups last."""

START = """\
udkd trains several small image classifiers at once from one large, cached teacher.

  udkd quickstart                                    all steps in a few minutes, on synthetic images
  udkd quickstart --data FOLDER                      the same on your own images, in train/ and val/
  udkd quickstart --data FOLDER --hold-out 10        the same, with 10 % set aside for validation
  udkd --help                                        all commands
"""

EXIT_CODES = """\b
Exit codes:
  0      done
  1      an error that you can mend, as one line on standard error
  2      the command line has an unknown option or lacks an argument
  75     stopped by --max-minutes; the same command continues
  128+n  stopped by signal n, such as 130 by Ctrl-C
"""


class _Root(Group):
    """`udkd`: the order of its commands, and a start for those who do not know one yet."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            err.print(Text(START, end=""))
            raise typer.Exit(2)
        return super().parse_args(ctx, args)


def _print_versions(wanted: bool) -> None:
    if wanted:
        out.print(", ".join(f"{name} {version}" for name, version in _versions().items()))
        raise typer.Exit


def _versions() -> dict[str, str]:
    """Of udkd, Python and torch, without importing torch."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"udkd": "", "Python": platform.python_version(), "torch": ""}
    for name in ("udkd", "torch"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "(not installed)"
    return versions


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_versions, is_eager=True, help="Print the versions of udkd, Python and torch."
        ),
    ] = False,
) -> None: ...


def build(only: str | None = None) -> Commands:
    """The command line. only: the name of the command that will run; the modules of the others are not imported."""
    app = Commands(
        cls=_Root,
        help="Train several small image classifiers at once from one large, cached teacher.",
        epilog=EXIT_CODES,
        add_completion=True,
    )
    app.callback()(_root)
    for name in ORDER if only is None else (only,):
        _add(app, name)
    return app


def _add(app: Commands, name: str) -> None:
    match name:
        case "data":
            from udkd.data_prep.cli import app as data_app

            app.add_typer(data_app, name=name)
        case "teacher":
            from udkd.cli.teacher import teacher_app

            app.add_typer(teacher_app, name=name)
        case "cache":
            from udkd.cli.cache import cache_app

            app.add_typer(cache_app, name=name)
        case "recipe":
            from udkd.cli.recipe import recipe_app

            app.add_typer(recipe_app, name=name)
        case "run":
            from udkd.cli.run import run_app

            app.add_typer(run_app, name=name)
        case "views":
            from udkd.cli.views import views_command

            app.command(
                name,
                example="udkd views imagenet100-strong --data data --out views.png",
                old_order=("--data", "--out"),  # as that of udkd data sheet was
                old_first=("--recipe",),
            )(views_command)
        case "train":
            from udkd.cli.train import train_command

            app.command(name, example="udkd train imagenet100-paper --data data --cache cache --out run")(train_command)
        case "eval":
            from udkd.cli.eval import eval_command

            app.command(name, example="udkd eval run --teacher teacher")(eval_command)
        case "report":
            from udkd.cli.report import report_command

            app.command(name, example="udkd report run --baseline other-run")(report_command)
        case "export":
            from udkd.cli.export import export_command

            example = "udkd export run --student resnet18 --int8"
            app.command(name, example=example, old_order=("", "--out"))(export_command)
        case "predict":
            from udkd.cli.predict import predict_command

            app.command(name, example="udkd predict run cat.jpg dog.png")(predict_command)
        case "study":
            from udkd.cli.study import study_command

            app.command(name, example="udkd study table1 --data data --out studies --seeds 0,1,2")(study_command)
        case "quickstart":
            from udkd.cli.quickstart import quickstart

            app.command(name, example="udkd quickstart --data photos --hold-out 10 --out my-photos")(quickstart)


def main() -> None:
    """Run the command line; udkd/__main__.py is the entry point."""
    first = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    app = build(first if first in ORDER and "_UDKD_COMPLETE" not in os.environ else None)
    terminal.run(lambda: app(prog_name="udkd"))
