"""Shared by all tests: timeouts scaled to the machine, a folder for shared data, and the tests that only `make test-long` runs.

Hypothesis draws the same examples in each run, so that no run fails by chance; `--hypothesis-profile=long` draws many more,
different ones each time.
"""

import functools
import gc
import os
import shutil
import tempfile
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.build_once import SHARED
from tests.timeouts import scaled

if TYPE_CHECKING:  # PyTorch is imported only by the tests that need it
    from tests.cli.commands import Call
    from udkd.data.dataset import DatasetFolder
    from udkd.teacher.folder import TeacherFolder

TEST_S = 600
LONG = "UDKD_LONG_TESTS"
FIRST = (
    *("test_trainer.py", "test_commands.py", "test_mixed_runs.py", "test_report.py", "test_fake_cuda.py", "test_export.py"),
    *("test_cache_workers.py", "test_benchmarks.py", "test_convert.py", "test_derive_faults.py", "test_report_analysis.py"),
    "test_augment.py",
)
"""The slowest files start first; started last, one of them would keep a single worker busy at the end."""

settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.register_profile("long", max_examples=3_000, database=None, deadline=None)
settings.load_profile("fixed")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Set up the session once; its worker processes inherit the environment variables."""
    config.addinivalue_line("markers", f"long: a further variant of what is tested anyway; runs with {LONG}=1 (make test-long)")
    if config.getoption("timeout") is None:  # seconds before a test counts as hanging
        config.option.timeout = scaled(TEST_S)
    if SHARED not in os.environ:
        os.environ[SHARED] = folder = tempfile.mkdtemp(prefix="udkd-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        config.add_cleanup(lambda: os.environ.pop(SHARED))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files; each worker takes the next one."""
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import without garbage collections, and exempt the modules from later ones, each of which would take 0.5 s for them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the long variants, so that `make test` lists them."""
    if item.get_closest_marker("long") and not os.environ.get(LONG):
        pytest.skip("long: make test-long runs it")


@pytest.fixture(scope="module")
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "DatasetFolder":
    """The dataset folder of `make_dataset`, with the keyword arguments in the test module's DATASET_IMAGES, if defined."""
    from tests.factories import make_dataset

    return make_dataset(tmp_path_factory.mktemp("data"), **getattr(request.module, "DATASET_IMAGES", {}))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, dataset: "DatasetFolder") -> "TeacherFolder":
    """An untrained teacher of that dataset's classes."""
    from tests.factories import make_teacher

    return make_teacher(tmp_path_factory.mktemp("teacher"), dataset)


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> "Call":
    """`tests.cli.commands.run`, in an empty working directory."""
    from tests.cli.commands import run

    return functools.partial(run, folder=tmp_path_factory.mktemp("empty"))
