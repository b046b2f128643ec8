"""Limits that are right for the machine, and a place for what tests share."""

import os
import shutil
import tempfile

import pytest

from tests.once import SHARED
from tests.patience import patience

TEST_S = 600


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Said once: the workers of a session are told by the process that starts them."""
    if config.getoption("timeout") is None:  # what one test may take before it counts as hanging
        config.option.timeout = patience(TEST_S)
    if SHARED not in os.environ:
        os.environ[SHARED] = folder = tempfile.mkdtemp(prefix="udkd-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        config.add_cleanup(lambda: os.environ.pop(SHARED))
