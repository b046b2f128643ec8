"""`python -m udkd` and the `udkd` command: answers Ctrl-C, and ends with its torchrun, before anything heavy is imported."""

from udkd.utils.launcher import end_with_launcher, is_launched
from udkd.utils.signals import handled, quit_at_once


def main() -> None:
    """Entry point of the console command."""
    if is_launched():
        end_with_launcher()
    with handled(quit_at_once):
        from udkd.utils.stdio import guard

        guard()
        from udkd.cli.app import main as run  # takes seconds: torch

        run()


if __name__ == "__main__":
    main()
