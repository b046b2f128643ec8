"""Fixtures of the tests of training."""

from pathlib import Path

import pytest
import torch

from tests.factories import small_recipe
from udkd.data.dataset import DatasetFolder
from udkd.teacher.cache.build import build_cache
from udkd.teacher.folder import TeacherFolder


@pytest.fixture(scope="module")
def cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder, teacher: TeacherFolder
) -> Path:
    """A cache for the small recipe, with the settings in the test module's CACHE_SETTINGS, if defined."""
    recipe = small_recipe(*getattr(request.module, "CACHE_SETTINGS", ()))
    folder = tmp_path_factory.mktemp("cache") / "c"
    return build_cache(folder, dataset=dataset, teacher=teacher, recipe=recipe, device=torch.device("cpu")).cache.folder
