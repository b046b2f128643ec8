"""The builder on a real dataset folder and teacher: equal to a live teacher, to itself in pieces, and to itself after kills."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories import write_small_teacher
from tests.observers import Notes
from tests.teacher.cache_fixtures import CLASSES, CPU, RECIPE, TEACHER, make_teacher, recipe, run, views_of
from udkd.augment.apply import apply
from udkd.augment.view_table import EpochViews
from udkd.config.recipe import Recipe
from udkd.data.backends.registry import open_backend
from udkd.data.batch import Batch
from udkd.data.dataset import DatasetFolder
from udkd.losses.sample_weight import entropy_weight
from udkd.losses.storage import Storage
from udkd.models.build import build
from udkd.teacher.cache.build import build_cache
from udkd.teacher.cache.reader import Cache, find_damaged_blocks
from udkd.teacher.cache.summary import kept_label_rank, label_rank, summarise_cache
from udkd.teacher.ensemble import TeacherEnsemble
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.predict import predict_blocks, rebatch
from udkd.teacher.sources import CachedTargets, LiveTargets
from udkd.teacher.target_key import target_fields
from udkd.teacher.targets import pack
from udkd.utils.errors import CacheError, DataError, MismatchError

BLOCK_ROWS = 16
pytestmark = pytest.mark.usefixtures("small_blocks")


def ensemble_of(teachers: list[TeacherFolder], rules: Recipe, dataset: DatasetFolder) -> TeacherEnsemble:
    return TeacherEnsemble.load(teachers, rules, dataset, CPU)


@pytest.mark.parametrize("views", ["eval", 2])
def test_cached_equals_live_on_shuffled_batches(
    tmp_path: Path, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder, views: str | int
) -> None:
    """By id order in the cache, shuffled and in other batches live: the same bits."""
    rules, split = recipe(views), cache_dataset.split("train")
    cache = run(tmp_path, cache_dataset, cache_teacher, views)
    assert cache.views == ((0,) if views == "eval" else (0, 1))
    seen = EpochViews(rules.views.spec, rules.views.seed, split, CPU)
    eval_views = EpochViews(rules.evaluation_spec, 0, split, CPU) if views == "eval" else None
    live, cached = LiveTargets(ensemble_of([cache_teacher], rules, cache_dataset), eval_views), CachedTargets(cache, CPU)
    backend = open_backend("folder", split, CPU, workers=1)
    for view in (0, 1) if views == 2 else (0,):
        for batch_size in (13, 8):
            order = np.random.default_rng(view).permutation(split.ids)
            for batch in backend.epoch(order, batch_size):
                x = apply(batch.canvas, seen.table(view).gather(batch.ids), rules.views.spec)
                ours, theirs = cached(batch, x, view), live(batch, x, view)
                assert torch.equal(ours.logits, theirs.logits)
                assert torch.equal(ours.weight, theirs.weight)


def test_the_key_is_the_one_a_run_requires(tmp_path: Path, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder) -> None:
    cache = run(tmp_path, cache_dataset, cache_teacher, 1)
    pixel_class = open_backend("folder", cache_dataset.split("train"), CPU).describe()
    assert cache.require(target_fields(recipe(1), cache_dataset, pixel_class)) == []
    with pytest.raises(MismatchError) as refusal:
        cache.require(target_fields(recipe("eval"), cache_dataset, pixel_class))
    assert {"policy", "seed", "views.scheme"} <= {name for name, _, _ in refusal.value.fields}


def test_a_build_says_first_what_the_teacher_will_see(
    tmp_path: Path, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder
) -> None:
    notes = Notes()
    teacher = TeacherFolder(path=cache_teacher.path, info=replace(cache_teacher.info, image_px=64))
    build = {"dataset": cache_dataset, "teacher": teacher, "device": CPU, "observer": notes}
    build_cache(tmp_path, recipe=recipe(), **build)
    assert notes.lines[-2] == "the teacher sees 32 px, as the students: train with the same recipe and settings"
    assert "was measured at 64 px and it sees 32 px here; teacher.size_px=64" in notes.lines[-1]
    notes.lines.clear()
    build_cache(tmp_path, recipe=recipe(), **build)
    assert not any("sees" in line for line in notes.lines), "nothing is built"
    wide = Recipe.from_dict(RECIPE | {"views": {"size_px": 41}, "evaluation": {"resize_px": 41}}, "test")
    build_cache(tmp_path / "wide", recipe=wide, **build)
    assert any("the canvases are 40 px and views 41 px" in line for line in notes.lines)


def test_views_are_added(tmp_path: Path, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder) -> None:
    run(tmp_path / "grown", cache_dataset, cache_teacher, 1)
    stat = (tmp_path / "grown" / "view-0000.udkd").stat()
    run(tmp_path / "grown", cache_dataset, cache_teacher, 3)
    after = (tmp_path / "grown" / "view-0000.udkd").stat()
    assert (after.st_mtime_ns, after.st_ino) == (stat.st_mtime_ns, stat.st_ino)
    run(tmp_path / "complete", cache_dataset, cache_teacher, 3)
    assert views_of(tmp_path / "grown") == views_of(tmp_path / "complete")
    again = build_cache(tmp_path / "grown", dataset=cache_dataset, teacher=cache_teacher, recipe=recipe(2), device=CPU)
    assert (again.num_images, again.images_per_s, again.summary.num_views) == (0, 0.0, 3)


def test_an_interrupted_build_resumes(tmp_path: Path, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder) -> None:
    class Interrupting(Notes):
        left = 30

        def advance(self, count: int, **fields: float | str) -> None:
            self.left -= count
            if self.left < 0:
                raise KeyboardInterrupt

    observer = Interrupting()
    options = {"dataset": cache_dataset, "teacher": cache_teacher, "recipe": recipe(), "device": CPU, "observer": observer}
    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path / "a", **options)  # type: ignore[arg-type]
    assert list(views_of(tmp_path / "a")) == ["view-0000.udkd.partial"]
    with pytest.raises(CacheError, match="unfinished"):
        Cache.open(tmp_path / "a")
    observer.left = 1000
    built = build_cache(tmp_path / "a", **options)  # type: ignore[arg-type]
    assert 0 < built.num_images < 60
    assert any("done already" in note for note in observer.lines)
    run(tmp_path / "b", cache_dataset, cache_teacher)
    assert views_of(tmp_path / "a") == views_of(tmp_path / "b")


def test_another_teacher_or_precision_is_refused(
    tmp_path: Path, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder
) -> None:
    run(tmp_path / "cache", cache_dataset, cache_teacher)
    other = make_teacher(tmp_path / "other", seed=1)
    with pytest.raises(MismatchError, match="teacher_sha256"):
        run(tmp_path / "cache", cache_dataset, other)
    with pytest.raises(MismatchError, match="precision: stored 'float32', wanted 'bfloat16'"):
        run(tmp_path / "cache", cache_dataset, cache_teacher, precision="bfloat16")
    reordered = make_teacher(tmp_path / "reordered", classes=CLASSES[::-1])
    with pytest.raises(MismatchError, match="class 0: stored 'n06', wanted 'n00'"):
        run(tmp_path / "new", cache_dataset, reordered)
    fewer = make_teacher(tmp_path / "fewer", classes=CLASSES[:3])
    with pytest.raises(MismatchError, match="num_classes: stored 3, wanted 7"):
        run(tmp_path / "new", cache_dataset, fewer)


def test_a_teacher_of_nan_is_refused(tmp_path: Path, cache_dataset: DatasetFolder) -> None:
    model = build(TEACHER, len(CLASSES), image_px=32, seed=0)
    model.fc.bias.data[3] = float("nan")
    broken = write_small_teacher(tmp_path / "t", model.state_dict(), TEACHER, [entry.wnid for entry in CLASSES])
    with pytest.raises(DataError, match=r"fc\.bias is not finite"):
        run(tmp_path / "cache", cache_dataset, broken)


def test_summary_against_float64(tmp_path: Path, cache_dataset: DatasetFolder, cache_teacher: TeacherFolder) -> None:
    rules, split = recipe(2), cache_dataset.split("train")
    built = build_cache(tmp_path, dataset=cache_dataset, teacher=cache_teacher, recipe=rules, device=CPU)
    backend = open_backend("folder", split, CPU, workers=1)
    logits, entropies = [], []
    for view in (0, 1):
        for targets in predict_blocks(
            ensemble_of([cache_teacher], rules, cache_dataset), backend, split, rules.teacher_spec, 3, view, [split.ids]
        ):
            logits.append(targets.logits.double())
            entropies.append(targets.entropy)
    z, labels = torch.cat(logits), torch.from_numpy(np.tile(split.labels[split.ids], 2)).long()
    entropy, order = torch.cat(entropies), z.argsort(dim=1, descending=True, stable=True)
    summary = built.summary
    assert summary.num_targets == len(z) == 2 * len(split.ids)
    assert summary.mean_entropy == pytest.approx(float(entropy.double().mean()), rel=1e-9)
    assert summary.mean_weight == pytest.approx(float(entropy_weight(entropy, 7).double().mean()), rel=1e-9)
    assert summary.top1 == pytest.approx(100 * float((order[:, 0] == labels).double().mean()))
    assert summary.top5 == pytest.approx(100 * float((order[:, :5] == labels[:, None]).any(1).double().mean()))
    assert summarise_cache(built.cache).top1 is None
    assert find_damaged_blocks(built.cache) == []


@pytest.mark.parametrize(("kept", "scale"), [(1, 1.0), (3, 4.0), (8, 0.1), (11, 4.0)])
def test_label_rank_in_the_top_k_form(kept: int, scale: float) -> None:
    """As in the restored logits of all classes; rounding to float16 makes some of the kept ones equal."""
    logits = torch.randn(500, 12, generator=torch.Generator().manual_seed(kept)) * scale
    labels = np.random.default_rng(kept).integers(0, 12, 500).astype(np.int32)
    packed = pack(logits, Storage(top_k=kept))
    assert packed.classes is not None
    ranks = kept_label_rank(packed.logits.numpy(), packed.classes.numpy().astype(np.uint16), labels)
    assert np.array_equal(ranks, label_rank(packed.dense(12).numpy(), labels))


def test_label_rank_breaks_ties_by_index() -> None:
    logits = np.array([[0, 0, -1], [0, 0, -1], [-1, 0, 0]], np.float16)
    assert label_rank(logits, np.array([0, 1, 0])).tolist() == [0, 1, 2]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_rebatch(batch_size: int) -> None:
    sizes = [4, 1, 3, 4, 2]
    ids = torch.arange(sum(sizes))

    def stream() -> Iterator[Batch]:
        for part in ids.split(batch_size):
            yield Batch(ids=part, canvas=part[:, None, None, None], labels=part)

    full = list(rebatch(stream(), sizes))
    assert [len(block.ids) for block in full] == sizes
    for field in ("ids", "labels"):
        assert torch.equal(torch.cat([getattr(block, field) for block in full]), ids)
    assert torch.equal(torch.cat([block.canvas for block in full]).flatten(), ids)
