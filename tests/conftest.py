"""What all tests share: limits that are right for the machine, a place for data, and hypothesis's examples.

Hypothesis draws the same examples in each run, so that no run fails by chance; `--hypothesis-profile=long` draws others, many
more, each time (`make test-long`).
"""

import os
import shutil
import tempfile

import pytest
from hypothesis import settings

from tests.once import SHARED
from tests.patience import patience

TEST_S = 600

settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.register_profile("long", max_examples=3_000, database=None, deadline=None)
settings.load_profile("fixed")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Said once: the workers of a session are told by the process that starts them."""
    if config.getoption("timeout") is None:  # what one test may take before it counts as hanging
        config.option.timeout = patience(TEST_S)
    if SHARED not in os.environ:
        os.environ[SHARED] = folder = tempfile.mkdtemp(prefix="udkd-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        config.add_cleanup(lambda: os.environ.pop(SHARED))
