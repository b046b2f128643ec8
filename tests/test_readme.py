"""The README's training loop runs unchanged."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import udkd
from tests.factories import make_dataset, make_teacher, small_recipe
from tests.timeouts import scaled
from udkd.teacher.cache.build import build_cache

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_your_own_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the folders of DATA and CACHE are changed."""
    dataset = make_dataset(tmp_path, per_class=8)
    teacher = make_teacher(tmp_path / "teacher", dataset)
    cpu = torch.device("cpu")
    cache = build_cache(tmp_path / "cache", dataset=dataset, teacher=teacher, recipe=small_recipe(), device=cpu).cache
    monkeypatch.chdir(tmp_path)
    (loop,) = (block for block in blocks("python") if "for epoch in" in block)
    assert len(re.findall(r"^.*\S", loop, flags=re.MULTILINE)) <= 20, "lines"
    assert loop in (ROOT / "docs" / "getting-started.md").read_text()
    with torch.random.fork_rng(devices=[]):
        names: dict[str, Any] = {}
        exec(compile(loop.replace('"quickstart/', '"'), "README.md", "exec"), names)
    terms, batch = names["terms"], names["batch"]
    assert torch.isfinite(terms.total)
    assert (terms.teacher > 0).all()
    assert (terms.peer > 0).all()
    logits_NC, _ = cache.targets(0)
    targets = names["teacher"](batch, 1)
    assert np.array_equal(targets.logits.numpy(), logits_NC[batch.ids.numpy()]), "the targets are those of these samples"
    names["loader"].close()


def test_public_names_exist_and_have_docstrings() -> None:
    assert set(udkd.__all__) <= set(dir(udkd))
    for name in udkd.__all__:
        assert getattr(udkd, name).__doc__, name
    with pytest.raises(AttributeError, match=r"has no attribute 'distill'; it has Augment, CachedTeacher"):
        _ = udkd.distill


def test_import_is_lazy() -> None:
    code = "import sys, udkd; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=scaled(60))
