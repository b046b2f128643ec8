"""How a process starts another of ours, and ends with the torchrun that started it. Imports nothing heavy: it comes first."""

import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LAUNCHER_GONE = "the torchrun that started this process is gone; expected it to the end; run it again"
_PR_SET_PDEATHSIG = 1
_ANSWERS_WITHIN_S = 5.0
_HOME = Path(__file__).resolve().parents[2]
"""Where our packages lie."""


def module_command(module: str, arguments: Sequence[object] = ()) -> list[str]:
    """What starts one of our modules, with `module_environment`. -P: the folder that the user stands in provides no modules."""
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def module_environment() -> dict[str, str]:
    """This process's environment, with ours as the first place where modules are looked for."""
    paths = [str(_HOME), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun's variables name other processes beside this one."""
    return environment.get("WORLD_SIZE", "1") not in ("", "0", "1")


def end_with_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """While modules load, seconds in which there is nothing to clean up: end when torchrun does, and now where it is gone.

    The kernel kills us when the launcher dies after the first line; where it died before, so did the store that it keeps.
    """
    die_with_parent(signal.SIGKILL)
    if is_launcher_gone(environment):
        with contextlib.suppress(OSError):
            os.write(2, f"error: {LAUNCHER_GONE}\n".encode())
        os._exit(1)


def is_launcher_gone(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun's store is closed. A torchrun that is being killed keeps it open for as long as its memory is freed
    (30 ms were seen), in which its processes have lost their parent already: to be asked again after the imports.
    """
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and not _store_answers(environment)


def die_with_parent(number: signal.Signals) -> None:
    """Ask the kernel for a signal when the process that started us dies, however it does. Replaces an earlier wish."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def _store_answers(environment: Mapping[str, str]) -> bool:
    """False where nobody listens at the address of torchrun's store; a network that is slow says nothing."""
    try:
        place = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        socket.create_connection(place, timeout=_ANSWERS_WITHIN_S).close()
    except ConnectionRefusedError:
        return False
    except (KeyError, ValueError, OSError):
        pass  # whoever needs the store will say what is wrong with it
    return True
