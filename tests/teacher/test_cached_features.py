"""Pooled features in a cache: those of the live teacher bit for bit, stored as safely as targets, and enough to train from."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.feature_extraction import create_feature_extractor

from tests.cli.commands import failed, inside, set_options
from tests.factories import SMALL, small_recipe
from tests.teacher.cache_fixtures import run_in_threads
from tests.training.runs import checkpoint_tensors
from udkd.augment.apply import apply
from udkd.augment.view_table import EpochViews
from udkd.data.backends.registry import open_backend
from udkd.data.dataset import DatasetFolder
from udkd.models.build import build
from udkd.teacher.cache.build import build_cache
from udkd.teacher.cache.reader import Cache, find_damaged_blocks
from udkd.teacher.cache.verify import FEATURES_BOUND, compare_with_teacher
from udkd.teacher.cache.view_file import ViewHeader, view_path
from udkd.teacher.ensemble import TeacherEnsemble
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.sources import CachedTargets, LiveTargets
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import TrainJob, train
from udkd.utils.errors import CacheError, ConfigError, MismatchError

CPU = torch.device("cpu")
D = 512
CRD_SETTINGS = ("methods.crd.negatives=8", "methods.crd.embed_dim=8", "loss.method_weight=0.5")
SETTINGS = set_options(*SMALL)
BLOCK_ROWS = 8
pytestmark = pytest.mark.usefixtures("small_blocks")


DATASET_IMAGES = {"per_class": 8, "val_per_class": 2}


def cache_of(folder: Path, dataset: DatasetFolder, teacher: TeacherFolder, *settings: str, features: bool = True) -> Cache:
    recipe = small_recipe(*settings)
    return build_cache(folder, dataset=dataset, teacher=teacher, recipe=recipe, device=CPU, features=features).cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder, teacher: TeacherFolder) -> Cache:
    """Two views with features, in blocks of 8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("udkd.teacher.cache.build.BLOCK_ROWS", BLOCK_ROWS)
        return cache_of(tmp_path_factory.mktemp("cache"), dataset, teacher, "teacher.views=2")


@pytest.mark.parametrize("views", ["eval", 2])
def test_cached_features_are_the_live_ones(
    tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, views: str | int
) -> None:
    """In id order in the cache, shuffled and in other batches live: features, logits and weights are the same bits."""
    rules, split = small_recipe(f"teacher.views={views!r}", 'loss.method="rkd"'), dataset.split("train")
    cache = build_cache(tmp_path, dataset=dataset, teacher=teacher, recipe=rules, device=CPU).cache
    assert cache.key.features == D, "a method that needs features implies them"
    eval_views = EpochViews(rules.evaluation_spec, 0, split, CPU) if views == "eval" else None
    live = LiveTargets(TeacherEnsemble.load([teacher], rules, dataset, CPU, features=True), eval_views)
    cached = CachedTargets(cache, CPU, features=True)
    assert live.num_features == cached.num_features == D
    seen, backend = EpochViews(rules.views.spec, rules.views.seed, split, CPU), open_backend("folder", split, CPU, workers=1)
    for batch in backend.epoch(np.random.default_rng(0).permutation(split.ids), 13):
        x = apply(batch.canvas, seen.table(0).gather(batch.ids), rules.views.spec)
        ours, theirs = cached(batch, x, 0), live(batch, x, 0)
        assert ours.features is not None
        assert (ours.features.dtype, ours.features.shape) == (torch.float16, (len(batch.ids), D))
        assert torch.equal(ours.features, theirs.features)
        assert torch.equal(ours.logits, theirs.logits)
        assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.filterwarnings("ignore:NOTE. The nodes")  # dropout is not a node in evaluation mode
def test_features_are_the_mean_of_the_deepest_map(cache: Cache, dataset: DatasetFolder, teacher: TeacherFolder) -> None:
    """Against torchvision's extractor in float64."""
    model = build("squeezenet1_1", 4, image_px=32, seed=0)
    model.load_state_dict(teacher.weights())
    extractor = create_feature_extractor(model.double().eval(), ["features.12"])
    split, rules = dataset.split("train"), small_recipe()
    table = EpochViews(rules.views.spec, rules.views.seed, split, CPU).table(1)
    (batch,) = open_backend("folder", split, CPU, workers=1).epoch(split.ids[:20], 20)
    maps = extractor(apply(batch.canvas, table.gather(batch.ids), rules.views.spec).double())["features.12"]
    comparison = torch.from_numpy(cache.view_file(1).arrays["features"][split.ids[:20]]).double()
    largest = comparison.abs().amax(1, keepdim=True)
    assert largest.min() > 0.01
    assert ((comparison - maps.mean((2, 3))).abs() / largest).max() < 1e-3


