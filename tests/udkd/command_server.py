"""`python -m udkd …` many times for the price of one start: imports once, then forks for every command.

Reads JSON lines {"arguments", "folder", "limit_bytes"} on stdin, answers with {"code", "out", "err"} on stdout. Each
command runs in a process of its own through the console entry point, with real file descriptors and a real exit. Started
with `data_prep`, it is that program; "environment" in a line has variables for one command.
"""

import importlib
import json
import os
import resource
import sys
import tempfile

PROGRAM = sys.argv[1] if len(sys.argv) > 1 else "udkd"
importlib.import_module(f"{PROGRAM}.cli")
main = importlib.import_module(f"{PROGRAM}.__main__").main


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.chdir(request["folder"])
                os.environ.update(request.get("environment", {}))
                tempfile.tempdir = None  # the environment says where anew
                sys.argv = [PROGRAM, *request["arguments"]]
                if request["limit_bytes"]:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit_bytes"], request["limit_bytes"]))
                run_and_exit()
            _, status = os.waitpid(child, 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
            for name, file in (("out", out), ("err", err)):
                file.seek(0)
                answer[name] = file.read().decode()
        print(json.dumps(answer), flush=True)


def run_and_exit() -> None:
    """As the interpreter would end: the code of SystemExit, a traceback and 1 for what nobody caught."""
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
