"""Pooled features in a cache: those of the live teacher bit for bit, kept as safely as targets, and enough to train from."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.feature_extraction import create_feature_extractor

from tests.factories import SMALL, small_recipe
from tests.teacher.test_workers import run_in_threads
from udkd.augment.apply import apply
from udkd.augment.view_table import EpochViews
from udkd.cli.app import app
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
from udkd.utils import terminal
from udkd.utils.errors import CacheError, ConfigError, MismatchError

CPU = torch.device("cpu")
D = 512
MORE = ("methods.crd.negatives=8", "methods.crd.embed_dim=8", "loss.method_weight=0.5")
SETTINGS = [word for setting in SMALL for word in ("--set", setting)]
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
    assert cache.key.features == D, "a method that takes them asks by itself"
    canonical = EpochViews(rules.evaluation_spec, 0, split, CPU) if views == "eval" else None
    live = LiveTargets(TeacherEnsemble.load([teacher], rules, dataset, CPU, features=True), canonical)
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


@pytest.mark.filterwarnings("ignore:NOTE. The nodes")  # dropout is no node in evaluation mode
def test_features_are_the_mean_of_the_deepest_map(cache: Cache, dataset: DatasetFolder, teacher: TeacherFolder) -> None:
    """Against torchvision's extractor in float64."""
    model = build("squeezenet1_1", 4, image_px=32, seed=0)
    model.load_state_dict(teacher.weights())
    extractor = create_feature_extractor(model.double().eval(), ["features.12"])
    split, rules = dataset.split("train"), small_recipe()
    table = EpochViews(rules.views.spec, rules.views.seed, split, CPU).table(1)
    (batch,) = open_backend("folder", split, CPU, workers=1).epoch(split.ids[:20], 20)
    maps = extractor(apply(batch.canvas, table.gather(batch.ids), rules.views.spec).double())["features.12"]
    found = torch.from_numpy(cache.view_file(1).arrays["features"][split.ids[:20]]).double()
    largest = found.abs().amax(1, keepdim=True)
    assert largest.min() > 0.01
    assert ((found - maps.mean((2, 3))).abs() / largest).max() < 1e-3


def checkpoint(out: Path) -> dict[str, torch.Tensor]:
    return dict(RunFolder.open(out).load().tensors)


@pytest.mark.parametrize(
    ("method", "views", "more"),
    [
        pytest.param("rkd", 2, (), marks=pytest.mark.long),
        pytest.param("crd", 2, (), marks=pytest.mark.long),
        ("crd", 2, ("train.input=resident",)),
        ("rkd", "eval", ()),
    ],
)
def test_a_cached_run_is_a_live_run(
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
    settings = ("train.epochs=2", f'loss.method="{method}"', "loss.beta=0", f"teacher.views={views!r}", *MORE)
    sources = {
        "cache": {"recipe": small_recipe(*settings, *more), "cache": cache.folder},
        "live": {"recipe": small_recipe(*settings, 'teacher.source="live"'), "teacher": teacher.path},
    }
    for name, given in sources.items():
        job = TrainJob(data=dataset.path, out=tmp_path / name, device=CPU, **given)  # type: ignore[arg-type]
        assert train(job).finished
    ours, theirs = (checkpoint(tmp_path / name) for name in sources)
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []
    assert RunFolder.open(tmp_path / "live").metrics()[1]["train"]["method"][0] > 0


def test_a_cache_without_features_is_as_it_was(
    tmp_path: Path, cache: Cache, dataset: DatasetFolder, teacher: TeacherFolder
) -> None:
    """The key's text has no word of them, and all the rest is the same in both."""
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
    ours, theirs = (checkpoint(tmp_path / name) for name in ("with", "without"))
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
        place, bad = rng.randrange(spec.num_bytes), bytearray(good)
        bad[header.data_start + spec.offset + place] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        damaged = Cache.open(tmp_path)
        assert find_damaged_blocks(damaged) == [(0, place // (2 * D) // 8)]
        with pytest.raises(CacheError, match="does not match its checksum"):
            damaged.lookup_table(0, CPU, features=True).features(torch.tensor([place // (2 * D)]))


def test_processes_and_interruptions_leave_the_same_bytes(
    tmp_path: Path, cache: Cache, dataset: DatasetFolder, teacher: TeacherFolder
) -> None:
    """Two share a build; another is cut short in a block and goes on."""
    recipe = small_recipe("teacher.views=2")
    built = run_in_threads(2, tmp_path / "team", dataset, teacher, recipe=recipe, features=True)
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
        whole = view_path(cache.folder, view).read_bytes()
        assert view_path(tmp_path / "team", view).read_bytes() == view_path(cut, view).read_bytes() == whole


def test_a_table_on_a_device_has_them_where_they_are_asked_for(cache: Cache) -> None:
    elsewhere = torch.device("meta")  # stands for a GPU
    ids = torch.zeros(3, dtype=torch.int64, device=elsewhere)
    assert cache.lookup_table(0, elsewhere, features=True).features(ids).shape == (3, D)
    with pytest.raises(KeyError):
        cache.lookup_table(0, elsewhere).features(ids)


def test_verify_asks_for_features_again(tmp_path: Path, cache: Cache, dataset: DatasetFolder, teacher: TeacherFolder) -> None:
    found = compare_with_teacher(cache, dataset=dataset, teachers=[teacher], count=40, seed=0, device=CPU)
    assert found.worst is None
    assert 1e-5 < found.features <= 4.9e-4 < FEATURES_BOUND


# --- the command line


def called(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code, and what was said on both streams."""
    code: int | str | None = 0
    try:
        terminal.run(lambda: app([str(word) for word in words]))  # type: ignore[arg-type]
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    return int(code or 0), printed.out + printed.err


def test_on_the_command_line(
    tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    build_words = ["cache", "build", dataset.path, teacher.path]
    how = ["--recipe", "smoke", "--device", "cpu", *SETTINGS]
    code, said = called(capsys, *build_words, tmp_path / "cache", "--features", *how)
    assert code == 0, said
    assert "512 float16 numbers a target" in said
    code, said = called(capsys, *build_words, tmp_path / "plain", *how)
    assert (code, "features" in said) == (0, False)
    again = ["cache", "verify", tmp_path / "cache", "--data", dataset.path, "--teacher", teacher.path, "--device", "cpu"]
    code, said = called(capsys, *again, "--recompute", "5")
    assert (code, "features: largest difference" in said) == (0, True)

    run = ["train", "smoke", "--data", dataset.path, "--device", "cpu", "--out", tmp_path / "run", *SETTINGS]
    for setting in ("train.epochs=1", 'loss.method="rkd"', "loss.beta=0"):
        run += ["--set", setting]
    code, said = called(capsys, *run, "--cache", tmp_path / "plain")
    assert code == 1
    assert said.splitlines()[-1] == (
        f"error: {tmp_path / 'plain'} holds no features; expected the teacher's pooled features for this loss.method; "
        "build a cache with --features, or set teacher.source = live"
    )
    assert not (tmp_path / "run").exists()
    code, said = called(capsys, *run, "--cache", tmp_path / "cache")
    assert code == 0, said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["cache_key"]["features"] == D


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["teacher.estimator=mc_dropout"], "the teacher is mc_dropout; expected one unmodified teacher"),
        (["teacher.fold_bn=true"], "the teacher is plain, folded; expected"),
        (["teacher.compile=true"], "the teacher is plain, compiled; expected"),
    ],
)
def test_features_of_anything_else_are_refused(
    tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, settings: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        cache_of(tmp_path / "cache", dataset, teacher, *settings)
    assert not (tmp_path / "cache").exists()