@pytest.mark.parametrize(
    ("method", "views", "more"),
    [
        pytest.param("rkd", 2, (), marks=pytest.mark.long),
        pytest.param("crd", 2, (), marks=pytest.mark.long),
        ("crd", 2, ("train.input=resident",)),
        ("rkd", "eval", ()),
    ],
)
def test_a_cached_run_equals_a_live_run(
    tmp_path: Path,
    cache: Cache,
    dataset: DatasetFolder,
    teacher: TeacherFolder,
    method: str,
    views: str | int,
    more: tuple[str, ...],
) -> None:
    """Weights, momentum, connectors and memories after two epochs, to the last bit."""
    if views == "eval":
        cache = cache_of(tmp_path / "eval", dataset, teacher)
    settings = ("train.epochs=2", f'loss.method="{method}"', "loss.beta=0", f"teacher.views={views!r}", *CRD_SETTINGS)
    sources = {
        "cache": {"recipe": small_recipe(*settings, *more), "cache": cache.folder},
        "live": {"recipe": small_recipe(*settings, 'teacher.source="live"'), "teacher": teacher.path},
    }
    for name, given in sources.items():
        job = TrainJob(data=dataset.path, out=tmp_path / name, device=CPU, **given)  # type: ignore[arg-type]
        assert train(job).finished
    ours, theirs = (checkpoint_tensors(tmp_path / name) for name in sources)
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []
    assert RunFolder.open(tmp_path / "live").metrics()[1]["train"]["method"][0] > 0


