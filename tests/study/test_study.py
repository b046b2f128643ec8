"""Studies: plans, statistics recomputed from per-run numbers, resuming, and the claims of a page."""

import csv
import dataclasses
import io
import itertools
import json
import re
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from tests.factories import make_dataset, rewrite_json
from tests.report.pages import draw_only
from tests.utils.slow_hash import slow_key, slow_uniform
from udkd.config.loading import load_recipe
from udkd.data.dataset import DatasetFolder
from udkd.report.text import interval, signed
from udkd.study.folder import StudyFolder
from udkd.study.page import rewrite_page, write_page
from udkd.study.plan import StudyPlan, Trial, make_plan, teacher_name
from udkd.study.results import LearnerResult, RunResult, counterpart, summarise
from udkd.study.runner import Progress, StudyContext, run_path, run_study
from udkd.study.spec import Study, load_study, shipped_studies, study_name
from udkd.study.tables import csv_text, main_comparisons, mean_sd, table_csv
from udkd.study.writer import write_result
from udkd.teacher.folder import TeacherFolder
from udkd.training.run_folder import RunFolder
from udkd.training.trained import ENSEMBLE
from udkd.utils.errors import ConfigError, MismatchError, RunError
from udkd.utils.json_checksum import dump_checked_line

CPU = torch.device("cpu")
SMALL = (
    *("train.batch_size=8", "teacher.batch_size=8", "train.epochs=2", "train.threads=1", "train.log_every_steps=1"),
    "students=[{architecture='squeezenet1_1', lr=0.01}]",
)
GRID = Study.model_validate_json(
    json.dumps(
        {
            "title": "A grid",
            "recipe": "smoke",
            "seeds": [0, 1],
            "baseline": ["hard"],
            "arms": [
                {"name": "hard", "set": ["loss.alpha=1.0", "loss.beta=0.0", "loss.gamma=0.0", "teacher.source='none'"]},
                {"name": "distilled"},
                {"name": "distilled again"},
            ],
            "contrasts": [{"arm": "distilled", "against": "distilled again", "isolates": "nothing"}],
        }
    )
)

IMAGES = 5_000
DATASET_IMAGES = {"per_class": 6, "val_per_class": 3}


def small_plan(study: Study = GRID, **options: object) -> StudyPlan:
    return make_plan("grid", study, overrides=SMALL, **options)  # type: ignore[arg-type]


def outcome(learner: str, curve: Sequence[float]) -> LearnerResult:
    best = max(range(len(curve)), key=lambda epoch: curve[epoch])
    return LearnerResult(
        learner=learner, last=curve[-1], best=curve[best], best_epoch=best + 1, last_top5=curve[-1] + 10, curve=tuple(curve)
    )


def run_result(arm: str, seed: int, last: float, *, learners: Sequence[str] = ("a",), seconds: float = 10.0) -> RunResult:
    outcomes = tuple(outcome(name, (last / 2, last + 1, last + index)) for index, name in enumerate(learners))
    return RunResult(arm=arm, seed=seed, run=f"{arm}-{seed}", outcomes=outcomes, images_per_s=100.0, seconds=seconds)


# Study files


@pytest.mark.parametrize("name", shipped_studies())
@pytest.mark.parametrize("recipe", [None, "tiny-imagenet-100", "quickstart"])
def test_shipped_studies_resolve_on_any_recipe(name: str, recipe: str | None) -> None:
    study = load_study(name)
    plan = make_plan(name, study, recipe=recipe, overrides=["train.epochs=3"], seeds=[4, 5])
    assert plan.seeds == (4, 5)
    assert len(plan.trials) == 2 * len(study.arms)
    assert {trial.recipe.train.epochs for trial in plan.trials} == {3}
    assert {trial.recipe.train.seed for trial in plan.trials} == {4, 5}
    size_px = load_recipe(recipe or study.recipe).views.size_px
    assert {trial.recipe.views.size_px for trial in plan.trials} == {size_px}


def test_table_3_states_its_settings() -> None:
    plan = make_plan("table3", load_study("table3"))
    for arm in plan.arms:
        loss = plan.recipe_of(arm.name).loss
        message = {symbol: float(value) for symbol, value in re.findall(r"([αβγ]) ([\d.]+)", arm.note)}
        assert message == {"α": loss.alpha, "β": loss.beta, "γ": loss.gamma}, arm.name
        if loss.beta:
            assert loss.sample_weight == ("constant" if arm.note.endswith("w = 1") else "entropy"), arm.name
    controls = {
        (loss.alpha, loss.beta, loss.gamma, loss.sample_weight) for arm in plan.arms for loss in [plan.recipe_of(arm.name).loss]
    }
    assert {(0.4, 0.4, 0.0, "entropy"), (0.4, 0.4, 0.2, "constant"), (0.5, 0.5, 0.0, "entropy")} <= controls


