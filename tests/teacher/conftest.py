"""Fixtures of the tests of teachers and caches."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cache blocks of the test module's BLOCK_ROWS; restores the number of threads, which a build sets."""
    monkeypatch.setattr("udkd.teacher.cache.build.BLOCK_ROWS", request.module.BLOCK_ROWS)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
