"""Examples of commands, parsed by the real parser without running them."""

import functools
import shlex
from typing import Any

import typer.main

from udkd.cli.app import build


@functools.cache
def program() -> Any:
    return typer.main.get_command(build())


def parsed(line: str) -> dict[str, Any]:
    """The values of a command's arguments; of an option that only prints something, none. An old order is refused."""
    words = shlex.split(line, comments=True)
    assert words[0] == "udkd", line
    command, args = program(), words[1:]
    while hasattr(command, "commands") and args and not args[0].startswith("-"):
        assert args[0] in command.commands, line
        command, args = command.commands[args[0]], args[1:]
    if hasattr(command, "commands") or args == ["--help"]:
        with command.make_context(command.name, [], resilient_parsing=True) as context:
            assert {name for param in command.get_params(context) for name in param.opts}.issuperset(args), line
        return {}
    with command.make_context(command.name, list(args)) as context:
        assert command.translated(context, args) == args, f"{line}: an old order"
        return dict(context.params)