def test_the_weights_study_controls_for_size_and_for_assignment() -> None:
    plan = make_plan("weights", load_study("weights"))
    kinds = {
        arm.name: (loss.sample_weight, loss.sample_weight_control)
        for arm in plan.arms
        for loss in [plan.recipe_of(arm.name).loss]
    }
    assert kinds == {
        "constant of equal mean": ("entropy", "equal_mean"),
        "entropy": ("entropy", "none"),
        "shuffled": ("entropy", "shuffled"),
        "inverse entropy": ("inverse_entropy", "none"),
        "max-probability": ("max_probability", "none"),
        "margin": ("margin", "none"),
        "w = 1": ("constant", "none"),
    }
    # One cache serves them all, and table3 has two of its runs.
    assert len({trial.cache_name("data", "teacher") for trial in plan.trials}) == 1
    ablation = make_plan("table3", load_study("table3"))
    runs = [{trial.run_name("data", "teacher") for trial in other.trials} for other in (plan, ablation)]
    assert len(runs[0] & runs[1]) == 2 * len(plan.seeds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = 'x'", "arms is missing"),
        ("title = 'x'\nnumber = 3\n[[arms]]\nname = 'a'", "number is not a key of a study; expected title"),
        ("title = 'x'\n[[arms]]\nname = 'a'\nlr = 3", "arms.0.lr is not a key of a study; expected name"),
        ("title = 'x'\n[[arms]]\nname = 3", "arms.0.name is 3; expected a valid string"),
        ("title = 'x'\nseeds = [0, 0]\n[[arms]]\nname = 'a'", "expected different numbers from 0"),
        ("title = 'x'\nseeds = [1.5]\n[[arms]]\nname = 'a'", "seeds.0 is 1.5"),
        ("title = 'x'\nbaseline = ['b']\n[[arms]]\nname = 'a'", "no arm is called 'b'"),
        ("title = 'x'\n[[arms]]\nname = 'a'\n[[arms]]\nname = 'a'", "two arms are called 'a'"),
        ("title = 'x'\n[[arms]]\nname = 'a'\nset = ['train.seed=3']", "sets train.seed"),
        ("title = ", "is not TOML"),
        ("title = 'x'\n[[arms]]\nname = 'a'\nset = " + "[" * 100_000, "is not TOML (it is nested too deeply)"),
        ("title = 'x'\nnotes = " + "[" * 250 + "]" * 250, "its values are not JSON (recursion limit"),
        ("title = 'x'\nseeds = [-1]\n[[arms]]\nname = 'a'", "seeds.0 is -1; expected greater than or equal to 0"),
        ("title = 'x'\nseeds = [9223372036854775808]\n[[arms]]\nname = 'a'", "seeds.0 is 9223372036854775808; expected less"),
        (f"title = 'x'\nseeds = {list(range(1001))}\n[[arms]]\nname = 'a'", "seeds is [0, 1, 2, "),
        (
            f"title = 'x'\nseeds = {list(range(1000))}\n" + "".join(f"[[arms]]\nname = '{n}'\n" for n in range(11)),
            "11,000 runs",
        ),
        ("title = 'x'\n" + "[[arms]]\nname = 'a'\n" * 201, "arms is "),
        ("title = 'x'\n[[arms]]\nname = \"\\u001b[2J\"", "an arm is called '\\x1b[2J'; expected no control characters"),
        ("title = 'x'\n[[arms]]\nname = 'a'\npaper = {x = nan}", "arms.0.paper.x is NaN"),
    ],
)
def test_study_files_are_strict(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "s.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_study(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file",
    ["caches.toml", "runs.toml", "teachers.toml", "...toml", "..toml", ".hidden.toml", "a\nb.toml", "x" * 130 + ".toml", ".."],
)
def test_a_study_file_gives_a_usable_folder_name(file: str) -> None:
    for name in (file, f"some/where/{file}"):
        with pytest.raises(ConfigError, match=r"expected a file name of up to 120 bytes .*; rename the file") as caught:
            study_name(name)
        assert len(str(caught.value)) < 600


def test_a_study_is_named_after_its_file() -> None:
    assert [study_name(file) for file in ("table3", "mine/a b.toml", "../größer.toml", "v1.2.toml")] == [
        *("table3", "a b", "größer", "v1.2")
    ]


