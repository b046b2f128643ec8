"""Runs with a method's term, scheduled weights, students that join later or start pretrained: resumed equals uninterrupted."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.factories import rewrite_json, small_recipe
from tests.observers import StopAfter
from tests.training.runs import checkpoint_hash, checkpoint_tensors, metrics_without_time
from udkd.config.loading import load_recipe
from udkd.config.recipe import Recipe
from udkd.data.dataset import DatasetFolder
from udkd.losses.distill import distill_with
from udkd.losses.methods.registry import METHODS
from udkd.losses.schedules import EpochStats
from udkd.losses.settings import LossSettings
from udkd.models.build import build
from udkd.models.features import FeatureExtractor
from udkd.study.spec import load_study
from udkd.teacher.folder import TeacherFolder
from udkd.training.run_folder import RunFolder
from udkd.training.schedule import learning_rates, loss_weights
from udkd.training.step import make_forward_loss
from udkd.training.trainer import TrainJob, train
from udkd.utils.errors import ConfigError, MismatchError, RunError

CPU = torch.device("cpu")
STEPS = 3  # in an epoch: 24 images in batches of 8
FEATURES = ('teacher.source="live"', "teacher.views=2", "methods.crd.negatives=8", "methods.crd.embed_dim=8")
DATASET_IMAGES = {"per_class": 6, "val_per_class": 2}


class Bench:
    """Trains each recipe in a separate folder."""

    def __init__(self, root: Path, dataset: DatasetFolder, teacher: TeacherFolder, cache: Path) -> None:
        self.root, self.dataset, self.teacher, self.cache = root, dataset, teacher, cache

    def run(self, name: str, recipe: Recipe, *, stop_after: int | None = None, resume: bool = False) -> Path:
        observer = StopAfter(stop_after)
        live = recipe.teacher.source == "live"
        train(
            TrainJob(
                recipe=recipe,
                data=self.dataset.path,
                out=self.root / name,
                device=CPU,
                cache=None if live else self.cache,
                teacher=self.teacher.path if live else None,
                resume=resume,
                observer=observer,
                stopped=observer.stopped,
            )
        )
        return self.root / name

    def run_interrupted(self, name: str, recipe: Recipe, stop_after: int) -> Path:
        """Stopped once and resumed."""
        self.run(name, recipe, stop_after=stop_after)
        assert RunFolder.open(self.root / name).load().progress.step == stop_after
        return self.run(name, recipe, resume=True)


@pytest.fixture
def bench(tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, cache: Path) -> Bench:
    return Bench(tmp_path, dataset, teacher, cache)


# --- methods


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("dkd", ()),
        ("attention", FEATURES),
        ("fitnets", FEATURES),
        ("rkd", (*FEATURES, 'teacher.views="eval"')),
        ("crd", FEATURES),
        pytest.param("reviewkd", (*FEATURES, "methods.reviewkd.stages=2"), marks=pytest.mark.long),
    ],
)
def test_a_method_is_a_setting_of_the_one_loop(
    bench: Bench, plain_rows: list[dict[str, object]], method: str, more: tuple[str, ...]
) -> None:
    """Stopped within the second epoch and resumed equals uninterrupted, the connectors' weights and memories included."""
    recipe = small_recipe("train.epochs=2", f'loss.method="{method}"', "loss.beta=0", "loss.method_weight=0.5", *more)
    uninterrupted = bench.run("complete", recipe)
    tensors = checkpoint_tensors(uninterrupted)
    remembers = any(name.startswith("connector.1.") for name in tensors)
    assert remembers == (method in ("fitnets", "crd", "reviewkd"))
    if remembers:
        interrupted = bench.run_interrupted("interrupted", recipe, STEPS + 2)
        assert checkpoint_hash(uninterrupted) == checkpoint_hash(interrupted)
        assert metrics_without_time(uninterrupted) == metrics_without_time(interrupted)
    row = RunFolder.open(uninterrupted).metrics()[0]["train"]
    for index in range(2):
        assert row["method"][index] > 0
        parts = 0.4 * row["hard"][index] + 0.2 * row["peer"][index] + 0.5 * row["method"][index]
        assert row["loss"][index] == pytest.approx(parts, rel=1e-5)
    top1 = [[row["val"] for row in some] for some in (metrics_without_time(uninterrupted), plain_rows)]
    assert top1[0] != top1[1], "the term changes the result"


