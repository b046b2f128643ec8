"""The public names: a user's own loop has the pixels, order, targets and loss of the engine; what does not match is refused."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import udkd
from tests.factories import SMALL, make_dataset, make_teacher, small_recipe
from tests.timeouts import scaled
from udkd.augment.apply import apply
from udkd.augment.view_table import EpochViews
from udkd.data.backends.registry import open_backend
from udkd.data.batch import Batch
from udkd.data.dataset import DatasetFolder
from udkd.losses.distill import cross_entropy, distill
from udkd.losses.settings import LossSettings
from udkd.teacher.cache.reader import Cache
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.sources import CachedTargets
from udkd.teacher.target import TeacherTargets
from udkd.utils.errors import CacheError, ConfigError, MismatchError
from udkd.utils.rng import Stream, permutation

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
DATASET_IMAGES = {"per_class": 8, "val_per_class": 2}
RECIPE = small_recipe("teacher.views=2")
SPEC = RECIPE.views.spec


@pytest.fixture(scope="module")
def data(dataset: DatasetFolder) -> udkd.Dataset:
    return udkd.Dataset(str(dataset.path))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, data: udkd.Dataset, teacher: TeacherFolder) -> str:
    """A cache of two augmented views."""
    folder = str(tmp_path_factory.mktemp("cache"))
    udkd.build_cache(folder, dataset=data, teacher=str(teacher.path), recipe=RECIPE, device="cpu")
    return folder


@pytest.fixture
def loader(data: udkd.Dataset) -> udkd.Loader:
    return udkd.Loader(data.train, batch_size=12, device="cpu", seed=3)


@pytest.fixture
def augment(data: udkd.Dataset) -> udkd.Augment:
    return udkd.Augment(SPEC, data.train, seed=RECIPE.views.seed, device="cpu")


def ids(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.ids for batch in batches]).tolist()


def test_dataset(data: udkd.Dataset, dataset: DatasetFolder) -> None:
    assert data.digest == dataset.digest
    assert data.classes == dataset.classes
    assert (data.train.name, data.val.name) == ("train", "val")


def test_order_is_a_function_of_seed_and_epoch(data: udkd.Dataset, loader: udkd.Loader) -> None:
    assert len(loader) == 3
    first, second = list(loader), list(loader)
    assert [len(batch.ids) for batch in first] == [12, 12, 8]
    assert ids(first) == ids(list(loader.epoch(0))) == permutation(data.train.ids, 3, Stream.SAMPLE_ORDER, 0).tolist()
    assert ids(second) == ids(list(loader.epoch(1))) != ids(first)
    with udkd.Loader(data.train, batch_size=12, device="cpu", seed=4) as other:
        assert ids(list(other)) != ids(first)


def test_order_without_shuffling_and_full_batches_only(data: udkd.Dataset, loader: udkd.Loader) -> None:
    with udkd.Loader(data.train, batch_size=12, device="cpu", shuffle=False, workers=1) as in_order:
        assert ids(list(in_order.epoch(5))) == data.train.ids.tolist()
    with udkd.Loader(data.train, batch_size=12, device="cpu", seed=3, drop_last=True) as full:
        assert len(full) == 2
        assert ids(list(full.epoch(0))) == ids(list(loader.epoch(0)))[:24]
    with udkd.Loader(data.train, batch_size=64, device="cpu", drop_last=True) as none:
        assert len(none) == len(list(none)) == 0


def test_cached_equals_live_bit_for_bit(loader: udkd.Loader, augment: udkd.Augment, cache: str, teacher: TeacherFolder) -> None:
    cached = udkd.CachedTeacher(cache, loader, augment)
    live = udkd.LiveTeacher(str(teacher.path), augment, batch_size=RECIPE.teacher.batch_size)
    assert cached.num_views == 2
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            stored, computed = cached(batch, epoch), live(batch, epoch)
            assert torch.equal(not_none(stored.logits), not_none(computed.logits))
            assert torch.equal(not_none(stored.weight), not_none(computed.weight))


MIXED = replace(
    SPEC, policy="rand_augment", jitter="uint8", erase_prob=0.5, erase_fill="noise", mixup=0.8, cutmix=1.0, brightness=0.4
)


def test_own_loops_mix_samples(tmp_path: Path, data: udkd.Dataset, teacher: TeacherFolder) -> None:
    """Pairs in one batch, targets of the mixed views from cache and teacher alike, and a loss of mixed labels."""
    names = ("policy", "jitter", "erase_prob", "erase_fill", "mixup", "cutmix", "brightness")
    mixing = [f"views.{name}={getattr(MIXED, name)!r}" for name in names]
    recipe = small_recipe("teacher.views=2", *mixing)
    assert recipe.views.spec == MIXED
    udkd.build_cache(tmp_path / "cache", dataset=data, teacher=teacher, recipe=recipe, device="cpu")
    augment = udkd.Augment(MIXED, data.train, seed=recipe.views.seed, device="cpu")
    criterion = udkd.DistillationLoss(alpha=0.5, beta=0.5, gamma=0.0)
    with udkd.Loader(data.train, batch_size=12, device="cpu", seed=3, arrange=augment.keep_pairs) as loader:
        cached = udkd.CachedTeacher(tmp_path / "cache", loader, augment, sample_weight="correctness")
        live = udkd.LiveTeacher(teacher.path, augment, batch_size=recipe.teacher.batch_size, sample_weight="correctness")
        for epoch in (0, 1):
            batches = list(loader.epoch(epoch))
            shuffled = permutation(data.train.ids, 3, Stream.SAMPLE_ORDER, epoch)
            assert ids(batches) == augment.keep_pairs(shuffled, epoch).tolist() != shuffled.tolist()
            assert sorted(ids(batches)) == data.train.ids.tolist()
            for batch in batches:
                stored, computed, labels = cached(batch, epoch), live(batch, epoch), augment.labels(batch, epoch)
                assert torch.equal(not_none(stored.logits), not_none(computed.logits))
                assert torch.equal(not_none(stored.weight), not_none(computed.weight))
                assert isinstance(labels, udkd.MixedLabels)
                assert torch.equal(labels.own, batch.labels)
                x = augment(batch, epoch).requires_grad_()
                logits = x.mean((2, 3)) @ torch.eye(3, len(data.classes))
                terms = criterion([logits], labels, stored)
                assert torch.equal(terms.hard[0], cross_entropy(logits, labels))
                terms.total.backward()
                for targets in (stored, computed, computed.rows(slice(None))):  # the line that everyone's loop had before
                    with pytest.raises(
                        ConfigError, match=r"labels are class indices and .* give augment\.labels\(batch, epoch\)"
                    ):
                        criterion([logits], batch.labels, targets)
                udkd.DistillationLoss(alpha=0, beta=1, gamma=0)([logits], batch.labels, stored)
        with pytest.raises(
            ConfigError, match=r"is mixed with sample \d+, which is not in its batch; expected pairs in one batch"
        ):
            live(batches[0].rows(slice(0, 3)), 1)
        assert not isinstance(udkd.Augment(SPEC, data.train, device="cpu").labels(batches[0], 1), udkd.MixedLabels)
        plain = small_recipe()
        udkd.build_cache(tmp_path / "eval", dataset=data, teacher=teacher, recipe=plain, device="cpu")
        with pytest.raises(
            ConfigError, match="holds targets of evaluation views, which show one of them; expected targets of the"
        ):
            udkd.CachedTeacher(tmp_path / "eval", loader, augment)
        with pytest.raises(
            MismatchError, match=r"give Augment the ViewSpec of the cache, or build .* \(views\.cutmix: stored 1.0"
        ):
            udkd.CachedTeacher(tmp_path / "cache", loader, udkd.Augment(SPEC, data.train, device="cpu"))


def not_none(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


@pytest.mark.parametrize("weight", ["constant", "correctness"])
def test_sample_weights(loader: udkd.Loader, augment: udkd.Augment, cache: str, teacher: TeacherFolder, weight: str) -> None:
    cached = udkd.CachedTeacher(cache, loader, augment, sample_weight=weight)
    live = udkd.LiveTeacher(teacher.path, augment, batch_size=RECIPE.teacher.batch_size, sample_weight=weight)
    batch = next(loader.epoch(0))
    stored, computed = cached(batch, 0).weight, live(batch, 0).weight
    assert (stored is None) == (computed is None) == (weight == "constant")
    assert stored is None or torch.equal(stored, not_none(computed))


def test_a_loop_has_the_loss_of_its_parts(data: udkd.Dataset, loader: udkd.Loader, augment: udkd.Augment, cache: str) -> None:
    """Against backend, views, cache and `distill` put together by hand, over two epochs."""
    teacher = udkd.CachedTeacher(cache, loader, augment)
    criterion = udkd.DistillationLoss(alpha=0.3, beta=0.5, gamma=0.2, temperature=3.0, kl="forward", label_smoothing=0.1)
    assert not list(criterion.parameters())
    settings = LossSettings(alpha=0.3, beta=0.5, gamma=0.2, temperature=3.0, kl="forward", label_smoothing=0.1)
    split = data.train
    backend, views = open_backend("folder", split, CPU), EpochViews(SPEC, RECIPE.views.seed, split, CPU)
    targets = CachedTargets(Cache.open(Path(cache)), CPU)
    students = _students(len(data.classes))
    for epoch in (0, 1):
        by_hand = backend.epoch(permutation(split.ids, 3, Stream.SAMPLE_ORDER, epoch), 12)
        for batch, expected in zip(loader.epoch(epoch), by_hand, strict=True):
            x = augment(batch, epoch)
            assert torch.equal(x, apply(expected.canvas, views.table(epoch).gather(expected.ids), SPEC))
            logits = [student(x) for student in students]
            terms = criterion(logits, batch.labels, teacher(batch, epoch))
            target = targets(expected, x, epoch)
            assert torch.equal(terms.total, distill(logits, expected.labels, target.logits, target.weight, settings).total)
            terms.total.backward()
    backend.close()


def _students(num_classes: int) -> list[torch.nn.Module]:
    with torch.random.fork_rng(devices=[]):
        return [
            torch.nn.Sequential(torch.nn.Conv2d(3, width, 3, 2), torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))
            for width in (2, 3)
        ]


def test_evaluation_targets_fit_any_augmentation(
    tmp_path: Path, data: udkd.Dataset, loader: udkd.Loader, augment: udkd.Augment, teacher: TeacherFolder
) -> None:
    recipe = small_recipe()
    udkd.build_cache(tmp_path, dataset=data, teacher=teacher, recipe=recipe, device="cpu")
    still = udkd.Augment(recipe.evaluation_spec, data.train, device="cpu")
    live = udkd.LiveTeacher(teacher.path, still, batch_size=recipe.teacher.batch_size)
    for augmentation in (augment, udkd.Augment(udkd.ViewSpec(size_px=24), data.train, seed=9, device="cpu")):
        cached = udkd.CachedTeacher(tmp_path, loader, augmentation)
        assert cached.num_views is None
        batch = next(loader.epoch(0))
        assert torch.equal(not_none(cached(batch, 7).logits), not_none(live(batch, 0).logits))


@pytest.mark.parametrize(
    ("spec", "seed", "text"),
    [
        (replace(SPEC, brightness=0.7), 0, r"give Augment the ViewSpec of the cache, or build .* \(views\.brightness: stored"),
        (SPEC, 5, r"give Augment the seed of the cache, or build .* \(seed: stored 0, wanted 5\)"),
    ],
)
def test_targets_of_other_views_are_refused(
    data: udkd.Dataset, loader: udkd.Loader, cache: str, spec: udkd.ViewSpec, seed: int, text: str
) -> None:
    with pytest.raises(MismatchError, match=text) as error:
        udkd.CachedTeacher(cache, loader, udkd.Augment(spec, data.train, seed=seed, device="cpu"))
    assert "\n" not in str(error.value)


def test_targets_of_other_pixels_are_refused(
    loader: udkd.Loader, augment: udkd.Augment, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udkd.Loader, "pixel_class", "nvjpeg")
    with pytest.raises(MismatchError, match=r"give Loader another backend, or build a cache .* \(pixel_class: stored 'libjpeg"):
        udkd.CachedTeacher(cache, loader, augment)


def test_targets_of_other_data_are_refused(tmp_path: Path, data: udkd.Dataset, loader: udkd.Loader, cache: str) -> None:
    other = udkd.Dataset(make_dataset(tmp_path, per_class=4, val_per_class=1).path)
    augment = udkd.Augment(SPEC, other.train, device="cpu")
    with udkd.Loader(other.train, 4, device="cpu") as foreign, pytest.raises(MismatchError, match="open the data set of the"):
        udkd.CachedTeacher(cache, foreign, augment)
    with pytest.raises(MismatchError, match=r"the augmentation does not fit; give Augment and Loader the same split \(dataset"):
        udkd.CachedTeacher(cache, loader, augment)
    val = udkd.Augment(SPEC, data.val, device="cpu")
    with udkd.Loader(data.val, 4, device="cpu") as held_out, pytest.raises(MismatchError, match="load the split of the cache"):
        udkd.CachedTeacher(cache, held_out, val)


def test_other_refusals(tmp_path: Path, data: udkd.Dataset, loader: udkd.Loader, augment: udkd.Augment, cache: str) -> None:
    with pytest.raises(CacheError, match="expected a finished teacher cache"):
        udkd.CachedTeacher(tmp_path, loader, augment)
    with pytest.raises(CacheError, match=r"lacks views 2; expected 3 views"):
        udkd.CachedTeacher(cache, loader, augment)(next(loader.epoch(2)), 2)
    with pytest.raises(ConfigError, match="sample weight 'entropic' is unknown"):
        udkd.CachedTeacher(cache, loader, augment, sample_weight="entropic")
    with pytest.raises(ConfigError, match="backend 'ffvc' is unknown"):
        udkd.Loader(data.train, 4, device="cpu", backend="ffvc")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        udkd.Loader(data.train, 0, device="cpu")
    with pytest.raises(udkd.UserError, match="workers is 0; expected 1 or more, or None for one per core"):
        udkd.Loader(data.train, 4, device="cpu", workers=0)
    elsewhere = replace(next(loader.epoch(0)), canvas=torch.empty(4, 36, 36, 3, dtype=torch.uint8, device="meta"))
    with pytest.raises(ConfigError, match="the batch is on meta and the augmentation on cpu; expected one device"):
        augment(elsewhere, 0)
    with pytest.raises(ConfigError, match="device 'gpu' is unknown"):
        udkd.Augment(SPEC, data.train, device="gpu")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"size_px": 0}, "size_px 0; expected 1 or more"),
        ({"scale": (0.5, 0.1)}, r"scale \[0\.5, 0\.1\]; expected a smaller and a larger number"),
        ({"scale": (0.5, 1.5)}, r"scale up to 1\.5"),
        ({"ratio": (1e-4, 1.0)}, "expected width over height from"),
        ({"flip": 2.0}, r"flip 2\.0; expected a probability"),
        ({"saturation": -0.1}, r"saturation 0\.0, 0\.0 and -0\.1; expected 0 to 100"),
        ({"scheme": "centre", "resize_px": 100}, "resize_px 100 below size_px 224"),
        ({"scheme": "center"}, "view scheme 'center'; expected one of"),
    ],
)
def test_view_specs_without_meaning(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        udkd.ViewSpec(**fields)


def test_live_teacher_refuses_other_classes_and_weights(
    tmp_path: Path, data: udkd.Dataset, augment: udkd.Augment, teacher: TeacherFolder
) -> None:
    with pytest.raises(ConfigError, match="sample_weight vacuity is computed from vacuity"):
        udkd.LiveTeacher(teacher.path, augment, sample_weight="vacuity")
    reversed_classes = DatasetFolder(**vars(data) | {"classes": data.classes[::-1]})
    other = make_teacher(tmp_path, reversed_classes)
    with pytest.raises(MismatchError, match=r"use a teacher for the classes of .*, in their order \(class 0"):
        udkd.LiveTeacher(other.path, augment)


def test_loss_refusals() -> None:
    logits, labels = [torch.zeros(2, 3)], torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ConfigError, match="kl is 'backward'; expected reverse or forward"):
        udkd.DistillationLoss(kl="backward")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"temperature 0\.0"):
        udkd.DistillationLoss(temperature=0.0)
    with pytest.raises(ConfigError, match="beta is above 0 and there are no teacher logits"):
        udkd.DistillationLoss()(logits, labels)
    with pytest.raises(ConfigError, match=r"logits are one tensor \[2, 3\]"):
        udkd.DistillationLoss()(logits[0], labels, TeacherTargets(logits=logits[0], weight=None))
    assert udkd.DistillationLoss(beta=0)(logits, labels).total > 0
    assert "temperature=4.0" in repr(udkd.DistillationLoss())


def test_build_a_cache_train_and_evaluate(tmp_path: Path, data: udkd.Dataset, teacher: TeacherFolder) -> None:
    recipe = udkd.load_recipe(ROOT / "udkd" / "recipes" / "smoke.toml", [*SMALL, "train.epochs=1"])
    cache, run = str(tmp_path / "cache"), str(tmp_path / "run")
    udkd.build_cache(cache, dataset=data, teacher=str(teacher.path), recipe=recipe, device="cpu")
    assert udkd.train(recipe, data=str(data.path), cache=cache, out=run, device="cpu").finished
    assert len(udkd.evaluate(run, device="cpu")["students"]) == 2


USER_FILE = """\
from pathlib import Path