def test_seeds_of_a_plan_are_bounded() -> None:
    with pytest.raises(ConfigError, match=r"3 arms and 4,000 seeds make 12,000 runs; expected up to 10,000; drop some"):
        make_plan("grid", GRID, seeds=range(4_000))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"[" * 100_000, "nested"), (b'{"images": "1", "seconds": 2}', "1 validation error"), (b'{"images": 1}', "1 validation")],
)
def test_a_damaged_cache_cost_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "caches").mkdir()
    folder = StudyFolder(out=tmp_path, name="s")
    folder.add_cache_cost("c", 10, 2.5)
    folder.add_cache_cost("c", 10, 2.5)
    assert folder.cache_cost("c") == {"images": 20.0, "seconds": 5.0}
    file = tmp_path / "caches" / "c.json"
    file.write_bytes(file.read_bytes().replace(b"20.0", b"30.0"))
    with pytest.raises(RunError, match=r"c\.json is damaged \(its checksum does not match"):
        folder.cache_cost("c")
    file.write_bytes(content)
    with pytest.raises(RunError, match=rf"c\.json is damaged \(.*{reason}"):
        folder.cache_cost("c")
    file.write_text('{"images": 1.0, "seconds": 2.0}')  # as it was written before there were checksums
    assert folder.cache_cost("c") == {"images": 1.0, "seconds": 2.0}


def test_plans_refuse_invalid_settings() -> None:
    bad_grid = GRID.model_copy(update={"arms": (GRID.arms[0].model_copy(update={"set": ("loss.alpa=1",)}),)})
    with pytest.raises(ConfigError, match=r"arm 'hard': smoke: loss.alpa is not a key of a recipe"):
        make_plan("grid", bad_grid)
    with pytest.raises(ConfigError, match="use --seeds"):
        make_plan("grid", GRID, overrides=["train.seed=3"])
    with pytest.raises(ConfigError, match=r"not found; expected a \.toml file or one of"):
        load_study("tabel3")


def test_students_of_an_arm_take_the_recipes_settings() -> None:
    arm = GRID.arms[1].model_copy(update={"students": ("resnet34", "mobilenet_v2", "resnet34")})
    options = ["students.0.optimizer=AdamW", "students.0.optimizer_options={eps=1e-9, betas=[0.8, 0.99]}"]
    study = GRID.model_copy(update={"arms": (arm,), "baseline": (), "contrasts": ()})
    students = make_plan("grid", study, recipe="tiny-imagenet-100", overrides=options).trials[0].recipe.students
    assert [dict(student.optimizer_options) for student in students][:2] == [{"eps": 1e-9, "betas": (0.8, 0.99)}, {}]
    assert [student.architecture for student in students] == ["resnet34", "mobilenet_v2", "resnet34"]
    assert [student.weight_decay for student in students] == [5e-4, 1e-4, 5e-4]
    assert {student.lr for student in students} == {0.2}


def test_arms_with_all_teacher_views_follow_the_epochs() -> None:
    arm = GRID.arms[1].model_copy(update={"teacher_views": "all"})
    study = GRID.model_copy(update={"arms": (arm,), "baseline": (), "contrasts": ()})
    assert make_plan("grid", study, overrides=["train.epochs=7"]).trials[0].recipe.teacher.views == 7


def test_only_equal_runs_share_a_folder() -> None:
    plan = small_plan()
    names = {(trial.arm, trial.seed): trial.run_name("data", "teacher") for trial in plan.trials}
    assert names["distilled", 0] == names["distilled again", 0]
    assert len(set(names.values())) == 4
    distilled = next(trial for trial in plan.trials if trial.arm == "distilled")
    hard = plan.trials[0]
    assert distilled.run_name("data", "another") != distilled.run_name("data", "teacher")
    assert hard.run_name("data", "another") == hard.run_name("data", "teacher")
    assert distilled.run_name("other data", "teacher") != distilled.run_name("data", "teacher")
    threads = dataclasses.replace(distilled, recipe=load_recipe("smoke", [*SMALL, "train.seed=0", "data.workers=7"]))
    assert threads.run_name("data", "teacher") == distilled.run_name("data", "teacher")


