"""`python -m udkd` is the `udkd` command."""

from udkd.cli import main

main()
