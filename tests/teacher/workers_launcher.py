"""Replaces torchrun at the cost of forks: serves a store, forks SIZE processes with its variables, and waits for them."""

import os
import runpy
import sys

from torch.distributed import TCPStore

from tests.forks import forked


def member(variables: dict[str, str]) -> None:
    os.environ |= variables
    runpy.run_module("tests.teacher.workers_command", run_name="__main__", alter_sys=True)


def main() -> None:
    size = int(sys.argv.pop(1))
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    members = [forked(member, variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(size)]
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in members))


if __name__ == "__main__":
    main()
