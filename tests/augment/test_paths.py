"""Views with operations, erasing and mixing: the same pixels, labels and runs, whatever path a batch takes."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import udkd
from tests.factories import make_dataset, make_teacher, small_recipe
from tests.observers import Notes, StopAfter
from tests.training.runs import checkpoint_hash, metrics_without_time
from udkd.augment.apply import ViewTable, apply_each, view_pixels
from udkd.augment.mixing import MixedLabels, pairs_together, partners
from udkd.augment.operations import inside
from udkd.augment.policies import ViewOp
from udkd.augment.preprocessing import NetworkInput, Preprocessing
from udkd.augment.view_table import EpochLabels, EpochViews
from udkd.augment.views import ViewSpec, draw_views
from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder
from udkd.report.inputs import load_inputs
from udkd.teacher.cache.build import build_cache
from udkd.teacher.folder import TeacherFolder
from udkd.training.predictions import read_predictions
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import TrainJob, train
from udkd.utils.errors import ConfigError

CPU = torch.device("cpu")
LONG = pytest.mark.long
STRONG = ViewSpec(
    size_px=24,
    policy="rand_augment",
    ops=(ViewOp(op="blur", low=0.1, high=2.0, prob=0.5),),
    jitter="uint8",
    brightness=0.4,
    hue=0.1,
    erase_prob=0.5,
    erase_fill="noise",
    mixup=0.8,
    cutmix=1.0,
)
SETTINGS = (
    "views.policy='rand_augment'",
    "views.jitter='uint8'",
    "views.hue=0.1",
    "views.erase_prob=0.5",
    "views.erase_fill='noise'",
    "views.mixup=0.8",
    "views.cutmix=1.0",
    "loss.sample_weight='correctness'",
    "loss.label_smoothing=0.1",
    "teacher.views=2",
    "train.epochs=2",
    "students=[{architecture='squeezenet1_1', lr=0.01}]",
)
COUNT = 13


def canvases(count: int = COUNT, side: int = 30) -> torch.Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def table(spec: ViewSpec, count: int = COUNT, view: int = 1, excluded: tuple[int, ...] = ()) -> ViewTable:
    """The views of all ids; `excluded` ones have no partner."""
    ids, sizes = np.arange(count), np.tile([40, 30, 30, 22], (count, 1))
    partner = partners(5, view, np.setdiff1d(ids, excluded), count) if spec.mixes else None
    return ViewTable.of(draw_views(spec, 5, view, ids, sizes, partner))


def by_hand(spec: ViewSpec, size_px: int, excluded: tuple[int, ...] = ()) -> np.ndarray:
    """The mixed pixels of all ids: both samples of a pair without mixing, each alone, then mixed by the drawn numbers."""
    plain, views, canvas = replace(spec, mixup=0.0, cutmix=0.0), table(spec, excluded=excluded), canvases()
    unmixed = [view_pixels(canvas[i : i + 1], table(plain).gather(torch.tensor([i])), plain, size_px) for i in range(COUNT)]
    pixels, mixed = torch.cat(unmixed).numpy().astype(np.float64), []
    for own in range(COUNT):
        other, share = int(views.partner[own]), int(views.blend[own]) / 4096
        top, left, bottom, right = (int(np.floor(int(edge) / 65536 * size_px + 0.5)) for edge in views.mix_box[own])
        image = np.floor(share * pixels[own] + (1 - share) * pixels[other] + 0.5)
        image[top:bottom, left:right] = pixels[other, top:bottom, left:right]
        mixed.append(image)
    return np.stack(mixed).astype(np.uint8)


@pytest.mark.parametrize("size_px", [24, 37])
def test_mixed_pixels_are_those_of_both_samples_in_any_batch(size_px: int) -> None:
    """Also in another size than the views', as a teacher's may be."""
    views, canvas = table(STRONG, excluded=(4,)), canvases()
    assert views.partner is not None
    want = torch.from_numpy(by_hand(STRONG, size_px, excluded=(4,)))
    order = pairs_together(np.random.default_rng(0).permutation(COUNT), views.partner.numpy())
    assert int(views.partner[4]) == 4, "an excluded id is its own partner"
    for ids in (*np.split(order, [2, 6, 8]), order[::-1].copy(), order[-1:]):
        rows = torch.from_numpy(ids)
        assert torch.equal(view_pixels(canvas[rows], views.gather(rows), STRONG, size_px), want[rows])
    plain = replace(STRONG, mixup=0.0, cutmix=0.0)
    unmixed = view_pixels(canvas, table(plain), plain, size_px)
    assert torch.equal(unmixed[4], want[4]), "its own partner: nothing to mix"
    assert (unmixed != want).flatten(1).any(1).sum() > COUNT // 2


def test_labels_share_what_the_box_leaves() -> None:
    spec = replace(STRONG, mixup=0.0)
    views = table(spec, count=400)
    assert views.mix_box is not None
    kept = 1 - inside(views.mix_box, spec.size_px).double().mean(dim=(1, 2, 3))
    assert torch.equal(views.share, kept.float())
    assert 0.3 < kept.mean() < 0.9
    other = 1 - inside(views.mix_box, 2 * spec.size_px).double().mean(dim=(1, 2, 3))
    assert torch.equal(kept, other), "in a multiple of the size the box is the same part"


def test_boxes_and_operations_are_at_the_same_place_in_another_size() -> None:
    """A teacher's larger view of a smooth picture, scaled down, is nearly the student's; another view's is not."""
    yx = np.linspace(0, 1, 64)
    picture = np.stack([np.add.outer(yx, yx) / 2, np.add.outer(yx, 1 - yx) / 2, np.add.outer(yx * 0, yx)], -1)
    canvas = torch.from_numpy((255 * picture).astype(np.uint8)).expand(40, 64, 64, 3).contiguous()
    spec = replace(STRONG, size_px=32, policy="trivial_augment_wide", ops=(), erase_fill="mean", mixup=0.0)
    spec = replace(spec, brightness=0.0, hue=0.0)

    def views(view: int) -> ViewTable:
        ids, sizes = np.arange(40), np.tile([64, 64, 64, 64], (40, 1))
        return ViewTable.of(draw_views(spec, 5, view, ids, sizes, partners(5, view, ids, 40))).gather(torch.arange(40))

    small = view_pixels(canvas, views(0), spec, 32).double()
    for view, equal in ((0, True), (1, False)):
        large = view_pixels(canvas, views(view), spec, 96).double()
        centre = large.view(40, 32, 3, 32, 3, 3)[:, :, 1, :, 1]  # the middle of nine pixels has the small one's place
        difference = (centre - small).abs().mean(dim=(1, 2, 3)).median()
        assert (difference < 2) if equal else (difference > 20), float(difference)


