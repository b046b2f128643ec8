"""Signals: one line at any moment, cleaned up on exit, handlers restored."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from udkd.utils.signals import STOP_SIGNALS, Stopped, raise_stopped, signal_handler
from udkd.utils.terminal import stop_requests


@pytest.fixture(autouse=True)
def _handlers_are_restored() -> Iterator[None]:
    before = [signal.getsignal(kind) for kind in STOP_SIGNALS]
    yield
    for kind, handler in zip(STOP_SIGNALS, before, strict=True):
        signal.signal(kind, handler)


@pytest.mark.parametrize("kind", STOP_SIGNALS)
def test_a_signal_becomes_an_exception_once(kind: signal.Signals) -> None:
    cleaned = []
    before = [signal.getsignal(each) for each in STOP_SIGNALS]

    def work() -> None:
        try:
            os.kill(os.getpid(), kind)
            cleaned.append("never reached")
        finally:
            for other in STOP_SIGNALS:
                os.kill(os.getpid(), other)  # a second and third signal: ignored while cleaning up
            cleaned.append("cleaned")

    with pytest.raises(Stopped) as caught, signal_handler(raise_stopped):
        work()
    assert cleaned == ["cleaned"]
    assert caught.value.name == kind.name
    assert caught.value.exit_code == 128 + kind
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_stopped_is_not_caught_as_an_error() -> None:
    assert not issubclass(Stopped, (Exception, KeyboardInterrupt, SystemExit))


def test_handlers_are_restored_after_an_error_and_may_nest() -> None:
    before = [signal.getsignal(kind) for kind in STOP_SIGNALS]
    calls: list[str] = []

    def work() -> None:
        with signal_handler(lambda *_: calls.append("inner")):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"), signal_handler(lambda *_: calls.append("outer")):
        work()
    assert calls == ["inner", "outer"]
    assert [signal.getsignal(kind) for kind in STOP_SIGNALS] == before


@pytest.mark.parametrize("kind", STOP_SIGNALS)
def test_a_signal_before_the_work_begins(kind: signal.Signals) -> None:
    program = (
        "import os, sys; from udkd.utils.signals import *\n"
        "with signal_handler(exit_at_once):\n"
        "    try: os.kill(os.getpid(), int(sys.argv[1]))\n"
        "    except BaseException: print('an import would see an exception')"
    )
    done = subprocess.run([sys.executable, "-c", program, str(int(kind))], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + kind
    assert done.stderr == f"error: stopped by {kind.name} before it started; nothing was changed\n"
    assert done.stdout == ""


def test_signals_that_nohup_ignores_stay_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signal_handler(raise_stopped):
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_stop_request_has_an_exit_code_and_the_next_signal_ends_the_work() -> None:
    """A terminal that closes may send SIGHUP twice: that is one request."""

    def work() -> None:
        with stop_requests() as request:
            assert not request()
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
            assert request()
            assert request.exit_code == 129
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped) as caught, signal_handler(raise_stopped):
        work()
    assert caught.value.exit_code == 143