@pytest.mark.long
@pytest.mark.parametrize("method", ["attention", "rkd", "fitnets"])
def test_a_method_takes_mixed_views(bench: Bench, method: str) -> None:
    """Attention transfer and FitNets compare maps of the same mixed pixels; RKD, pooled features of them."""
    mixing = ("views.jitter='uint8'", "views.cutmix=1.0", "views.erase_prob=0.3")
    recipe = small_recipe("train.epochs=1", f'loss.method="{method}"', "loss.beta=0", *FEATURES, *mixing)
    row = RunFolder.open(bench.run("mixed", recipe)).metrics()[0]["train"]
    assert min(row["method"]) > 0


@pytest.fixture(scope="module")
def plain_rows(
    tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder, teacher: TeacherFolder, cache: Path
) -> list[dict[str, object]]:
    bench = Bench(tmp_path_factory.mktemp("plain"), dataset, teacher, cache)
    return metrics_without_time(bench.run("plain", small_recipe("train.epochs=2", "loss.beta=0")))


def test_the_studys_mutual_learning_is_the_papers() -> None:
    study = load_study("methods")
    assert load_recipe(study.recipe, study.arm("DML").set).loss.settings == LossSettings(
        alpha=1.0, beta=0.0, gamma=1.0, temperature=1.0, kl="forward"
    )
    methods = {load_recipe(study.recipe, ["teacher.views=50", *arm.set]).loss.method for arm in study.arms}
    assert methods == {"none", *METHODS}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ['loss.method="fitnets"'],
            "loss.method = fitnets needs a live teacher's features; a cache stores no feature maps; set teacher.source = live",
        ),
        (
            ['loss.method="crd"', "loss.beta=0", 'teacher.source="none"'],
            "needs a live teacher's features; teacher.source is none",
        ),
        (['loss.method="dkd"', "loss.beta=0", 'teacher.source="none"'], "loss.method = dkd needs a teacher"),
        (
            ['loss.method="attention"', 'teacher.source="live"'],
            "same pixels and teacher.views = eval .* set teacher.views = train.epochs",
        ),
        (
            ['loss.method="rkd"', 'teacher.source="live"', "teacher.fold_bn=true"],
            "set teacher.fold_bn and teacher.compile to false",
        ),
        (['loss.method="hint"'], 'loss.method is "hint"'),
        (["methods.crd.negative=3"], "methods.crd.negative is not a key of a recipe; expected weight, embed_dim"),
        (['loss.schedules.beta={kind="sine"}'], "loss.schedules.beta.kind"),
        (["students.1.start_epoch=3"], r"students.1.start_epoch is 3 of 3 epochs"),
        (
            ["students.0.start_epoch=1", "students.1.start_epoch=1"],
            "every start_epoch is above 0; expected a student that starts at once",
        ),
        (["students.1.loss_weight=0"], "students.1.loss_weight"),
    ],
)
def test_conflicting_settings_are_one_line(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        small_recipe(*settings)
    assert "\n" not in str(caught.value)


# --- scheduled weights


def test_schedules_at_their_ends_and_between() -> None:
    recipe = small_recipe(
        "train.epochs=10",
        'loss.schedules.alpha={kind="linear", to=1.0}',
        'loss.schedules.beta={kind="cosine", to=0.0, until=0.5}',
        'loss.schedules.gamma={kind="progress", to=0.6}',
        "students.1.loss_weight=3.0",
    )
    stats = EpochStats(progress=(0.25, 0.5), confidence=0.8)
    start, quarter, half, end = (loss_weights(recipe, step, 400, stats) for step in (0, 100, 200, 400))
    assert [row[0] for row in start] == pytest.approx([0.4, 0.4, 0.2 + 0.4 * 0.25, 0])
    assert [row[0] for row in quarter] == pytest.approx([0.4 + 0.6 / 4, 0.2, 0.3, 0])
    assert [row[0] for row in half] == pytest.approx([0.7, 0, 0.3, 0])
    assert [row[0] for row in end] == pytest.approx([1, 0, 0.3, 0])
    assert [row[1] for row in end] == pytest.approx([3, 0, 3 * 0.4, 0])
    by_confidence = small_recipe('loss.schedules.beta={kind="confidence", to=0.0}')
    assert loss_weights(by_confidence, 7, 12, stats)[1][0] == pytest.approx(0.4 * 0.2)
    assert loss_weights(by_confidence, 7, 12, EpochStats.none(2))[1][0] == 0.4


def test_scheduled_weights_resume_to_the_same_bits(bench: Bench) -> None:
    recipe = small_recipe(
        "train.epochs=3",
        'loss.schedules.alpha={kind="linear", to=1.0}',
        'loss.schedules.beta={kind="confidence", to=0.1}',
        'loss.schedules.gamma={kind="progress", to=0.0}',
    )
    uninterrupted = bench.run("complete", recipe)
    for stop in (STEPS, STEPS + 2):
        interrupted = bench.run_interrupted(f"interrupted-{stop}", recipe, stop)
        assert checkpoint_hash(uninterrupted) == checkpoint_hash(interrupted)
        assert metrics_without_time(uninterrupted) == metrics_without_time(interrupted)
    stats = RunFolder.open(uninterrupted).load().progress.figures
    assert stats is not None
    last = RunFolder.open(uninterrupted).metrics()[-1]["train"]
    assert stats.progress == [top1 / 100 for top1 in last["top1"]]
    assert 0 < stats.confidence < 1


def test_a_weight_on_the_loss_is_a_factor_on_the_gradient(bench: Bench) -> None:
    """Twice the loss at half the learning rate is the same step, to the last bit (momentum and decay apart)."""
    plain = "{architecture='squeezenet1_1', momentum=0.0, weight_decay=0.0"
    one = bench.run(
        "one",
        small_recipe("train.epochs=1", f"students=[{plain}, lr=0.01, loss_weight=1.0}}, {plain}, lr=0.01, loss_weight=4.0}}]"),
    )
    two = bench.run(
        "two",
        small_recipe("train.epochs=1", f"students=[{plain}, lr=0.005, loss_weight=2.0}}, {plain}, lr=0.01, loss_weight=4.0}}]"),
    )
    first, second = checkpoint_tensors(one), checkpoint_tensors(two)
    for name, value in first.items():
        if name.startswith("student."):
            assert torch.equal(value, second[name]), name


def test_a_compiled_loss_is_one_graph_for_all_weights() -> None:
    models = [build("squeezenet1_1", 4, image_px=32, seed=seed).eval() for seed in (0, 1)]
    loss = distill_with(small_recipe().loss.settings)
    uncompiled = make_forward_loss(
        [FeatureExtractor(model, ["features.4"]) for model in models], [0, 0], loss, device_type="cpu", precision="float32"
    )
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(uncompiled, fullgraph=True, dynamic=False, backend=count)
    x, labels, teacher, w = torch.rand(8, 3, 32, 32), torch.arange(8) % 4, torch.randn(8, 4), torch.rand(8)
    for weights_3N in (torch.ones(3, 2), torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])):
        logits, maps, terms = compiled([x], labels, teacher, w, weights_3N)
        _, wanted_maps, wanted = uncompiled([x], labels, teacher, w, weights_3N)
        assert terms.total.item() == pytest.approx(wanted.total.item(), rel=1e-5)
        by_hand = (weights_3N * torch.stack([wanted.hard, wanted.teacher, wanted.peer])).sum().item()
        assert wanted.total.item() == pytest.approx(by_hand, rel=1e-6)
        assert len(logits) == 2
        for one, other in zip(maps, wanted_maps, strict=True):
            torch.testing.assert_close(one[0], other[0])
            assert one[0].requires_grad
    assert len(graphs) == 1


