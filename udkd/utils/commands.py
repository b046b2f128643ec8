"""Commands: a typer.Typer whose commands all take --quiet and --verbose, show an example, and accept their old arguments."""

import functools
import shlex
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from udkd.utils.errors import ConfigError
from udkd.utils.output import err


class _WithLevels:
    """What commands and groups of commands share: --quiet and --verbose, which so work before and after a command's name."""

    def get_params(self, ctx: Any) -> list[Any]:
        *own, help_option = super().get_params(ctx)  # type: ignore[misc]
        return [*own, *_level_options(), help_option]

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Completions, with help texts whose brackets survive: typer reads them as rich's markup."""
        items: list[Any] = super().shell_complete(ctx, incomplete)  # type: ignore[misc]
        for item in items:
            item.help = escape(item.help or "")
        return items


class Group(_WithLevels, TyperGroup):
    """A command that has subcommands."""


class Command(_WithLevels, TyperCommand):
    """A command, whose help shows what must be given in the order of the usage line.

    old_order: where the positional arguments went that it took in version 0.1: to an option each, or "" for those that stayed.
    old_first: options that have become its first argument.
    """

    old_order: tuple[str, ...] = ()
    old_first: tuple[str, ...] = ()

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Overrides click: `RECIPE --data DATA --out RUN [OPTIONS]`."""
        params = self.get_params(ctx)
        arguments = [_name(param) if param.required else f"[{_name(param)}]" for param in params if _is_argument(param)]
        options = {f"{param.opts[0]} {_name(param)}": param.required for param in params if not _is_argument(param)}
        named = [text if required else f"[{text}]" for text, required in options.items() if required or text[:6] == "--out "]
        return [*arguments, *named, "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Overrides typer, which adds Python's types to the names of arguments."""
        records: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                records[_is_argument(param)].append((_name(param), record[1]) if _is_argument(param) else record)
        for title, rows in (("Arguments", records[True]), ("Options", records[False])):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Overrides click: translates arguments in the old order first, and shows the new one."""
        new = args if ctx.resilient_parsing else self.translated(ctx, args)
        rest = super().parse_args(ctx, list(new))
        if new != args:
            err.print(f"note: the order of arguments has changed; this is now: {ctx.command_path} {shlex.join(new)}")
        return rest

    def translated(self, ctx: Any, args: list[str]) -> list[str]:
        """Arguments in the order of today: `args` itself if they are. ConfigError: a mixture of old and new ones."""
        if not (self.old_order or self.old_first) or "--help" in args:
            return args
        positional, options = self._split(ctx, args)
        limit = sum(_is_argument(param) for param in self.params)
        order = [""] * len(positional)
        if len(positional) > limit and len(positional) == len(self.old_order):
            order = list(self.old_order)
        moved = [word for place, value in zip(order, positional, strict=True) if place for word in (place, value)]
        first = [option for option in options if option[0] in self.old_first]
        others = [option for option in options if option not in first]
        kept = [option[-1] for option in first] + [value for place, value in zip(order, positional, strict=True) if not place]
        once = {name for param in self.params if not param.multiple for name in param.opts}
        twice = [option[0] for option in others if option[0] in once.intersection(order)]
        if len(kept) > limit or twice:
            found = " ".join([*positional, *(option[0] for option in first), *twice])
            raise ConfigError(f"found {found}; expected {_usage(self, ctx)}; give each of these once, in one order")
        if not moved and not first:
            return args
        words = [*moved, *(word for option in others for word in option)]
        return [*words, "--", *kept] if any(value.startswith("-") for value in kept) else [*kept, *words]

    def _split(self, ctx: Any, args: Sequence[str]) -> tuple[list[str], list[list[str]]]:
        """The positional arguments; the options, each a list of its name and, if it takes one, its value."""
        options = [param for param in self.get_params(ctx) if not _is_argument(param)]
        take_value = {name for param in options if not param.is_flag for name in param.opts} | set(self.old_first)
        left, positional = list(args), list[str]()
        found: list[list[str]] = []
        while left:
            word = left.pop(0)
            if word == "--":
                return [*positional, *left], found
            if not word.startswith("-") or word == "-":
                positional.append(word)
            else:
                name, equals, value = word.partition("=")
                value_is_next = not equals and name in take_value and left
                found.append([name, *([value] if equals else []), *([left.pop(0)] if value_is_next else [])])
        return positional, found


class Commands(typer.Typer):
    """A typer.Typer with the classes and settings of this module."""

    def __init__(self, *, cls: type[Group] = Group, add_completion: bool = False, **options: Any) -> None:
        super().__init__(
            cls=cls,
            add_completion=add_completion,
            no_args_is_help=True,
            rich_markup_mode=None,  # plain errors, and help texts that keep their brackets
            pretty_exceptions_enable=False,
            **options,
        )

    def command(  # type: ignore[override]
        self, name: str, *, example: str, old_order: tuple[str, ...] = (), old_first: tuple[str, ...] = ()
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a function as a command. example: shown in its help. old_order, old_first: see Command."""
        cls = type("Command", (Command,), {"old_order": old_order, "old_first": old_first})
        return super().command(name, cls=cls, epilog=f"\b\nExample:\n  {example}")


def _usage(command: Command, ctx: Any) -> str:
    return " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _name(param: Any) -> str:
    return str(param.metavar or param.name.upper())


@functools.cache
def _level_options() -> list[Any]:
    """The options as typer makes them of a function."""
    app = typer.Typer(add_completion=False)
    app.command()(_levels)
    return list(typer.main.get_command(app).params)


def _set_quiet(value: bool) -> None:
    if value and err.verbose:
        raise typer.BadParameter("it contradicts --verbose")
    err.quiet = err.quiet or value


def _set_verbose(value: bool) -> None:
    if value and err.quiet:
        raise typer.BadParameter("it contradicts --quiet")
    err.verbose = err.verbose or value


def _levels(
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", callback=_set_quiet, expose_value=False, help="Print errors, warnings and results only."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", callback=_set_verbose, expose_value=False, help="Also print times, and where an error arose."
        ),
    ] = False,
) -> None: ...
