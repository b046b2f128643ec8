"""Starts other processes of udkd, and exits together with torchrun. Light to import, as it is imported first."""

import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from udkd.utils.operating_system import die_with_parent

LAUNCHER_GONE = "the torchrun that started this process has exited; expected it until the end; run it again"
_CONNECT_TIMEOUT_S = 5.0
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
"""The folder that contains the packages."""


def module_command(module: str, arguments: Sequence[object] = ()) -> list[str]:
    """The command that runs a module of udkd in `module_environment`. -P: nothing is imported from the current folder."""
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def module_environment() -> dict[str, str]:
    """This process's environment, with the folder of udkd's packages first in PYTHONPATH."""
    paths = [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def is_torchrun_worker(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun's environment variables show that this is one of several processes."""
    return environment.get("WORLD_SIZE", "1") not in ("", "0", "1")


def is_started_by_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started this process, perhaps alone, or its variables say so."""
    return is_torchrun_worker(environment) or environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def is_torchrun_follower(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is one of several processes, and not the one that talks to the user."""
    return is_torchrun_worker(environment) and environment.get("RANK", "0") != "0"


def exit_with_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Exit when torchrun exits, or now if it already has. Used during imports, when there is nothing to clean up.

    `die_with_parent` covers a torchrun that dies later. One that died before it was called has closed its store.
    """
    die_with_parent(signal.SIGKILL)
    if is_torchrun_gone(environment):
        with contextlib.suppress(OSError):
            os.write(2, f"error: {LAUNCHER_GONE}\n".encode())
        os._exit(1)


def is_torchrun_gone(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun's store is closed.

    A killed torchrun keeps its store open while its memory is freed (30 ms measured), after its workers have lost their
    parent. Check again after the imports.
    """
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and not _store_is_open(environment)


def _store_is_open(environment: Mapping[str, str]) -> bool:
    """False if the connection to torchrun's store is refused; a slow network counts as open."""
    import socket  # only here: every command imports this module

    try:
        address = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        socket.create_connection(address, timeout=_CONNECT_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return False
    except (KeyError, ValueError, OSError):
        pass  # torch.distributed will report the problem
    return True
