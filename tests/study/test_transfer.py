"""Agreement of teachers: pairs, groups and correlations, and the complete study on two small datasets."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from tests.factories import make_dataset
from udkd.study.folder import StudyFolder
from udkd.study.plan import make_plan
from udkd.study.runner import StudyContext
from udkd.study.spec import load_study
from udkd.study.transfer import GROUPS, TeacherWeights, agreements, compare_teachers
from udkd.teacher.cache.reader import Cache
from udkd.utils.errors import DataError


def made_up(teacher: str, seed: int, data: str, weights: list[float]) -> TeacherWeights:
    samples = {f"{index}.jpg": weight for index, weight in enumerate(weights)}
    classes = {"a": weights[0], "b": weights[1], "c": weights[2]}
    return TeacherWeights(teacher=teacher, seed=seed, data=data, samples=samples, classes=classes, top1=None)


def test_pairs_and_groups() -> None:
    teachers = [
        made_up("x", 0, "A", [0.1, 0.2, 0.3, 0.4]),
        made_up("x", 1, "A", [0.2, 0.1, 0.3, 0.4]),
        made_up("y", 0, "A", [0.4, 0.3, 0.2, 0.1]),
        made_up("x", 0, "B", [0.5, 0.6, 0.7]),
    ]
    by_pair = {(pair.one, pair.other, pair.level): pair for pair in agreements(teachers)}
    assert len(by_pair) == 8  # three pairs inside A and one across, by sample and by class
    same = by_pair["x, seed 0, A", "x, seed 1, A", "samples"]
    assert (same.group, same.n) == (GROUPS[0], 4)
    assert same.rho == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert by_pair["x, seed 0, A", "y, seed 0, A", "samples"].rho == pytest.approx(-1.0)
    across = by_pair["x, seed 0, A", "x, seed 0, B", "samples"]
    assert (across.group, across.n, across.rho) == (GROUPS[2], 3, pytest.approx(1.0))


def test_a_teacher_of_constant_weights_has_no_correlation() -> None:
    teachers = [made_up("x", 0, "A", [0.1, 0.2, 0.3]), made_up("x", 1, "A", [0.5, 0.5, 0.5])]
    assert agreements(teachers) == []


def test_a_study_of_teachers(tmp_path: Path) -> None:
    first = make_dataset(tmp_path / "one", per_class=6, val_per_class=2)
    shutil.copytree(first.path, tmp_path / "other")
    settings = ["train.batch_size=8", "teacher.batch_size=8", "fit.epochs=1", "train.threads=1", "fit.lr=0.01"]
    arms = tuple(
        arm.model_copy(update={"set": (f"fit.architecture='{name}'",)})
        for arm, name in zip(load_study("transfer").arms, ("squeezenet1_1", "squeezenet1_0"), strict=False)
    )
    study = load_study("transfer").model_copy(update={"arms": arms})
    plan = make_plan("transfer", study, recipe="smoke", overrides=settings, seeds=[0])
    device = torch.device("cpu")
    context = StudyContext(data=first.path, folder=StudyFolder(out=tmp_path / "out", name="transfer"), device=device)
    with pytest.raises(DataError, match="expected different names"):
        compare_teachers(plan, context, [first.path])
    result = compare_teachers(plan, context, [tmp_path / "other"])
    assert result is not None
    pairs, page = result
    # The other folder holds the same samples: the same teachers, the same caches, a correlation of 1.
    across = [pair for pair in pairs if pair.group == GROUPS[2]]
    assert {(pair.level, pair.n) for pair in across} == {("samples", 24), ("classes", 4)}
    assert all(pair.rho == pytest.approx(1.0) for pair in across)
    assert len(list((tmp_path / "out" / "teachers").iterdir())) == 2
    caches = [path for path in (tmp_path / "out" / "caches").iterdir() if path.is_dir()]
    assert len(caches) == 2
    ids = first.split("train").ids
    weights = {Cache.open(path).key.teacher: 1 - np.array(Cache.open(path).targets(0)[1])[ids] / np.log(4) for path in caches}
    within = next(pair for pair in pairs if pair.level == "samples" and pair.group == GROUPS[1])
    expected = scipy.stats.spearmanr(weights["squeezenet1_1"], weights["squeezenet1_0"]).statistic
    assert within.rho == pytest.approx(expected, abs=1e-6)
    values = json.loads((page.parent / "study.json").read_text())
    means = {round(teacher["mean_weight"], 6) for teacher in values["teachers"]}
    assert means == {
        round(float(1 - (Cache.open(path).targets(0)[1] / torch.log(torch.tensor(4.0)).item()).mean()), 6) for path in caches
    }
    assert "Mean rank correlation" in page.read_text()
    assert str(tmp_path) not in json.dumps(values)
