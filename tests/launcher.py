"""`python -m tests.launcher SIZE[:LOCAL] MODULE ARGUMENTS…` replaces torchrun at the cost of forks.

It serves a store, forks SIZE processes with torchrun's variables, as if each machine had LOCAL of them, and waits for them. As
torchrun does, it ends the others with SIGTERM when one fails, and exits with the first error's code.
"""

import os
import runpy
import signal
import sys

from torch.distributed import TCPStore

from tests.forks import forked
from udkd.utils.operating_system import die_with_parent


def member(module: str, variables: dict[str, str]) -> None:
    os.environ |= variables
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def serve_store(ready: int) -> None:
    die_with_parent(signal.SIGKILL)  # torchrun's ends with it
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(ready, str(store.port).encode())
    os.close(ready)
    signal.pause()


def store_port() -> tuple[int, int]:
    """The process that serves the store, and its port. A process of its own: a fork may copy the locks of its threads."""
    answer, ready = os.pipe()
    server = forked(serve_store, ready)
    os.close(ready)
    with os.fdopen(answer) as file:
        return server, int(file.read(10))


def main() -> int:
    size, _, local = sys.argv.pop(1).partition(":")
    module = sys.argv.pop(1)
    per_machine = int(local or size)
    server, port = store_port()
    common = {
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": str(per_machine),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank % per_machine)} for rank in range(int(size))]
    left = {forked(member, module, common | rank) for rank in ranks}
    signal.signal(signal.SIGTERM, lambda number, frame: [os.kill(each, number) for each in left])
    result = 0
    while left:
        ended, status = os.wait()
        left.discard(ended)
        code = os.waitstatus_to_exitcode(status)
        if code and not result:
            result = code
            for each in left:
                os.kill(each, signal.SIGTERM)
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)
    return result if result >= 0 else 128 - result


if __name__ == "__main__":
    sys.exit(main())
