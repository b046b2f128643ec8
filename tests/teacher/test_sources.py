"""A run and its cache: what does not fit is refused by name, what is allowed is recorded, more views change nothing."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from tests.factories import make_dataset, make_teacher, small_recipe
from tests.observers import Notes
from udkd.data.dataset import DatasetFolder
from udkd.data.header import ClassName, Encoder, content_digest
from udkd.teacher.cache.build import build_cache
from udkd.teacher.cache.reader import Cache
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.sources import open_targets
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import TrainJob, train
from udkd.utils.errors import DataError, MismatchError

CPU = torch.device("cpu")
PIXELS = "libjpeg islow, fancy upsampling"
DATASET_IMAGES = {"per_class": 8, "val_per_class": 2}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder) -> list[TeacherFolder]:
    return [make_teacher(tmp_path_factory.mktemp("teacher"), dataset, seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder, teachers: list[TeacherFolder]) -> Cache:
    folder = tmp_path_factory.mktemp("cache")
    recipe = small_recipe("teacher.views=2")
    return build_cache(folder, dataset=dataset, teacher=teachers[0], recipe=recipe, device=CPU).cache


@pytest.mark.parametrize(
    ("changed", "pixels", "teacher", "other_data", "fields"),
    [
        ((), PIXELS, 1, {}, ["teacher_sha256"]),
        (("views.brightness=0.1", "views.scale=[0.5, 1.0]"), PIXELS, 0, {}, ["views.brightness", "views.scale"]),
        (("views.seed=5",), PIXELS, 0, {}, ["seed"]),
        ((), PIXELS, 0, {"digest": "e" * 64}, ["dataset_digest"]),
        ((), "nvjpeg, fancy upsampling", 0, {}, ["pixel_class"]),
        (("teacher.precision=bfloat16",), PIXELS, 0, {}, ["precision"]),
        (("teacher.fold_bn=true",), PIXELS, 0, {}, ["precision"]),
        (("teacher.estimator=mc_dropout",), PIXELS, 0, {}, ["estimator"]),
        (
            ("views.seed=5", "teacher.precision=bfloat16"),
            "nvjpeg",
            1,
            {},
            ["pixel_class", "precision", "seed", "teacher_sha256"],
        ),
    ],
)
def test_another_condition_is_refused_by_name(
    dataset: DatasetFolder,
    teachers: list[TeacherFolder],
    cache: Cache,
    changed: tuple[str, ...],
    pixels: str,
    teacher: int,
    other_data: dict[str, str],
    fields: list[str],
) -> None:
    """Other weights, view spec, seed, dataset, decoder, precision: each field with both values; all may be allowed."""
    recipe, data = small_recipe("teacher.views=2", *changed), dataclasses.replace(dataset, **other_data)

    def opened(*allow: str) -> dict[str, object]:
        folders = [teachers[teacher].path]
        return open_targets(recipe, data, pixels, CPU, cache=cache.folder, teachers=folders, allow=allow)[1]

    with pytest.raises(MismatchError) as refusal:
        opened()
    assert [name for name, _, _ in refusal.value.fields] == fields
    assert all(
        f"{name}: stored {stored!r}, wanted {wanted!r}" in str(refusal.value) for name, stored, wanted in refusal.value.fields
    )
    with pytest.raises(MismatchError, match=fields[-1]):
        opened(*fields[:-1])
    assert opened(*fields)["allowed"] == fields


@pytest.mark.parametrize(
    "changed",
    [
        ("teacher.views=eval",),
        ("teacher.views=eval", "views.seed=5", "views.scale=[0.5, 1.0]"),
        ("views.brightness=0.1", "views.seed=5"),
        ("teacher.precision=bfloat16", "teacher.fold_bn=true"),
        ("teacher.estimator=mc_dropout",),
        ("teacher.top_k=2", "teacher.logits_dtype=float32"),
    ],
)
def test_the_advice_of_a_refusal_works(dataset: DatasetFolder, cache: Cache, changed: tuple[str, ...]) -> None:
    recipe = ("teacher.views=2", *changed)
    with pytest.raises(MismatchError) as refusal:
        open_targets(small_recipe(*recipe), dataset, PIXELS, CPU, cache=cache.folder, teachers=[])
    if "teacher.views=eval" in changed:
        assert "the cache holds 2 augmented views; give --set teacher.views=2" in str(refusal.value)
    fixed = small_recipe(*recipe, *re.findall(r"--set (\S+)", str(refusal.value)))
    open_targets(fixed, dataset, PIXELS, CPU, cache=cache.folder, teachers=[])


def test_a_refused_cache_names_the_setting_or_the_option(
    tmp_path: Path, dataset: DatasetFolder, teachers: list[TeacherFolder], cache: Cache
) -> None:
    build_cache(tmp_path, dataset=dataset, teacher=teachers[0], recipe=small_recipe(), device=CPU)
    with pytest.raises(MismatchError, match=r"holds one evaluation view; give --set teacher\.views=eval to train"):
        open_targets(small_recipe("teacher.views=2"), dataset, PIXELS, CPU, cache=tmp_path, teachers=[])
    with pytest.raises(
        MismatchError, match="another --backend, --teacher to train with it, or build a cache for these settings"
    ):
        open_targets(small_recipe("teacher.views=2"), dataset, "nvjpeg", CPU, cache=cache.folder, teachers=[teachers[1].path])
    other = small_recipe("teacher.views=2", "views.flip=0.1")
    with pytest.raises(MismatchError, match=r"give --set views\.flip=0\.5 to continue it, build into another folder"):
        build_cache(cache.folder, dataset=dataset, teacher=teachers[0], recipe=other, device=CPU)


def test_a_cache_of_another_storage_is_noted_or_refused(
    tmp_path: Path, dataset: DatasetFolder, teachers: list[TeacherFolder]
) -> None:
    """A recipe that leaves the storage as it is takes any cache and notes it; one that sets another is refused."""
    build_cache(tmp_path, dataset=dataset, teacher=teachers[0], recipe=small_recipe("teacher.top_k=3"), device=CPU)

    notes = Notes()

    def opened(*settings: str, allow: tuple[str, ...] = ()) -> object:
        recipe = small_recipe(*settings)
        record = open_targets(recipe, dataset, PIXELS, CPU, cache=tmp_path, teachers=[], allow=allow, observer=notes)[1]
        return record["allowed"]

    assert opened("teacher.top_k=3") == []
    assert notes.lines == []
    assert opened() == []
    assert notes.lines == ["the cache stores float16 top-3 where the recipe's teacher.logits_dtype and top_k are float16"]
    with pytest.raises(MismatchError, match=r"or allow it, .*\(storage: stored 'float16 top-3', wanted 'float16 top-2'\)"):
        opened("teacher.top_k=2")
    assert opened("teacher.top_k=2", allow=("storage",)) == ["storage"]


def test_a_single_class_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teachers: list[TeacherFolder]) -> None:
    monkeypatch.setattr("tests.factories.CLASSES", ("ant",))
    single, recipe = make_dataset(tmp_path, per_class=9, val_per_class=2), small_recipe()
    for action in (
        lambda: train(TrainJob(recipe=recipe.for_teacher(), data=single.path, out=tmp_path / "run", device=CPU)),
        lambda: train(TrainJob(recipe=recipe, data=single.path, out=tmp_path / "run", device=CPU, cache=tmp_path / "none")),
        lambda: build_cache(tmp_path / "c", dataset=single, teacher=teachers[0], recipe=recipe, device=CPU),
    ):
        with pytest.raises(DataError, match=r"has one class \(ant\); .* wrong folder level"):
            action()
    assert not (tmp_path / "run").exists()


def test_another_class_order_is_another_dataset() -> None:
    """So a cache of one is refused by the digest of the other."""
    classes = tuple(ClassName(wnid=wnid, name="") for wnid in ("ant", "bee"))
    digests = [
        content_digest(side=36, fit="pad", encoder=Encoder(quality=90, subsampling="4:2:0"), classes=order, splits={})
        for order in (classes, classes[::-1])
    ]
    assert digests[0] != digests[1]


def test_more_views_do_not_change_a_run(
    tmp_path: Path, dataset: DatasetFolder, teachers: list[TeacherFolder], cache: Cache
) -> None:
    """A run over two cached views, stopped; the cache grows to three; resumed, it ends like an uninterrupted one."""
    recipe, calls = small_recipe("teacher.views=2"), 0

    def stop_soon() -> bool:
        nonlocal calls
        calls += 1
        return calls > 5

    def job(name: str, **more: object) -> TrainJob:
        return TrainJob(recipe=recipe, data=dataset.path, out=tmp_path / name, device=CPU, cache=cache.folder, **more)  # type: ignore[arg-type]

    assert not train(job("stopped", stopped=stop_soon)).finished
    assert train(job("complete")).finished
    more = small_recipe("teacher.views=3")
    grown = build_cache(cache.folder, dataset=dataset, teacher=teachers[0], recipe=more, device=CPU).cache
    assert grown.views == (0, 1, 2)
    assert train(job("stopped", resume=True)).finished
    runs = [RunFolder.open(tmp_path / name) for name in ("stopped", "complete")]
    assert [run.provenance["num_views"] for run in runs] == [2, 2]
    assert [
        [row["view"] for row in map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())] for run in runs
    ] == [[0, 1, 0]] * 2
    weights = [run.load().tensors for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
