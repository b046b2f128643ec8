"""The README's training loop runs unchanged."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import udkd
from tests.factories import make_dataset, make_teacher, small_recipe
from udkd.teacher.cache.build import build_cache

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_your_own_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the folders of DATA and CACHE are changed."""
    dataset = make_dataset(tmp_path, per_class=8)
    teacher = make_teacher(tmp_path / "teacher", dataset)
    cpu = torch.device("cpu")
    cache = build_cache(tmp_path / "cache", dataset=dataset, teacher=teacher, recipe=small_recipe(), device=cpu).cache
    monkeypatch.chdir(tmp_path)
    (loop,) = [block for block in blocks("python") if "udkd.distill" in block]
    with torch.random.fork_rng(devices=[]):
        names: dict[str, Any] = {}
        exec(compile(loop.replace('"quickstart/', '"'), "README.md", "exec"), names)
    terms, targets, batch = names["terms"], names["targets"], names["batch"]
    assert torch.isfinite(terms.total)
    assert (terms.teacher > 0).all()
    assert (terms.peer > 0).all()
    logits_NC, _ = cache.targets(0)
    ids_B = batch.ids.numpy()
    assert np.array_equal(targets.logits.numpy(), logits_NC[ids_B]), "the targets are those of these samples"


def test_public_names_exist_and_have_docstrings() -> None:
    assert set(udkd.__all__) <= set(dir(udkd))
    for name in udkd.__all__:
        assert getattr(udkd, name).__doc__ or name == "open_backend", name
    with pytest.raises(AttributeError, match=r"has no attribute 'distil'; it has Cache, CachedTargets"):
        _ = udkd.distil
