"""Caches of views with operations, erasing and mixing: how they are built, keyed, refused, verified and summed up."""

import json
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli.commands import code_of
from tests.teacher.cache_fixtures import CPU, EXCLUDED, RECIPE, SAMPLES, run_in_threads, views_of
from tests.teacher.test_hostile_cache import ODD_VALUES
from udkd.augment.view_table import EpochLabels, EpochViews
from udkd.augment.views import ViewSpec
from udkd.config.loading import load_recipe
from udkd.config.recipe import Recipe
from udkd.data.backends.registry import open_backend
from udkd.data.dataset import DatasetFolder
from udkd.losses.sample_weight import SampleWeighting
from udkd.teacher.cache.build import build_cache
from udkd.teacher.cache.import_logits import import_cache
from udkd.teacher.cache.key import CacheKey, key_differences
from udkd.teacher.cache.reader import Cache
from udkd.teacher.cache.summary import summarise_cache
from udkd.teacher.cache.verify import compare_with_teacher
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.sources import CachedTargets, open_targets
from udkd.teacher.target_key import target_fields, training_remedy
from udkd.training.prediction_collector import cached_targets
from udkd.utils.errors import CacheError, MismatchError
from udkd.utils.toml_files import toml_value

BLOCK_ROWS = 8
STRONG: dict[str, object] = {
    "policy": "timm_rand_augment",
    "policy_magnitude": 7.0,
    "policy_spread": 0.5,
    "warp": "bilinear",
    "fill": [124, 116, 104],
    "jitter": "uint8",
    "hue": 0.1,
    "ops": [{"op": "rotate", "low": -10.0, "high": 10.0}, {"op": "blur", "prob": 0.5, "low": 0.1, "high": 2.0}],
    "erase_prob": 0.5,
    "erase_area": [0.1, 0.2],
    "erase_fill": "noise",
    "mixup": 0.8,
    "cutmix": 1.0,
    "mix_prob": 0.9,
}
# Written by the version before the fields from `policy` on.
OLD_KEY = (
    '{"augment_version":1,"block_rows":4096,"channels_last":true,"dataset_digest":"dddddddd","device":"cpu","estimator":"plain",'
    '"format_version":1,"normalisation":{"mean":[0.5,0.5,0.5],"std":[0.25,0.25,0.25]},"num_classes":7,"pixel_class":"folder",'
    '"policy":"views","precision":"float32","seed":3,"split":"train","storage":"float16","teacher":"resnet18","teacher_batch":8,'
    '"teacher_sha256":"eeeeeeee","threads":1,"uncertainties":["entropy"],"views":{"brightness":0.4,"contrast":0.0,"flip":0.5,'
    '"ratio":[0.75,1.3333333333333333],"resize_px":36,"saturation":0.0,"scale":[0.08,1.0],"scheme":"random_resized",'
    '"size_px":32},"views_version":1}'
)


def recipe(views: int = 2, changes: dict[str, object] | None = None, **teacher: object) -> Recipe:
    values: dict[str, Any] = RECIPE | {"teacher": {"batch_size": 8, "views": views} | teacher}
    return Recipe.from_dict(values | {"views": values["views"] | STRONG | (changes or {})}, "test")