def test_caches_are_shared_where_their_targets_are_equal() -> None:
    def name(*overrides: str) -> str:
        trial = small_plan().trials[1]
        return dataclasses.replace(trial, recipe=load_recipe("smoke", overrides)).cache_name("data", "teacher")

    assert name() == name("train.epochs=9", "loss.alpha=0.1", "train.seed=3", "views.seed=5")
    assert name("teacher.views=2") == name("teacher.views=9")
    assert len({name(), name("teacher.views=2"), name("teacher.views=2", "views.seed=5"), name("evaluation.resize_px=33")}) == 4
    # Arms of other training views: they share targets of evaluation views, and none of their own views.
    strong = ("views.policy=rand_augment", "views.jitter=uint8")
    assert name(*strong) == name("views.erase_prob=0.5", "views.jitter=uint8") == name()
    mixed = [("teacher.views=2", "views.jitter=uint8", f"views.{each}") for each in ("cutmix=1.0", "mixup=0.8", "cutmix=0.5")]
    assert len({name("teacher.views=2"), name("teacher.views=2", *strong), *(name(*each) for each in mixed)}) == 5


# Statistics


def runs_of(arms: dict[str, dict[int, float]]) -> list[RunResult]:
    return [run_result(arm, seed, value) for arm, values in arms.items() for seed, value in values.items()]


def test_every_statistic_follows_from_the_runs() -> None:
    values = {"hard": {0: 50.0, 1: 54.0, 2: 52.0}, "distilled": {0: 53.0, 1: 57.5, 2: 54.5}}
    summary = summarise(GRID, runs_of(values), IMAGES)
    arm_summary = next(entry for entry in summary.arm_summaries if entry.arm == "distilled")
    assert arm_summary.last.mean == pytest.approx(statistics.fmean(values["distilled"].values()))
    assert arm_summary.last.sd == pytest.approx(statistics.stdev(values["distilled"].values()))
    assert arm_summary.best.mean == pytest.approx(arm_summary.last.mean + 1)
    assert arm_summary.best_epochs == (2, 2, 2)
    (comparison,) = main_comparisons(summary, "last")
    assert (comparison.arm, comparison.against, comparison.seeds) == ("distilled", "hard", (0, 1, 2))
    differences = [values["distilled"][seed] - values["hard"][seed] for seed in range(3)]
    difference = comparison.difference
    assert difference.spread.mean == pytest.approx(statistics.fmean(differences))
    reach = 4.302653 * statistics.stdev(differences) / 3**0.5
    assert difference.student_t == pytest.approx(
        (statistics.fmean(differences) - reach, statistics.fmean(differences) + reach), abs=1e-5
    )
    assert difference.verdict == "improves"


def test_differences_use_common_seeds() -> None:
    summary = summarise(GRID, runs_of({"hard": {0: 50.0, 2: 60.0, 3: 1.0}, "distilled": {3: 2.0, 0: 51.0, 7: 99.0}}), IMAGES)
    (comparison,) = main_comparisons(summary, "last")
    assert comparison.seeds == (0, 3)
    assert comparison.difference.spread.mean == pytest.approx(1.0)
    nothing = summarise(GRID, runs_of({"hard": {0: 50.0}, "distilled": {1: 51.0}}), IMAGES)
    assert nothing.comparisons == ()


def test_a_contrast_with_the_baseline_is_once_in_the_table() -> None:
    contrast = {"arm": "distilled", "against": "hard", "isolates": "the teacher"}
    study = GRID.model_copy(update={"contrasts": ()})
    twice = Study.model_validate_json(json.dumps(study.model_dump(mode="json") | {"contrasts": [contrast]}))
    runs = runs_of({"hard": {0: 50.0, 1: 54.0, 2: 52.0}, "distilled": {0: 53.0, 1: 57.5, 2: 54.5}})
    assert len(summarise(twice, runs, IMAGES).comparisons) == 2 * len(summarise(study, runs, IMAGES).comparisons)
    assert table_csv(summarise(twice, runs, IMAGES)) == table_csv(summarise(study, runs, IMAGES))


def test_a_student_is_compared_with_the_baseline_that_has_it() -> None:
    arms = [{"name": "one"}, {"name": "other"}, {"name": "both"}]
    study = Study.model_validate_json(json.dumps({"title": "x", "baseline": ["one", "other"], "arms": arms}))
    runs = [
        run_result("one", 0, 50.0, learners=("a",), seconds=6.0),
        run_result("other", 0, 40.0, learners=("b",), seconds=4.0),
        run_result("both", 0, 60.0, learners=("a", "b", ENSEMBLE), seconds=8.0),
    ]
    summary = summarise(study, runs, IMAGES)
    assert [(entry.learner, entry.against) for entry in main_comparisons(summary, "last")] == [("a", "one"), ("b", "other")]
    assert {entry.difference.verdict for entry in summary.comparisons} == {"too few runs"}
    cost = next(entry for entry in summary.costs if entry.arm == "both")
    assert cost.ratios == {"one": pytest.approx(8 / 6), "other": 2.0}
    assert cost.to_sum == pytest.approx(0.8)


