"""Runs `python -m MODULE …` at the cost of a fork, several at once, from a process that has imported everything already.

Started with the name of a socket, it returns once a server listens there, which ends after the last client. Each client is
served by a separate process, whose children are the commands: they end with their client at the latest. A request is JSON
with the files that become standard output and error; answers are [process id] and, at the end, [process id, exit code].
"""

import gc
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
import tempfile
from typing import Any

import udkd.cli.app
import udkd.report
import udkd.study.page
import udkd.study.transfer  # noqa: F401 (what commands import late)
from tests.forks import forked

_LONGEST = 1 << 16
"""Bytes of a request."""

_EVERY_S = 0.01
_IDLE_S = 0.2


def listen(name: str) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0{name}")
    listener.listen()
    if os.fork() == 0:
        os.setsid()
        gc.freeze()  # a collection would touch, and so copy, memory that commands share with this process
        serve(listener)


def serve(listener: socket.socket) -> None:
    listener.settimeout(_IDLE_S)
    children: set[int] = set()
    served = False
    while children or not served:
        children = {each for each in children if not os.waitpid(each, os.WNOHANG)[0]}
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        with client:
            children.add(forked(attend, client, listener))
        served = True


def attend(client: socket.socket, listener: socket.socket) -> None:
    listener.close()  # it would never answer once the server is gone
    client.send(b"[]")
    commands: set[int] = set()
    while True:
        if select.select([client], [], [], _EVERY_S if commands else None)[0]:
            message, files, _, _ = socket.recv_fds(client, _LONGEST, 2)
            if not message:
                break
            commands.add(command := forked(run, json.loads(message), files))
            for file in files:
                os.close(file)
            client.send(json.dumps([command]).encode())
        for command, status in [os.waitpid(command, os.WNOHANG) for command in commands]:
            if command:
                commands.remove(command)
                client.send(json.dumps([command, os.waitstatus_to_exitcode(status)]).encode())
    for command in commands:
        os.kill(command, signal.SIGKILL)


def run(request: dict[str, Any], files: list[int]) -> None:
    for file, stream in zip(files, (1, 2), strict=True):
        os.dup2(file, stream)
    os.chdir(request["folder"])
    os.environ |= request["variables"]
    tempfile.tempdir = None  # the environment variables may name another
    if request["limit_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit_bytes"], request["limit_bytes"]))
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    listen(sys.argv[1])
