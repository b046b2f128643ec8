"""`python -m udkd` is the `udkd` command."""

from udkd.commands.cli import main

main()
