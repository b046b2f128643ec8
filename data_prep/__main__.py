"""`python -m udkd.data_prep` and `udkd-prep`: the commands of `udkd data`. Ctrl-C is handled before any slow import."""

from udkd.utils.signals import exit_at_once, signal_handler


def main() -> None:
    """Entry point of the console command."""
    with signal_handler(exit_at_once):
        from udkd.utils.stdio import install_safe_streams

        install_safe_streams()
        from udkd.data_prep.cli import main as run

        run()


if __name__ == "__main__":
    main()
