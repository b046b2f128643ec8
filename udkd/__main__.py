"""`python -m udkd` and the `udkd` command: answers Ctrl-C before anything heavy is imported."""

from udkd.words.signals import handled, quit_at_once


def main() -> None:
    """Entry point of the console command."""
    with handled(quit_at_once):
        from udkd.cli import main as run  # takes seconds: torch

        run()


if __name__ == "__main__":
    main()
