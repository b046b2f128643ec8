"""Ensembles of teachers: every estimator from its definition in float64, and cached targets equal to live ones bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories import make_dataset as small_dataset
from tests.factories import small_recipe, write_small_teacher
from tests.teacher.cache_fixtures import CLASSES, CPU, RECIPE, TEACHER, make_teacher
from udkd.augment.apply import apply
from udkd.augment.view_table import EpochViews
from udkd.config.recipe import Recipe
from udkd.data.backends.registry import open_backend
from udkd.data.batch import Batch
from udkd.data.dataset import DatasetFolder
from udkd.losses.sample_weight import SampleWeighting, sample_weight
from udkd.models.build import build, sample_dropout
from udkd.teacher.cache.build import build_cache
from udkd.teacher.cache.reader import Cache
from udkd.teacher.ensemble import TeacherEnsemble
from udkd.teacher.folder import TeacherFolder
from udkd.teacher.sources import CachedTargets, EvidentialRampUp, LiveTargets, open_targets
from udkd.training.make_teacher import evaluate_and_write, from_run
from udkd.training.run_folder import RunFolder
from udkd.training.trainer import TrainJob, train
from udkd.utils.errors import CacheError, ConfigError
from udkd.utils.progress import SILENT

C = len(CLASSES)
IMAGES = torch.randn(11, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([3, 1, 4, 15, 9, 2, 6, 5, 35, 8, 97])
BLOCK_ROWS = 16
pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[TeacherFolder]:
    """Three: the last was fitted with the evidential loss according to its folder."""
    plain = [make_teacher(tmp_path_factory.mktemp("teacher"), seed) for seed in (0, 1)]
    info, folder = plain[0].info, tmp_path_factory.mktemp("evidential")
    evidential = write_small_teacher(folder, plain[0].weights(), info.architecture, info.classes, loss="evidential")
    return [*plain, evidential]


def recipe(loss: dict[str, object] | None = None, **teacher: object) -> Recipe:
    return Recipe.from_dict(RECIPE | {"teacher": {"batch_size": 8, **teacher}, "loss": loss or {}}, "test")


def members_for(teachers: list[TeacherFolder], kind: str) -> list[TeacherFolder]:
    return {"ensemble": teachers[:2], "evidential": teachers[2:]}.get(kind, teachers[:1])


def ensemble_of(teachers: list[TeacherFolder], dataset: DatasetFolder, kind: str, **more: object) -> TeacherEnsemble:
    return TeacherEnsemble.load(members_for(teachers, kind), recipe(estimator=kind, **more), dataset, CPU)


def network(teacher: TeacherFolder) -> torch.nn.Module:
    model = build(TEACHER, C, image_px=32, seed=0)
    model.load_state_dict(teacher.weights())
    return model.eval().requires_grad_(False)


def entropy64(p: torch.Tensor) -> torch.Tensor:
    return -(p * p.log()).sum(-1)


def assert_members(packed: dict[str, torch.Tensor], p_MBC: torch.Tensor) -> None:
    """The mean, its entropy and the mutual information of probabilities in float64."""
    mean = p_MBC.mean(0)
    torch.testing.assert_close(torch.softmax(packed["logits"].double(), -1), mean, atol=2e-4, rtol=0)
    torch.testing.assert_close(packed["entropy"].double(), entropy64(mean), atol=1e-4, rtol=0)
    information = entropy64(mean) - entropy64(p_MBC).mean(0)
    assert information.min() > 1e-3
    torch.testing.assert_close(packed["mutual_information"].double(), information, atol=1e-4, rtol=0)


def test_ensemble_in_float64(teachers: list[TeacherFolder], cache_dataset: DatasetFolder) -> None:
    p_MBC = torch.stack([torch.softmax(network(each).double()(IMAGES.double()), -1) for each in teachers[:2]])
    ensemble = ensemble_of(teachers, cache_dataset, "ensemble")
    assert_members(ensemble.targets(IMAGES, IDS, 0).arrays, p_MBC)
    assert ensemble.describe()["teacher"] == f"{TEACHER} + {TEACHER}"
    assert ensemble.describe()["teacher_sha256"] == " + ".join(each.info.weights_sha256 for each in teachers[:2])


def test_another_batch_shape_moves_a_probability_by_less_than_2e_5(
    teachers: list[TeacherFolder], cache_dataset: DatasetFolder
) -> None:
    eight, three = (
        ensemble_of(teachers, cache_dataset, "ensemble", batch_size=batch).predictions(IMAGES, IDS, 0) for batch in (8, 3)
    )
    apart = torch.softmax(eight.logits.double(), -1) - torch.softmax(three.logits.double(), -1)
    assert apart.abs().max() < 2e-5
    assert (eight.entropy - three.entropy).abs().max() < 1e-4


def test_mc_dropout_in_float64(teachers: list[TeacherFolder], cache_dataset: DatasetFolder) -> None:
    """With the masks as given: dropout before the head, the rest of the network unchanged."""
    ensemble = ensemble_of(teachers, cache_dataset, "mc_dropout", mc_samples=3, dropout=0.4)
    masks: list[torch.Tensor] = []

    def noted(*arguments: object) -> torch.Tensor:
        masks.append(sample_dropout(*arguments))  # type: ignore[arg-type]
        return masks[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("udkd.teacher.frozen.sample_dropout", noted)
        packed = ensemble.targets(IMAGES[:8], IDS[:8], 2)
    model, features = network(teachers[0]).double(), []
    model.fc.register_forward_hook(lambda module, given, result: features.append(given[0]))
    model(IMAGES[:8].double())
    assert len(masks) == 3
    p_MBC = torch.stack(
        [torch.softmax(torch.nn.functional.linear(features[0] * m, model.fc.weight, model.fc.bias), -1) for m in masks]
    )
    assert_members(packed.arrays, p_MBC)


def test_masks_are_a_function_of_name_and_id() -> None:
    ids = torch.arange(400)
    mask = sample_dropout(ids, 7, 512, 0.2)
    assert set(mask.unique().tolist()) == {0.0, 1.25}
    assert (mask == 0).float().mean().item() == pytest.approx(0.2, abs=0.005)
    assert (mask == 0).float().mean(0).std().item() == pytest.approx((0.2 * 0.8 / 400) ** 0.5, rel=0.2)
    assert torch.equal(sample_dropout(ids[[5, 3]], 7, 512, 0.2), mask[[5, 3]])
    for other in (sample_dropout(ids, 8, 512, 0.2), sample_dropout(ids + 1, 7, 512, 0.2), mask.roll(1, 1)):
        row = ((other == 0) & (mask == 0)).float().mean().item()
        assert row == pytest.approx(0.04, abs=0.003)


def test_passes_differ_by_view_and_sample_not_by_batch(teachers: list[TeacherFolder], cache_dataset: DatasetFolder) -> None:
    ensemble = ensemble_of(teachers, cache_dataset, "mc_dropout")
    first = ensemble.targets(IMAGES, IDS, 0)
    alone = ensemble.targets(IMAGES[9:10], IDS[9:10], 0)
    assert all(torch.equal(first.arrays[name][9:10], alone.arrays[name]) for name in first.arrays)
    for other in (ensemble.targets(IMAGES, IDS, 1), ensemble.targets(IMAGES, IDS + 1, 0)):
        assert not torch.equal(other.logits, first.logits)


def test_evidential_in_float64(teachers: list[TeacherFolder], cache_dataset: DatasetFolder) -> None:
    alpha = 1 + network(teachers[2]).double()(IMAGES.double()).clamp(max=10).exp()
    total = alpha.sum(-1, keepdim=True)
    packed = ensemble_of(teachers, cache_dataset, "evidential").targets(IMAGES, IDS, 0)
    torch.testing.assert_close(torch.softmax(packed.logits.double(), -1), alpha / total, atol=2e-4, rtol=0)
    torch.testing.assert_close(packed.uncertainties["vacuity"].double(), C / total[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed.entropy.double(), entropy64(alpha / total), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "settings", "kinds"),
    [
        ("plain", {}, ["entropy", "inverse_entropy", "max_probability", "margin", "correctness"]),
        ("plain", {"logits_dtype": "float32"}, ["entropy", "margin"]),
        ("plain", {"top_k": 3, "views": 1}, ["entropy", "max_probability", "margin", "correctness"]),
        ("mc_dropout", {"mc_samples": 3, "views": 2}, ["entropy", "mutual_information"]),
        ("ensemble", {"logits_dtype": "float32", "top_k": 4}, ["entropy", "mutual_information", "margin"]),
        ("evidential", {}, ["vacuity", "correctness"]),
    ],
)
def test_cached_equals_live_for_every_kind(
    tmp_path: Path,
    cache_dataset: DatasetFolder,
    teachers: list[TeacherFolder],
    kind: str,
    settings: dict[str, object],
    kinds: list[str],
) -> None:
    """In id order in the cache, shuffled and in other batches live: logits and weights are the same bits."""
    rules, split, members = recipe(estimator=kind, **settings), cache_dataset.split("train"), members_for(teachers, kind)
    cache = build_cache(
        tmp_path, dataset=cache_dataset, teacher=members[0], other_teachers=members[1:], recipe=rules, device=CPU
    ).cache
    labels = torch.from_numpy(split.labels.astype(np.int64))
    ensemble, view = TeacherEnsemble.load(members, rules, cache_dataset, CPU), cache.views[-1]
    eval_views = EpochViews(rules.evaluation_spec, 0, split, CPU) if cache.key.policy == "canonical" else None
    seen = EpochViews(rules.views.spec, rules.views.seed, split, CPU)
    backend = open_backend("folder", split, CPU, workers=1)
    batches = list(backend.epoch(np.random.default_rng(1).permutation(split.ids)[:26], 13))
    for name in kinds:
        weighting = SampleWeighting(kind=name)  # type: ignore[arg-type]
        cached, live = CachedTargets(cache, CPU, weighting, lambda view: labels), LiveTargets(ensemble, eval_views, weighting)
        weights = []
        for batch in batches:
            x = apply(batch.canvas, seen.table(view).gather(batch.ids), rules.views.spec)
            ours, theirs = cached(batch, x, view), live(batch, x, view)
            assert torch.equal(ours.logits, theirs.logits)
            assert torch.equal(ours.weight, theirs.weight), name
            weights.append(ours.weight)
        assert len(torch.cat(weights).unique()) > 1, name


def test_controls(tmp_path: Path, cache_dataset: DatasetFolder, teachers: list[TeacherFolder]) -> None:
    """The same values on other samples, their mean for every sample, and mean 1: against NumPy."""
    cache = build_cache(tmp_path, dataset=cache_dataset, teacher=teachers[0], recipe=recipe(), device=CPU).cache
    ids = torch.from_numpy(cache_dataset.split("train").ids)

    def weights(**settings: object) -> torch.Tensor:
        logits, weight_B = cache.lookup_table(0, CPU, SampleWeighting(**settings)).lookup(ids)  # type: ignore[arg-type]
        assert torch.equal(logits, plain_logits)
        return weight_B

    plain_logits, plain = cache.lookup_table(0, CPU).lookup(ids)
    mean = plain.double().mean()
    shuffled = weights(control="shuffled", seed=1)
    assert torch.equal(shuffled.sort().values, plain.sort().values)
    assert (shuffled != plain).float().mean() > 0.95
    assert torch.equal(shuffled, weights(control="shuffled", seed=1))
    assert not torch.equal(shuffled, weights(control="shuffled", seed=2))
    torch.testing.assert_close(weights(control="equal_mean").double(), mean.expand(len(ids)), atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(weights(mean_one=True).double(), plain.double() / mean)
    torch.testing.assert_close(weights(kind="margin", mean_one=True).double().mean(), torch.tensor(1.0).double())
    assert weights(control="equal_mean", mean_one=True).unique().tolist() == [1.0]
    elsewhere = cache.lookup_table(0, torch.device("meta"))  # stands in for a GPU
    assert elsewhere.lookup(ids.to("meta"))[1].shape == ids.shape


@pytest.mark.parametrize(
    ("kind", "given", "settings", "loss", "message"),
    [
        ("plain", 2, {}, {}, "2 teachers were given and teacher.estimator is plain"),
        ("ensemble", 1, {}, {}, "1 teacher was given"),
        ("evidential", 1, {}, {}, "fitted with cross-entropy"),
        ("plain", 1, {"top_k": C}, {}, f"teacher.top_k is {C} of {C} classes"),
        ("plain", 1, {}, {"sample_weight": "vacuity"}, "expected one that gives vacuity: evidential"),
        ("plain", 1, {}, {"sample_weight": "mutual_information"}, "mc_dropout or ensemble"),
        (
            "plain",
            1,
            {},
            {"sample_weight_control": "shuffled"},
            "sample_weight_control = shuffled needs the weights of all",
        ),
        ("plain", 1, {}, {"sample_weight_mean_one": True}, "sample_weight_mean_one needs the weights of all samples"),
    ],
)
def test_limits_of_live_teachers(
    cache_dataset: DatasetFolder,
    teachers: list[TeacherFolder],
    kind: str,
    given: int,
    settings: dict[str, object],
    loss: dict[str, object],
    message: str,
) -> None:
    rules = recipe(loss, estimator=kind, source="live", **settings)
    with pytest.raises(ConfigError, match=message):
        open_targets(rules, cache_dataset, "any", CPU, cache=None, teachers=[each.path for each in teachers[:given]])


def test_a_cache_without_the_uncertainty_is_refused(
    tmp_path: Path, cache_dataset: DatasetFolder, teachers: list[TeacherFolder]
) -> None:
    built = build_cache(tmp_path, dataset=cache_dataset, teacher=teachers[0], recipe=recipe(), device=CPU)
    pixels = built.cache.key.pixel_class
    for kind, maker in (("vacuity", "evidential"), ("mutual_information", "mc_dropout or ensemble")):
        with pytest.raises(CacheError, match=f"expected {kind} for loss.sample_weight = {kind}.*{maker}"):
            open_targets(recipe({"sample_weight": kind}), cache_dataset, pixels, CPU, cache=tmp_path, teachers=[])
        with pytest.raises(CacheError, match=kind):
            Cache.open(tmp_path).lookup_table(0, CPU, SampleWeighting(kind=kind))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a kind that varies"):
        recipe({"sample_weight": "constant", "sample_weight_control": "shuffled"})
    assert sample_weight("max_probability", torch.zeros(1, 4), None, None).item() == 0.25


def test_a_teacher_fitted_with_the_evidential_loss(tmp_path: Path) -> None:
    """From fit to vacuity: the folder records how its logits were fitted, and only then are they used as evidence."""
    data = small_dataset(tmp_path, per_class=8, val_per_class=2)
    settings = small_recipe("fit.architecture=squeezenet1_1", "fit.epochs=2", "fit.loss=evidential", "loss.label_smoothing=0.1")
    fit = settings.for_teacher()
    assert (fit.loss.label_loss, fit.loss.label_smoothing, fit.loss.beta) == ("evidential", 0.0, 0.0)
    assert train(TrainJob(recipe=fit, data=data.path, out=tmp_path / "run", device=CPU)).finished
    candidate = from_run(RunFolder.open(tmp_path / "run"), None, [entry.wnid for entry in data.classes])
    teacher = evaluate_and_write(tmp_path / "teacher", candidate, data, fit, CPU, SILENT)
    assert TeacherFolder.open(teacher.path).info.loss == "evidential"
    rules = small_recipe("teacher.estimator=evidential", "loss.sample_weight=vacuity")
    cache = build_cache(tmp_path / "cache", dataset=data, teacher=teacher, recipe=rules, device=CPU).cache
    assert cache.key.uncertainties == ("entropy", "vacuity")
    vacuity = cache.view_file(0).uncertainties["vacuity"]
    assert ((vacuity > 0) & (vacuity <= 1)).all()
    outcome = train(TrainJob(recipe=rules, data=data.path, out=tmp_path / "students", device=CPU, cache=cache.folder))
    assert outcome.finished


def test_the_evidential_regulariser_grows_with_the_epochs() -> None:
    batch = Batch(ids=torch.arange(3), canvas=torch.zeros(3), labels=torch.zeros(3, dtype=torch.int64))
    shares = [EvidentialRampUp(CPU)(batch, torch.zeros(3), epoch).weight for epoch in (0, 4, 10, 50)]
    assert [row.tolist() for row in shares if row is not None] == [
        [0.0] * 3,
        [pytest.approx(0.4)] * 3,
        [1.0] * 3,
        [1.0] * 3,
    ]
    with pytest.raises(ConfigError, match="loss: label_loss is evidential; expected beta"):
        recipe({"label_loss": "evidential"})