def test_numbered_students_are_compared_within_their_architecture() -> None:
    assert counterpart("resnet18-2", ["mobilenet_v2", "resnet18"]) == "resnet18"
    assert counterpart("resnet18-2", ["resnet18-1", "resnet18-2"]) == "resnet18-2"
    assert counterpart("resnet18", ["resnet18-1", "resnet18-2"]) == "resnet18-1"
    assert counterpart(ENSEMBLE, ["resnet18"]) is None
    assert counterpart("squeezenet1_1", ["squeezenet1_0"]) is None


def test_runs_survive_json() -> None:
    run = run_result("a", 3, 71.3, learners=("x", "y"))
    assert RunResult.of(json.loads(json.dumps(run.to_dict()))) == run


def test_number_formats() -> None:
    assert [signed(value, 2) for value in (0.126, -0.126, 0.001, -0.001)] == ["+0.13", "−0.13", "0.00", "0.00"]
    assert interval(-1.0, 2.0, 2) == "[−1.00, +2.00]"
    last = summarise(GRID, runs_of({"hard": {0: 50.0, 1: 52.0}}), IMAGES).arm_summaries[0].last
    assert mean_sd(last) == "51.00 ± 1.41"


# Running


def context(out: Path, dataset: DatasetFolder, teacher: TeacherFolder | None, **options: object) -> StudyContext:
    path = None if teacher is None else teacher.path
    return StudyContext(data=dataset.path, folder=StudyFolder(out=out, name="grid"), device=CPU, teacher=path, **options)  # type: ignore[arg-type]