# --- students that join later


def test_a_student_that_joins_later_is_absent_until_then(bench: Bench) -> None:
    alone = "{architecture='squeezenet1_1', lr=0.01}"
    late = f"[{alone}, {{architecture='mobilenet_v2', lr=0.05, start_epoch=1}}]"
    together = small_recipe("train.epochs=2", f"students={late}")
    bench.run("late", together, stop_after=STEPS)
    bench.run("alone", small_recipe("train.epochs=2", f"students=[{alone}]"), stop_after=STEPS)
    first, second = checkpoint_tensors(bench.root / "late"), checkpoint_tensors(bench.root / "alone")
    for name, value in second.items():
        if name.startswith(("student.0.", "momentum.0.")):
            assert torch.equal(value, first[name]), name
    untouched = build("mobilenet_v2", 4, image_px=32, seed=0).state_dict()
    assert first["student.1.features.0.1.running_mean"].eq(untouched["features.0.1.running_mean"]).all(), "it was not trained"
    assert not first["momentum.1.features.0.0.weight"].any()
    first_row = RunFolder.open(bench.root / "late").metrics()[0]
    train_row, val_row = first_row["train"], first_row["val"]
    assert {values[1] for values in train_row.values()} == {None}, "no zero that reads as a loss"
    assert train_row["peer"][0] == 0
    assert val_row["students"][1] is None
    assert val_row["ensemble"] == pytest.approx(val_row["students"][0]), "an untrained network is in no average"
    assert train_row["hard"][0] == RunFolder.open(bench.root / "alone").metrics()[0]["train"]["hard"][0]

    resumed = bench.run("late", together, resume=True)
    uninterrupted = bench.run("complete", together)
    across = bench.run_interrupted("across", together, STEPS + 1)
    assert checkpoint_hash(uninterrupted) == checkpoint_hash(resumed) == checkpoint_hash(across)
    assert metrics_without_time(uninterrupted) == metrics_without_time(resumed) == metrics_without_time(across)
    joined = RunFolder.open(uninterrupted).metrics()[1]["train"]
    assert min(joined["peer"]) > 0, "from then on they are peers"
    second = RunFolder.open(uninterrupted).metrics()[1]["val"]
    assert second["students"][1] is not None
    assert second["ensemble"]["loss"] != pytest.approx(second["students"][0]["loss"])


