"""`python -m data_prep` and the `udkd-prep` command. Handles Ctrl-C before any slow import."""

from udkd.utils.signals import handled, quit_at_once


def main() -> None:
    """Entry point of the console command."""
    with handled(quit_at_once):
        from udkd.utils.stdio import guard

        guard()
        from data_prep.cli import main as run

        run()


if __name__ == "__main__":
    main()
