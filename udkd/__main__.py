"""`python -m udkd` and the `udkd` command. Ctrl-C and the end of torchrun are handled before the slow imports."""

import os

from udkd.utils.launcher import exit_with_launcher, is_started_by_torchrun
from udkd.utils.signals import exit_at_once, signal_handler


def main() -> None:
    """Entry point of the console command."""
    if is_started_by_torchrun():
        exit_with_launcher()
    with signal_handler(exit_at_once):
        from udkd.utils.stdio import install_safe_streams

        if "_UDKD_COMPLETE" not in os.environ:  # a shell asks for completions, and parses their tabs
            install_safe_streams()
        from udkd.cli.app import main as run

        run()


if __name__ == "__main__":
    main()