class StopAfterCalls:
    """Requests a stop after so many calls."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder, teacher: TeacherFolder) -> Path:
    """A study that nothing interrupted."""
    out = tmp_path_factory.mktemp("study")
    where = context(out, dataset, teacher)
    progress = run_study(small_plan(), where)
    assert progress == Progress(finished=6, total=6)
    write_result(small_plan(), where, progress)
    return out


def test_a_study_that_is_stopped_again_and_again_gives_the_same_table(
    tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, finished: Path
) -> None:
    stops = 0
    while True:
        where = context(tmp_path, dataset, teacher, stopped=StopAfterCalls(5))
        progress = run_study(small_plan(), where)
        if progress.complete:
            break
        stops += 1
        assert stops < 20
    assert stops >= 4
    write_result(small_plan(), where, progress)
    assert (tmp_path / "grid" / "table.csv").read_bytes() == (finished / "grid" / "table.csv").read_bytes()


def test_finished_runs_are_not_repeated(dataset: DatasetFolder, teacher: TeacherFolder, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in sorted(finished.glob("runs/*/checkpoints/*"))}
    assert len(before) == 8  # four runs: the third arm is the second
    assert run_study(small_plan(), context(finished, dataset, teacher)).complete
    assert {path: path.stat().st_mtime_ns for path in sorted(finished.glob("runs/*/checkpoints/*"))} == before
    assert len(list((finished / "caches").iterdir())) == 2  # one cache and its cost file


def test_stored_numbers_equal_those_of_the_runs(dataset: DatasetFolder, teacher: TeacherFolder, finished: Path) -> None:
    values = json.loads((finished / "grid" / "study.json").read_text())
    assert len(values["runs"]) == 6
    assert str(finished) not in json.dumps(values)
    assert str(dataset.path) not in json.dumps(values)
    for row, trial in zip(values["runs"], small_plan().trials, strict=True):
        run = RunFolder.open(run_path(trial, dataset, teacher, StudyFolder(out=finished, name="grid")))
        curve = [epoch["val"]["students"][0]["top1"] for epoch in run.metrics()]
        assert row["outcomes"][0]["curve"] == curve
        assert row["outcomes"][0]["last"] == curve[-1]
        assert row["outcomes"][0]["best"] == max(curve)
    table = list(csv.DictReader(io.StringIO((finished / "grid" / "table.csv").read_text())))
    assert {row["arm"] for row in table} == {"hard", "distilled", "distilled again"}
    same = next(row for row in table if row["against"] == "distilled again" and row["figure"] == "last")
    assert (same["difference_mean"], same["verdict"]) == ("0", "too few runs")


def test_every_statistic_by_scipy_from_the_runs_files(
    tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, finished: Path
) -> None:
    """Only the stored numbers are the product's: runs' metrics, SciPy's t, splitmix64 on Python's integers."""
    for number, path in enumerate(sorted(shutil.copytree(finished, tmp_path / "out").glob("runs/*/metrics.jsonl"))):
        rows = RunFolder.open(path.parent).metrics()
        for row in rows:  # the accuracies of so small a study may all be equal
            row["val"]["students"][0]["top1"] = 40.0 + 7.3 * np.sin(3 * number + row["epoch"])
        path.write_bytes(b"".join(map(dump_checked_line, rows)))
    finished = tmp_path / "out"
    write_result(small_plan(), context(finished, dataset, teacher), Progress(finished=6, total=6))
    values = json.loads((finished / "grid" / "study.json").read_text())
    top1: dict[tuple[str, int], float] = {}
    seconds: dict[tuple[str, int], float] = {}
    for run in values["runs"]:
        rows = [json.loads(line) for line in (finished / "runs" / run["run"] / "metrics.jsonl").read_text().splitlines()]
        top1[run["arm"], run["seed"]] = rows[-1]["val"]["students"][0]["top1"]
        steps = [0, *(row["step"] for row in rows)]
        images = [8 * (after - before) for before, after in itertools.pairwise(steps)]
        seconds[run["arm"], run["seed"]] = sum(n / row["images_per_s"] for n, row in zip(images, rows, strict=True))
    table = list(csv.DictReader(io.StringIO((finished / "grid" / "table.csv").read_text())))
    for row in table:
        accuracies = np.array([top1[row["arm"], seed] for seed in (0, 1)])
        assert float(row["top1_last_mean"]) == pytest.approx(accuracies.mean(), rel=1e-5)
        assert float(row["top1_last_sd"]) == pytest.approx(accuracies.std(ddof=1), rel=1e-5)
        if row["figure"] != "last":
            continue
        apart = accuracies - np.array([top1[row["against"], seed] for seed in (0, 1)])
        assert float(row["difference_mean"]) == pytest.approx(apart.mean(), rel=1e-5)
        assert float(row["difference_sd"]) == pytest.approx(apart.std(ddof=1), rel=1e-5)
        reach = scipy.stats.t.ppf(0.975, 1) * apart.std(ddof=1) / np.sqrt(2)
        assert float(row["t_low"]) == pytest.approx(apart.mean() - reach, rel=1e-4, abs=1e-9)
        assert float(row["t_high"]) == pytest.approx(apart.mean() + reach, rel=1e-4, abs=1e-9)
        draws = [slow_key(0, 6, draw) for draw in range(10_000)]
        picks = [[int(slow_uniform(name, index) * 2) for index in (0, 1)] for name in draws]
        low, high = np.quantile(apart[np.array(picks)].mean(axis=1), [0.025, 0.975])
        assert (float(row["bootstrap_low"]), float(row["bootstrap_high"])) == pytest.approx((low, high), rel=1e-5)
    costs = list(csv.DictReader(io.StringIO((finished / "grid" / "cost.csv").read_text())))
    means = {arm: np.mean([seconds[arm, seed] for seed in (0, 1)]) for arm in ("hard", "distilled", "distilled again")}
    for row in costs:
        assert float(row["seconds_mean"]) == pytest.approx(means[row["arm"]], rel=1e-5)
        if row["against"]:
            assert float(row["seconds_ratio"]) == pytest.approx(means[row["arm"]] / means[row["against"]], rel=1e-5)
    assert any(row["figure"] == "last" and float(row["difference_sd"]) > 0 for row in table)


def test_a_teacher_is_fitted_once(tmp_path: Path, dataset: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_only(monkeypatch)
    study = GRID.model_copy(update={"arms": GRID.arms[1:2], "baseline": (), "contrasts": (), "seeds": (0,)})
    plan = make_plan("grid", study, overrides=[*SMALL, "fit.architecture='squeezenet1_1'", "fit.epochs=1", "train.epochs=1"])
    assert not run_study(plan, context(tmp_path, dataset, None, stopped=StopAfterCalls(1))).complete
    assert list(tmp_path.glob("teachers/*/run/checkpoints/last.json"))
    where = context(tmp_path, dataset, None)
    progress = run_study(plan, where)
    assert progress.complete
    (file,) = tmp_path.glob("teachers/*/teacher.json")
    stamp = file.stat().st_mtime_ns
    write_result(plan, where, progress)
    assert run_study(plan, context(tmp_path, dataset, None)).complete
    assert file.stat().st_mtime_ns == stamp
    distilled = json.loads((tmp_path / "grid" / "study.json").read_text())["teacher"]
    assert (distilled["architecture"], distilled["fit_epochs"]) == ("squeezenet1_1", 1)


def test_a_failed_run_does_not_stop_the_others(
    tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_only(monkeypatch)
    hot = GRID.arms[0].model_copy(update={"name": "hot", "set": (*GRID.arms[0].set, "students.0.lr=1e30")})
    study = GRID.model_copy(update={"arms": (hot, GRID.arms[0]), "contrasts": (), "seeds": (0,)})
    where = context(tmp_path, dataset, teacher)
    progress = run_study(small_plan(study), where)
    assert (progress.finished, progress.total) == (1, 2)
    assert "is not finite" in progress.failed["hot, seed 0"]
    page = write_result(small_plan(study), where, progress).page.read_text()
    assert "Unfinished: 1 of 2 runs are done" in page
    assert "is not finite" in page


def test_other_data_gives_other_runs(tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, finished: Path) -> None:
    other = make_dataset(tmp_path, per_class=5, val_per_class=2)
    trial = small_plan().trials[0]
    folder = StudyFolder(out=finished, name="grid")
    assert run_path(trial, other, teacher, folder) != run_path(trial, dataset, teacher, folder)
    assert not run_path(trial, other, teacher, folder).exists()


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder) -> None:
    shutil.copytree(teacher.path, tmp_path / "t")
    rewrite_json(tmp_path / "t" / "teacher.json", lambda values: values | {"classes": ["x", *values["classes"][1:]]})
    with pytest.raises(MismatchError, match="class 0"):
        run_study(small_plan(), context(tmp_path / "out", dataset, TeacherFolder.open(tmp_path / "t")))


# The page


def page_of(tmp_path: Path, finished: Path, arms: dict[str, dict[int, float]], val_images: int = IMAGES) -> str:
    values = json.loads((finished / "grid" / "study.json").read_text())
    values["data"]["val_images"] = val_images
    values["runs"] = [run.to_dict() for run in runs_of(arms)]
    return write_page(tmp_path, values).read_text()


def test_the_page_claims_only_what_intervals_allow(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_only(monkeypatch)
    unclear = page_of(tmp_path, finished, {"hard": {0: 50.0, 1: 54.0, 2: 52.0}, "distilled": {0: 52.0, 1: 54.5, 2: 53.0}})
    assert "improves" not in unclear  # bootstrap +0.5 to +2.0, Student's t holds 0
    assert "No top-1 difference from the baseline has intervals that exclude 0." in unclear
    single = page_of(tmp_path, finished, {"hard": {0: 50.0}, "distilled": {0: 99.0}})
    assert "improves" not in single
    assert "Fewer than 3 seeds allow no verdict on top-1." in single
    assert "Fewer than 3 seeds: too few for a verdict." in single
    even = page_of(tmp_path, finished, {"hard": {0: 50.0, 1: 54.0}, "distilled": {0: 42.0, 1: 46.0}})
    assert "worsens" not in even
    assert "Fewer than 3 seeds allow no verdict on top-1." in even
    few = page_of(tmp_path, finished, {"hard": {0: 50.0, 1: 54.0, 2: 52.0}, "distilled": {0: 53.0, 1: 57.1, 2: 54.9}}, 150)
    assert "improves" not in few
    assert "as large as 6 validation images" in few
    clear = page_of(tmp_path, finished, {"hard": {0: 50.0, 1: 54.0, 2: 52.0}, "distilled": {0: 53.0, 1: 57.1, 2: 54.9}})
    assert "Against “hard”: “distilled” improves a by 3.00 points; every difference is clear." in clear
    worse = page_of(tmp_path, finished, {"hard": {0: 53.0, 1: 57.1, 2: 54.9}, "distilled": {0: 50.0, 1: 54.0, 2: 52.0}})
    assert "improves" not in worse
    assert "“distilled” worsens a by 3.00 points" in worse


def test_a_study_of_cost_shows_cost_first(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_only(monkeypatch)
    values = json.loads((finished / "grid" / "study.json").read_text())
    values["study"] |= {"asks": "cost"}
    values["runs"] = [
        run_result(arm, 0, 50.0, seconds=seconds).to_dict() for arm, seconds in (("hard", 8000.0), ("distilled", 12000.0))
    ]
    (name,) = values["caches"]
    values["caches"][name] = {"images": 240.0, "seconds": 720.0}
    values["study"]["arms"][1]["paper_hours"] = 12.36
    page = write_page(tmp_path, values).read_text()
    assert "“distilled” trains 1.50 times as long as “hard”." in page
    assert page.index("Training time</h3>") < page.index("Conclusions</h2>")
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    # 24 images, one view: a tenth of what the cache computed, hence 72 s = 0.02 hours.
    assert "distilled 1 100 3.33 0.02 12.36 1.50 × hard" in text


def test_table_2_has_the_runs_of_table_1() -> None:
    plans = [make_plan(name, load_study(name)) for name in ("table1", "table2")]
    names = [[trial.run_name("data", "teacher") for trial in plan.trials] for plan in plans]
    assert names[0] == names[1]
    assert len(set(names[0])) == 9
    assert [arm.paper_hours for arm in plans[1].arms] == [7.58, 7.50, 12.36]


def test_a_stored_study_gives_its_page_again(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_only(monkeypatch)
    shutil.copy(finished / "grid" / "study.json", tmp_path)
    page = rewrite_page(tmp_path)
    assert page == tmp_path / "index.html"
    assert "A grid" in page.read_text()
    (tmp_path / "study.json").write_text("{}\n")
    with pytest.raises(RunError, match=r"cannot be read .*; expected the result of udkd study; run the study again"):
        rewrite_page(tmp_path)


def test_a_study_file_of_before_0_1_0_names_the_new_keys(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("title = 'x'\nasks = 'cost'\n[[arms]]\nname = 'a'")
    with pytest.raises(ConfigError, match="asks is not a key of a study; expected its new name, metric; correct it"):
        load_study(str(tmp_path / "s.toml"))


def test_a_stored_study_keeps_its_keys() -> None:
    study = load_study("cache-policy")
    values = study.stored()
    assert (values["asks"], [arm["exact"] for arm in values["arms"]]) == ("cost", [False] * 4 + [True] * 2)
    assert Study.of_stored(values) == study


def test_the_page_is_self_contained(finished: Path) -> None:
    page = (finished / "grid" / "index.html").read_text()
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page)
    assert "<script" not in page
    assert not re.search(r"url\((?!#|data:)", page)
    assert (finished / "grid" / "difference-1.png").read_bytes().startswith(b"\x89PNG")
    assert str(finished) not in page


def test_the_page_shows_every_run_and_escapes_names(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_only(monkeypatch, "*")
    values = json.loads((finished / "grid" / "study.json").read_text())
    values["runs"] = [run_result("hard", 0, 51.23, learners=("<b>$x_1$</b>",)).to_dict()]
    values["study"]["title"] = "A & <i>B</i>"
    page = write_page(tmp_path, values).read_text()
    assert "<b>$x" not in page
    assert "&lt;i&gt;B" in page
    assert "51.23" in page


def test_table_rows_of_an_arm_without_a_baseline() -> None:
    lines = list(csv.DictReader(io.StringIO(table_csv(summarise(GRID, runs_of({"hard": {0: 50.0}}), IMAGES)))))
    assert len(lines) == 1
    assert lines[0]["verdict"] == ""
    assert lines[0]["top1_last_mean"] == "50"


def test_names_in_a_csv_hold_no_control_characters() -> None:
    assert csv_text(("arm", "n"), [("a\x1b[31m\nb,\u202e", 3)]) == 'arm,n\n"a\\x1b[31m\\x0ab,\\u202e",3\n'


FOLDER_NAMES = """
deit-small-style cf600787bca6 139fb459b6a6 views-07158888f10d
funmatch 761784e2892e a3151a35e8d5 views-6c970847d8bc
imagenet100-fast 7af155ce1efa f2cfaa6fdc2e canonical-99ecf6e0f35f
imagenet100-paper f86d7f98ada8 55df405dfc22 canonical-b23c2b8d323c
imagenet100-strong a4553de0e59d 09fae0ea44c5 views-b4f79206e67d
quickstart 45332f6b136e 1e7b6134ac5f canonical-d0a8c6df10a0
smoke 6fa5b73d0185 7668c19e5e1a canonical-5621c7c69bd8
study-cpu ea9d41f0de2a 0893d5d5dc8d canonical-248dc19fb1f9
tiny-imagenet-100 63f101685843 04e2dfadbef9 canonical-f64bc6f5cf7c
tiny-imagenet-100-cpu 77a243454347 9d03ecfec7fd canonical-b83040989c94
"""


@pytest.mark.parametrize(
    ("recipe", "names"),
    [pytest.param(name, names, id=name) for name, *names in (line.split() for line in FOLDER_NAMES.strip().splitlines())],
)
def test_folders_keep_their_names(recipe: str, names: list[str]) -> None:
    """Names of teacher, run and cache folders as the recipe's first version gave them: keys added since must not move them."""
    loaded = load_recipe(recipe)
    trial = Trial(arm="a", seed=0, recipe=loaded)
    assert [teacher_name(loaded, "d"), trial.run_name("d", "t"), trial.cache_name("d", "t")] == names