import torch

import udkd

class Photos(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(3, 8, 8, dtype=torch.uint8), 0


udkd.convert(["train.tar", Path("val.tar")], "data", hold_out=10, fit="squash", class_names="names.txt")
data: udkd.Dataset = udkd.convert(Photos(), "data", val=Photos(), class_names={0: "cat"})
loader = udkd.Loader(data.train, batch_size=32, device=torch.device("cpu"))
augment = udkd.Augment(udkd.ViewSpec(size_px=48), data.train, seed=0)
teacher = udkd.CachedTeacher("cache", loader, augment)
live = udkd.LiveTeacher("teacher", augment, precision="bfloat16")
criterion = udkd.DistillationLoss(alpha=0.4, kl="forward")
for epoch in range(2):
    loader.set_epoch(epoch)
    for batch in loader:
        batch = batch.to("cpu", non_blocking=True)
        x: torch.Tensor = augment(batch, epoch)
        terms = criterion([x], batch.labels, teacher(batch, epoch) if epoch else live(batch, epoch))
        terms.total.backward()
recipe = udkd.load_recipe("smoke")
finished: bool = udkd.train(recipe, data="data", out="run", cache="cache").finished
udkd.distil  # error
"""


def test_a_users_file_passes_mypy(tmp_path: Path) -> None:
    """And a name that does not exist is an error, not Any."""
    assert (ROOT / "udkd" / "py.typed").exists()
    file = tmp_path / "user.py"
    file.write_text(USER_FILE)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", str(file)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=scaled(300), check=False)
    lines = result.stdout.splitlines()
    assert len(lines) == 1, result.stdout + result.stderr
    assert f'user.py:{len(USER_FILE.splitlines())}: error: Module has no attribute "distil"' in lines[0]