def build(folder: Path, dataset: DatasetFolder, teacher: TeacherFolder, views: int = 2, **teacher_settings: object) -> Cache:
    return build_cache(folder, dataset=dataset, teacher=teacher, recipe=recipe(views, **teacher_settings), device=CPU).cache


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder) -> Cache:
    """Two views, in blocks of eight ids: most partners are in another block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("udkd.teacher.cache.build.BLOCK_ROWS", BLOCK_ROWS)
        return build(tmp_path_factory.mktemp("mixed") / "cache", cache_dataset, cache_teacher)


@pytest.mark.usefixtures("small_blocks")
def test_any_build_gives_the_same_bytes(
    tmp_path: Path, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder, mixed: Cache
) -> None:
    """View by view, by three processes, and stopped in the middle."""
    build(tmp_path / "grown", cache_dataset, cache_teacher, 1)
    build(tmp_path / "grown", cache_dataset, cache_teacher, 2)
    built = run_in_threads(3, tmp_path / "group", cache_dataset, cache_teacher, recipe=recipe())
    assert [each for each in built if isinstance(each, Exception)] == []

    class Interrupting:
        left = 40

        def start(self, task: str, total: int, unit: str) -> None: ...
        def finish(self) -> None: ...
        def note(self, line: str) -> None: ...
        def advance(self, count: int, **fields: float | str) -> None:
            self.left -= count
            if self.left < 0:
                raise KeyboardInterrupt

    options: dict[str, Any] = {"dataset": cache_dataset, "teacher": cache_teacher, "recipe": recipe(), "device": CPU}
    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path / "stopped", observer=Interrupting(), **options)
    assert list(views_of(tmp_path / "stopped")) == ["view-0000.udkd.partial"]
    assert 0 < build_cache(tmp_path / "stopped", **options).num_images < 2 * (SAMPLES - len(EXCLUDED))
    for name in ("grown", "group", "stopped"):
        assert views_of(tmp_path / name) == views_of(mixed.folder), name


@pytest.mark.long
def test_other_batches_and_blocks_give_the_same_targets(
    tmp_path: Path, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder, mixed: Cache
) -> None:
    """One block instead of eleven, and batches of five: the pixels are the same, so the logits differ by a rounding at most."""
    other = build(tmp_path / "cache", cache_dataset, cache_teacher, batch_size=5)
    for view in (0, 1):
        one, two = (np.asarray(cache.view_file(view).arrays["logits"], np.float32) for cache in (mixed, other))
        assert len(np.unique(one[:, 0])) > 50
        np.testing.assert_allclose(one, two, atol=0.02, rtol=2e-3)


def test_verify_recomputes_mixed_views(
    cache_dataset: DatasetFolder, cache_teacher: TeacherFolder, mixed: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"dataset": cache_dataset, "teachers": [cache_teacher], "count": 31, "seed": 0, "device": CPU}
    options["backend"] = "folder"
    assert compare_with_teacher(mixed, **options).worst is None
    # It can fail: with other partners nearly all targets are others.
    monkeypatch.setattr("udkd.teacher.predict.partners", lambda seed, view, ids, count: np.arange(count))
    assert compare_with_teacher(mixed, **options).worst is not None


def mean_shares(spec: ViewSpec, dataset: DatasetFolder, cache: Cache, top: int) -> float:
    """The mean share of the labels among the teacher's best classes, sample by sample."""
    split, total = dataset.split("train"), 0.0
    for view in cache.views:
        labels = EpochViews(spec, 3, split, CPU).table(view)
        logits = cache.view_file(view).arrays["logits"]
        assert labels.partner is not None
        assert labels.share is not None
        for sample in split.ids.tolist():
            best = np.argsort(-np.asarray(logits[sample], np.float32), kind="stable")[:top].tolist()
            share = float(labels.share[sample])
            shares: Counter[int] = Counter()
            shares[int(split.labels[sample])] += share  # type: ignore[assignment]
            shares[int(split.labels[int(labels.partner[sample])])] += 1 - share  # type: ignore[assignment]
            total += sum(shares[each] for each in best)
    return 100 * total / (len(split.ids) * len(cache.views))


def test_a_summary_counts_mixed_labels_by_their_shares(cache_dataset: DatasetFolder, mixed: Cache) -> None:
    summary = summarise_cache(mixed, cache_dataset.split("train").labels)
    spec = recipe().views.spec
    assert summary.top1 == pytest.approx(mean_shares(spec, cache_dataset, mixed, 1), abs=1e-3)
    assert summary.top5 == pytest.approx(mean_shares(spec, cache_dataset, mixed, 5), abs=1e-3)
    assert mixed.key.mixes


