"""The worker processes of one conversion do the next one's work too: a start is half a second of imports."""

from collections.abc import Iterator

import pytest

from data_prep.pool import kept_workers


@pytest.fixture(scope="package", autouse=True)
def _workers() -> Iterator[None]:
    with kept_workers():
        yield