def test_a_late_student_begins_its_schedule_when_it_joins() -> None:
    settings = ("students.1.lr=0.05", "students.1.start_epoch=2", "students.1.warmup_epochs=1.0")
    recipe = small_recipe("train.epochs=5", *settings)
    rates = [learning_rates(recipe, step, 10)[1] for step in range(50)]
    assert rates[:20] == [0.0] * 20
    assert rates[20:30] == pytest.approx([0.05 * (n + 1) / 10 for n in range(10)])
    assert rates[30] == 0.05
    assert 0 < rates[49] < 1e-3


# --- students that start pretrained


def test_a_student_starts_from_another_run(bench: Bench) -> None:
    first = bench.run("first", small_recipe("train.epochs=1"))
    start = f"students.0.init_from={json.dumps(str(first))}"
    recipe = small_recipe("train.epochs=2", start, "students.0.lr=0.0", "students.0.weight_decay=0.0")
    out = bench.run("second", recipe, stop_after=1)
    trained, started = checkpoint_tensors(first), checkpoint_tensors(out)
    assert torch.equal(started["student.0.classifier.1.weight"], trained["student.0.classifier.1.weight"])
    assert len(RunFolder.open(out).provenance["starts"]["squeezenet1_1"]) == 64
    first.rename(bench.root / "moved")
    bench.run("second", recipe, resume=True)  # a checkpoint holds the weights: the first run is no longer needed
    with pytest.raises(RunError, match="is not a run"):
        bench.run("third", recipe)
    (bench.root / "moved").rename(first)
    cut = bench.run("cut", recipe, stop_after=1)
    (cut / "checkpoints" / "last.json").unlink()  # as if killed before its first checkpoint
    bench.run("cut", recipe, resume=True, stop_after=1)
    assert torch.equal(checkpoint_tensors(cut)["student.0.classifier.1.weight"], trained["student.0.classifier.1.weight"])
    (cut / "checkpoints" / "last.json").unlink()
    other = bench.run("other", small_recipe("train.epochs=1", "train.seed=1"))
    first.rename(bench.root / "moved")
    other.rename(first)
    with pytest.raises(MismatchError, match=r"restore the weights that students\.\*\.init_from named \(starts"):
        bench.run("cut", recipe, resume=True)
    first.rename(other)
    (bench.root / "moved").rename(first)
    with pytest.raises(RunError, match="holds the students squeezenet1_1, squeezenet1_0; expected resnet18; name one"):
        bench.run("fourth", small_recipe(start, 'students.0.init_from_student="resnet18"'))
    with pytest.raises(RunError, match=r"squeezenet1_0 in .* is a squeezenet1_0; expected a squeezenet1_1"):
        bench.run("fifth", small_recipe(start, 'students.0.init_from_student="squeezenet1_0"'))
    assert not any((bench.root / name / "config.json").exists() for name in ("third", "fourth", "fifth"))


def test_a_start_with_other_classes_is_refused(bench: Bench) -> None:
    first = bench.run("first", small_recipe("train.epochs=1"))
    rewrite_json(first / "run.json", lambda values: values | {"classes": ["ant", "bee", "cow", "dog"]})
    with pytest.raises(MismatchError, match="class 2: stored 'cow', wanted 'cat'"):
        bench.run("second", small_recipe(f"students.0.init_from={json.dumps(str(first))}"))
