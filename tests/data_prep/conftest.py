"""Shares worker processes between tests: starting one takes half a second of imports or more."""

from collections.abc import Iterator

import pytest

from udkd.data_prep.pool import reuse_workers


@pytest.fixture(scope="package", autouse=True)
def _kept_processes() -> Iterator[None]:
    with reuse_workers():
        yield