def test_networks_with_other_input_share_the_view() -> None:
    views, canvas = table(STRONG).gather(torch.arange(COUNT)), canvases()
    half = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.5), interpolation="bicubic")
    networks = [NetworkInput(size_px=24), NetworkInput(size_px=40, preprocessing=half), NetworkInput(size_px=24)]
    first, second, again = apply_each(canvas, views, networks, STRONG)
    assert first is again
    for x, network in ((first, networks[0]), (second, networks[1])):
        mean, std = (torch.tensor(each) for each in (network.preprocessing.mean, network.preprocessing.std))
        pixels = view_pixels(canvas, views, STRONG, network.size_px, network.preprocessing.interpolation)
        assert torch.equal(x, ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2))


def test_epoch_labels_are_those_of_the_batches() -> None:
    excluded = np.isin(np.arange(COUNT), (4, 7))
    labels = np.arange(COUNT, dtype=np.int32) % 5
    split: Any = SimpleNamespace(
        num_samples=COUNT, excluded=excluded, sizes=np.full((COUNT, 4), 30), ids=np.flatnonzero(~excluded), labels=labels
    )
    views = EpochViews(STRONG, 3, split, CPU)
    for view in (0, 6):
        of_all = EpochLabels(STRONG, 3, split)(view)
        assert isinstance(of_all, MixedLabels)
        ids = torch.from_numpy(pairs_together(split.ids[::-1].copy(), views.partner(view)))
        assert sorted(set(views.partner(view)[excluded])) == [4, 7]
        for chosen in (ids[:4], ids[4:]):  # the last one of eleven is alone
            of_batch = views.table(view).gather(chosen).labels(torch.from_numpy(labels.astype(np.int64))[chosen])
            assert isinstance(of_batch, MixedLabels)
            for one, other in zip(of_batch, of_all, strict=True):
                assert torch.equal(one, other[chosen])
    plain = EpochLabels(replace(STRONG, mixup=0.0, cutmix=0.0), 3, split)
    assert plain(0) is plain(1), "one tensor for all views"


def test_no_samples_and_canvases_in_any_layout() -> None:
    views, canvas = table(STRONG), canvases()
    assert len(view_pixels(canvas[:0], views.gather(torch.arange(0)), STRONG, 24)) == 0
    views = views.gather(torch.arange(COUNT))
    with pytest.raises(AssertionError, match=f"{COUNT} views of 2 canvases"):
        view_pixels(canvas[:2], views, STRONG, 24)
    scattered = canvas.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    assert torch.equal(view_pixels(scattered, views, STRONG, 24), view_pixels(canvas, views, STRONG, 24))


