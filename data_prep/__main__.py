"""`python -m data_prep` is the `udkd-prep` command."""

from data_prep.cli import main

main()
