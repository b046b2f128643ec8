"""Fixtures of the tests of teachers and caches."""

from collections.abc import Iterator

import pytest
import torch

from tests.teacher.cache_fixtures import make_dataset, make_teacher
from udkd.data.dataset import DatasetFolder
from udkd.teacher.folder import TeacherFolder


@pytest.fixture(scope="module")
def cache_dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    """The dataset of `cache_fixtures`: seven classes, some samples excluded."""
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache_teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherFolder:
    """A teacher of these classes."""
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cache blocks of the test module's BLOCK_ROWS; restores the number of threads, which a build sets."""
    monkeypatch.setattr("udkd.teacher.cache.build.BLOCK_ROWS", request.module.BLOCK_ROWS)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