def test_cache_info_says_how_it_counts(cache_dataset: DatasetFolder, mixed: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("cache", "info", mixed.folder, "--data", cache_dataset.path) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "of these targets, where each label of a mixed view counts by its share" in shown


def test_no_prediction_of_a_mixed_view_counts_as_one_of_an_image(cache_dataset: DatasetFolder, mixed: Cache) -> None:
    provenance = {"cache": str(mixed.folder), "cache_key": json.loads(mixed.key.to_json())}
    with pytest.raises(CacheError, match="holds targets of mixed samples, which no single image explains"):
        cached_targets(cache_dataset.split("train"), provenance)


def test_correctness_weights_are_shared_by_hand(cache_dataset: DatasetFolder, mixed: Cache) -> None:
    """1 - H / ln C where the teacher is right about a label, averaged by shares; in every table, again after another view."""
    split, spec, seed = cache_dataset.split("train"), recipe().views.spec, 3
    weighting = SampleWeighting(kind="correctness")
    ids = torch.from_numpy(split.ids.astype(np.int64))
    batch: Any = type("Batch", (), {"ids": ids})
    sources = [
        CachedTargets(mixed, CPU, weighting, EpochLabels(spec, seed, split), in_memory=in_memory) for in_memory in (False, True)
    ]
    for view in (0, 1, 0):
        table = EpochViews(spec, seed, split, CPU).table(view)
        assert table.partner is not None
        assert table.share is not None
        for source in sources:
            target = source(batch, ids, view)
            predicted, labels = target.logits.float().argmax(-1), torch.from_numpy(split.labels.astype(np.int64))
            right = (predicted == labels[ids]).double(), (predicted == labels[table.partner[ids]]).double()
            share = table.share[ids].double()
            certain = 1 - torch.from_numpy(mixed.view_file(view).uncertainties["entropy"][split.ids]).double() / np.log(7)
            assert torch.allclose(target.weight.double(), certain * (share * right[0] + (1 - share) * right[1]), atol=1e-6)
            assert len(target.weight.unique()) > 10


def test_keys_of_earlier_caches_keep_their_bytes() -> None:
    spec = ViewSpec(size_px=32, resize_px=36, brightness=0.4)
    key = CacheKey.from_json(OLD_KEY)
    assert key.to_json() == OLD_KEY
    assert replace(key, views=spec.key_values).to_json() == OLD_KEY
    assert not key.mixes
    assert key_differences(key, {"views": spec.key_values}) == ([], [])
    strong = replace(spec, brightness=0.0, policy="rand_augment", fill=(1, 2, 3))
    stored = json.loads(replace(key, views=strong.key_values).to_json())["views"]
    assert {name: stored[name] for name in set(stored) - set(json.loads(OLD_KEY)["views"])} == {
        "policy": "rand_augment",
        "fill": [1, 2, 3],
        "ops_version": 1,
    }


@pytest.mark.parametrize("changes", [{}, {"mixup": 0.0, "cutmix": 0.0, "ops": [], "policy": "none", "fill": [0, 0, 0]}])
def test_a_refusal_names_both_values_and_its_remedy_works(
    cache_dataset: DatasetFolder, mixed: Cache, changes: dict[str, object]
) -> None:
    """Pasted into a shell, the settings of the message give the cache's views, whatever the recipe had."""
    plain = {name: ViewSpec.__dataclass_fields__[name].default for name in STRONG}
    pixel_class = open_backend("folder", cache_dataset.split("train"), CPU).describe()
    for stored, wanted in ((recipe(changes=changes), recipe(changes=plain)), (recipe(changes=plain), recipe(changes=changes))):
        key = replace(mixed.key, views=stored.views.spec.key_values)
        differing, _ = key_differences(key, target_fields(wanted, cache_dataset, pixel_class))
        names = {f"views.{name}" for name in STRONG if getattr(stored.views, name) != getattr(wanted.views, name)}
        assert {name for name, _, _ in differing} == names
        by_name = {name: (one, other) for name, one, other in differing}
        assert set(by_name["views.erase_prob"]) == {0.0, 0.5}
        remedy = training_remedy(key, 2, wanted, cache_dataset, pixel_class, differing)
        words = shlex.split(remedy[remedy.index("--set") : remedy.index(" to train with it")])
        settings = [word for word in words if word != "--set"]
        assert len(settings) == len(names)
        given = [f"views.{name}={toml_value(value)}" for name, value in wanted.views.model_dump(mode="json").items()]
        repaired = load_recipe("smoke", [*given, "teacher.views=2", "evaluation.resize_px=36", *settings])
        assert repaired.views.spec == stored.views.spec


def test_views_of_another_operations_version_are_refused_without_a_setting(cache_dataset: DatasetFolder, mixed: Cache) -> None:
    key = replace(mixed.key, views=mixed.key.views | {"ops_version": 2, "unknown": 1})
    assert CacheKey.from_json(key.to_json()) == key, "a later version may have other fields"
    pixel_class = open_backend("folder", cache_dataset.split("train"), CPU).describe()
    differing, _ = key_differences(key, target_fields(recipe(), cache_dataset, pixel_class))
    assert ("views.ops_version", 2, 1) in differing
    assert training_remedy(key, 2, recipe(), cache_dataset, pixel_class, differing) == "build a cache for these settings"
    with pytest.raises(CacheError, match="operations of version 2; expected 1 and 1; build the cache again"):
        _ = key.mixes


def test_hostile_views_are_one_line() -> None:
    """Values of every kind in every field: either the very key that a build would write, or a CacheError."""
    messages, rng = list[str](), np.random.default_rng(0)
    odd = [
        *ODD_VALUES,
        [0.1],
        [0.1, "x"],
        [1, 2, 3, 4],
        [{"op": "blur"}],
        [{"op": "blur", "low": "x"}],
        "rand_augment",
        float("inf"),
    ]
    strong: dict[str, Any] = json.loads(json.dumps(recipe().views.spec.key_values))
    for name in (*ViewSpec.__dataclass_fields__, "ops_version", "unknown"):
        for value in odd:
            views = {**strong, name: value}
            if rng.random() < 0.3:
                del views[str(rng.choice(sorted(strong)))]
            text = json.dumps(json.loads(OLD_KEY) | {"views": views})
            try:
                read = CacheKey.from_json(text)
            except CacheError as error:
                messages.append(str(error))
                continue
            if views.get("ops_version", 1) == 1:
                assert json.loads(json.dumps(ViewSpec.from_key_values(read.views).key_values)) == views
    assert len(messages) > 500
    assert not any("\n" in message or len(message) > 3000 for message in messages)


def test_imported_logits_are_of_evaluation_views_and_fit_no_recipe_that_mixes(
    tmp_path: Path, cache_dataset: DatasetFolder, mixed: Cache
) -> None:
    np.save(tmp_path / "logits.npy", np.asarray(mixed.view_file(0).arrays["logits"], np.float32))
    imported = import_cache(tmp_path / "c", dataset=cache_dataset, logits=tmp_path / "logits.npy", recipe=recipe(1)).cache
    assert not imported.key.mixes
    pixel_class = open_backend("folder", cache_dataset.split("train"), CPU).describe()
    options: dict[str, Any] = {"cache": imported.folder, "teachers": []}
    with pytest.raises(MismatchError, match="policy"):
        open_targets(recipe(1), cache_dataset, pixel_class, CPU, **options)
    with pytest.raises(CacheError, match="views that show one sample, and the students' views show two mixed samples"):
        open_targets(recipe(1), cache_dataset, pixel_class, CPU, allow=("policy", "seed", "views"), **options)


def test_no_allowed_difference_gives_mixed_views_to_other_samples(cache_dataset: DatasetFolder, mixed: Cache) -> None:
    pixel_class = open_backend("folder", cache_dataset.split("train"), CPU).describe()
    options: dict[str, Any] = {"cache": mixed.folder, "teachers": [], "allow": ("policy", "seed", "views")}
    open_targets(recipe(2, {"fill": [1, 2, 3]}), cache_dataset, pixel_class, CPU, **options)
    unmixed: dict[str, object] = {"mixup": 0.0, "cutmix": 0.0}
    for other in (recipe(2, unmixed), Recipe.from_dict(recipe(2, unmixed).to_dict() | {"teacher": {"batch_size": 8}}, "test")):
        with pytest.raises(CacheError, match="views that show two mixed samples, and the students' views show one"):
            open_targets(other, cache_dataset, pixel_class, CPU, **options)