def test_a_batch_without_a_partner_stops_without_a_wait() -> None:
    """For a GPU, where nothing is read back: the assertion is an operation that a graph can hold."""
    views = table(STRONG)
    assert views.partner is not None
    lost = torch.tensor([0])
    if int(views.partner[0]) == 0:
        lost = torch.tensor([1])
    with pytest.raises(RuntimeError, match="a sample's partner is not in its batch"):
        views.gather(lost)
    with torch.device("meta"):
        torch._assert_async(torch.ones((), dtype=torch.bool), "exists on every device")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    """36 images: the last four of an epoch, after batches of 8, are left out."""
    return make_dataset(tmp_path_factory.mktemp("data"), per_class=9, val_per_class=1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, data: DatasetFolder) -> TeacherFolder:
    return make_teacher(tmp_path_factory.mktemp("teacher"), data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: DatasetFolder, teacher: TeacherFolder) -> Any:
    """run(name, *settings): trains by SETTINGS, and returns the run's folder; the first is "cached"."""
    folder = tmp_path_factory.mktemp("runs")
    cache = build_cache(folder / "cache", dataset=data, teacher=teacher, recipe=recipe(), device=CPU).cache.folder

    def train_(name: str, *settings: str, live: bool = False) -> Path:
        job = TrainJob(
            recipe=recipe(*settings, *(['teacher.source="live"'] if live else [])),
            data=data.path,
            out=folder / name,
            device=CPU,
            cache=None if live else cache,
            teacher=teacher.path,
        )
        if name.startswith("stopped"):
            observer = StopAfter(2)
            assert train(replace(job, observer=observer, stopped=observer.stopped)).step == 2
            job = replace(job, resume=True)
        assert train(job).finished
        return folder / name

    return train_


def recipe(*settings: str) -> Recipe:
    return small_recipe("views.size_px=32", *SETTINGS, *settings)


@pytest.fixture(scope="module")
def cached(run: Any) -> Path:
    return run("cached")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resident", ("data.backend='resident'", "train.input='resident'", "train.cuda_graph=false")),
        pytest.param("folder", ("data.backend='folder'", "train.input='stream'", "data.workers=2"), marks=LONG),
        pytest.param("stopped in an epoch", (), marks=LONG),
        ("stopped, live teacher", ("teacher.batch_size=8",)),
    ],
)
def test_every_path_trains_the_same_bits(cached: Path, run: Any, name: str, settings: tuple[str, ...]) -> None:
    out = run(name, *settings, live="live" in name)
    assert checkpoint_hash(out) == checkpoint_hash(cached)
    assert metrics_without_time(out) == metrics_without_time(cached)


def first_row(out: Path) -> dict[str, Any]:
    return RunFolder.open(out).metrics()[0]["train"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("parts", ("train.accumulate=4",)),
        pytest.param("compiled loss", ("train.compile='loss'",), marks=LONG),
        pytest.param("compiled", ("train.compile='all'",), marks=LONG),
    ],
)
def test_paths_of_another_order_of_sums_train_alike(run: Any, name: str, settings: tuple[str, ...]) -> None:
    """One step of 18 pairs. Four parts of nine images hold no whole pairs: a batch is mixed before it is divided."""
    one_step = ("train.batch_size=36", "train.epochs=1")
    rows = [first_row(run(f"one step, {other}", *one_step, *more)) for other, more in ((name, settings), (f"{name} not", ()))]
    for term in ("hard", "teacher", "top1"):
        assert rows[0][term] == pytest.approx(rows[1][term], rel=1e-4), term


def test_an_evaluation_leaves_out_targets_of_mixed_samples(cached: Path) -> None:
    """Also where the cache is named: a target of two images is no prediction for one."""
    notes = Notes()
    cache = cached.parent / "cache"
    result = udkd.evaluate(cached, cache=cache, device="cpu", observer=notes)
    assert result["num_samples"] == 4
    assert any("left out the teacher's predictions for the training images: its targets are" in line for line in notes.lines)
    assert read_predictions(cached / "predictions.safetensors")[0].targets is None
    inputs = load_inputs(cached, cache=cache)
    assert inputs.targets is None
    assert "holds targets of mixed samples, which no single image explains" in (inputs.why_no_targets or "")


def test_own_loops_refuse_a_batch_without_pairs(data: DatasetFolder) -> None:
    split = udkd.Dataset(str(data.path)).train
    augment = udkd.Augment(STRONG, split, device="cpu")
    with (
        udkd.Loader(split, batch_size=8, device="cpu") as loader,
        pytest.raises(
            ConfigError, match=r"mixed with sample \d+, which is not in its batch; expected pairs.*arrange=augment.keep_pairs"
        ),
    ):
        augment(next(iter(loader)), 0)
    with pytest.raises(ConfigError, match="the order holds 9 of the split's 36 samples"):
        augment.keep_pairs(split.ids[:9], 0)
