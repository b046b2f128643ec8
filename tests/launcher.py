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


def member(module: str, variables: dict[str, str]) -> None:
    os.environ |= variables
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> int:
    size, _, local = sys.argv.pop(1).partition(":")
    module = sys.argv.pop(1)
    per_machine = int(local or size)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": str(per_machine),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
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
    return result if result >= 0 else 128 - result


if __name__ == "__main__":
    sys.exit(main())