def test_a_cache_without_features_is_unchanged(
    tmp_path: Path, cache: Cache, dataset: DatasetFolder, teacher: TeacherFolder
) -> None:
    """The key's text does not mention them, and everything else is the same in both."""
    plain = cache_of(tmp_path / "plain", dataset, teacher, "teacher.views=2", features=False)
    assert "features" not in plain.key.to_json()
    for view in (0, 1):
        ours, theirs = plain.view_file(view).arrays, cache.view_file(view).arrays
        assert set(theirs) - set(ours) == {"features"}
        assert all(np.array_equal(ours[name], theirs[name], equal_nan=True) for name in ours)
    with pytest.raises(MismatchError, match="features: stored 0, wanted 512"):
        cache_of(tmp_path / "plain", dataset, teacher, "teacher.views=3")
    job = {"data": dataset.path, "device": CPU, "cache": cache.folder}
    for name, folder in (("with", cache.folder), ("without", plain.folder)):
        recipe = small_recipe("teacher.views=2", "train.epochs=1")
        assert train(TrainJob(**(job | {"cache": folder}), recipe=recipe, out=tmp_path / name)).finished  # type: ignore[arg-type]
    ours, theirs = (checkpoint_tensors(tmp_path / name) for name in ("with", "without"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items()), "it serves everything else"


def test_size(cache: Cache) -> None:
    header = ViewHeader(key=cache.key, view=0, num_rows=130_000)
    assert header.num_bytes / header.num_rows == pytest.approx(4 * 2 + 4 + 2 * D, abs=1)


def test_any_flipped_bit_of_the_features_is_found(tmp_path: Path, cache: Cache) -> None:
    path, header = view_path(tmp_path, 0), ViewHeader(key=cache.key, view=0, num_rows=cache.num_rows)
    good = view_path(cache.folder, 0).read_bytes()
    spec = next(spec for spec in header.arrays if spec.name == "features")
    rng = random.Random(0)
    for _ in range(40):
        offset, bad = rng.randrange(spec.num_bytes), bytearray(good)
        bad[header.data_start + spec.offset + offset] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        damaged = Cache.open(tmp_path)
        assert find_damaged_blocks(damaged) == [(0, offset // (2 * D) // 8)]
        with pytest.raises(CacheError, match="does not match its checksum"):
            damaged.lookup_table(0, CPU, features=True).features(torch.tensor([offset // (2 * D)]))


def test_processes_and_interruptions_leave_the_same_bytes(
    tmp_path: Path, cache: Cache, dataset: DatasetFolder, teacher: TeacherFolder
) -> None:
    """Two processes share a build; another build is cut short in a block and resumes."""
    recipe = small_recipe("teacher.views=2")
    built = run_in_threads(2, tmp_path / "group", dataset, teacher, recipe=recipe, features=True)
    assert [each.num_images for each in built] == [64, 64]  # type: ignore[attr-defined]
    cut = tmp_path / "cut"
    cut.mkdir()
    header = ViewHeader(key=cache.key, view=1, num_rows=cache.num_rows)
    half = bytearray(view_path(cache.folder, 1).read_bytes())
    spec = next(spec for spec in header.arrays if spec.name == "features")
    half[header.data_start + spec.offset + 9 * 2 * D :] = bytes(len(half) - header.data_start - spec.offset - 9 * 2 * D)
    (cut / "view-0001.udkd.partial").write_bytes(half)
    cache_of(cut, dataset, teacher, "teacher.views=2")
    for view in (0, 1):
        complete = view_path(cache.folder, view).read_bytes()
        assert view_path(tmp_path / "group", view).read_bytes() == view_path(cut, view).read_bytes() == complete


def test_a_table_on_a_device_has_features_on_request(cache: Cache) -> None:
    elsewhere = torch.device("meta")  # stands in for a GPU
    ids = torch.zeros(3, dtype=torch.int64, device=elsewhere)
    assert cache.lookup_table(0, elsewhere, features=True).features(ids).shape == (3, D)
    with pytest.raises(KeyError):
        cache.lookup_table(0, elsewhere).features(ids)


def test_verify_recomputes_features(tmp_path: Path, cache: Cache, dataset: DatasetFolder, teacher: TeacherFolder) -> None:
    comparison = compare_with_teacher(cache, dataset=dataset, teachers=[teacher], count=40, seed=0, device=CPU)
    assert comparison.worst is None
    assert 1e-5 < comparison.features <= 4.9e-4 < FEATURES_BOUND


# --- the command line


def test_on_the_command_line(
    tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    build_args = ["cache", "build", "smoke", "--data", dataset.path, "--teacher", teacher.path, "--out"]
    options = ["--device", "cpu", *SETTINGS]
    result = inside(capsys, *build_args, tmp_path / "cache", "--features", *options)
    assert result.code == 0, result
    assert "512 float16 numbers a target" in result.out
    result = inside(capsys, *build_args, tmp_path / "plain", *options)
    assert (result.code, "features" in result.out + result.err) == (0, False)
    again = ["cache", "verify", tmp_path / "cache", "--data", dataset.path, "--teacher", teacher.path, "--device", "cpu"]
    result = inside(capsys, *again, "--recompute", "5")
    assert (result.code, "features: largest difference" in result.out) == (0, True)

    run = ["train", "smoke", "--data", dataset.path, "--device", "cpu", "--out", tmp_path / "run", *SETTINGS]
    run += set_options("train.epochs=1", 'loss.method="rkd"', "loss.beta=0")
    result = inside(capsys, *run, "--cache", tmp_path / "plain")
    failed(
        result,
        f"{tmp_path / 'plain'} holds no features; expected the teacher's pooled features for this loss.method; "
        "build a cache with --features, or set teacher.source = live",
    )
    assert not (tmp_path / "run").exists()
    result = inside(capsys, *run, "--cache", tmp_path / "cache")
    assert result.code == 0, result
    assert json.loads((tmp_path / "run" / "run.json").read_text())["cache_key"]["features"] == D


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["teacher.estimator=mc_dropout"], "the teacher is mc_dropout; expected one unmodified teacher"),
        (["teacher.fold_bn=true"], "the teacher is plain, folded; expected"),
        (["teacher.compile=true"], "the teacher is plain, compiled; expected"),
    ],
)
def test_features_of_anything_else_are_refused(
    tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, settings: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cache_of(tmp_path / "cache", dataset, teacher, *settings)
    assert not (tmp_path / "cache").exists()
