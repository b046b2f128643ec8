"""Progress on stderr without a terminal, and importing the module without torch."""

import contextlib
import os
import re
import subprocess
import sys

import pytest

from udkd.utils.terminal import observed


def test_summaries_follow_finished_tasks_only(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(ValueError), observed(summaries=True) as observer:
        observer.start("convert", 1200, "images")
        observer.advance(1200)
        observer.note("a note")
        observer.finish()
        observer.start("resident", 5, "images")
        raise ValueError
    note, summary = capsys.readouterr().err.splitlines()
    assert note == "a note"
    assert re.fullmatch(r"convert: 1,200 images in [\d.,]+ s \([\d,]+ images/s\)", summary)


def test_without_summaries_a_short_task_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with observed() as observer:
        observer.start("train", 10, "steps")
        observer.advance(10, loss=1.0)
        observer.finish()
    assert capsys.readouterr().err == ""


def test_torch_is_not_imported() -> None:
    """The converter uses this module, and explains a MemoryError like any other program."""
    code = (
        "import sys; from udkd.utils.terminal import explain_machine_error as explain; "
        "assert 'torch' not in sys.modules; assert explain(ValueError()) is None; print(explain(MemoryError()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("out of memory (MemoryError); expected it to fit;")


def test_matplotlib_is_silent_about_a_read_only_home() -> None:
    code = "from udkd.utils import terminal; terminal.run(lambda: __import__('matplotlib').get_configdir())"
    environment = os.environ | {"HOME": "/proc"}
    for name in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
