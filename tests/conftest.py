"""Limits that are right for the machine."""

import pytest

from tests.patience import patience

TEST_S = 600


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """What one test may take before it counts as hanging; workers are told by the process that starts them."""
    if config.getoption("timeout") is None:
        config.option.timeout = patience(TEST_S)
