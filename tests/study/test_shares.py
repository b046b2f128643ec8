"""Shares of a study's runs: each run once, without a lock; teacher and caches before; results that no other share damages."""

import fcntl
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forks import forked
from tests.report.pages import draw_only
from tests.study.test_study import CPU, GRID, SMALL, StopAfterCalls
from udkd.data.dataset import DatasetFolder
from udkd.study import writer
from udkd.study.folder import StudyFolder
from udkd.study.plan import StudyPlan, make_plan
from udkd.study.processes import StudyProcess
from udkd.study.runner import StudyContext, distinct_runs, prepare_study, run_share, run_study, study_progress
from udkd.study.share import Share
from udkd.study.writer import write_result
from udkd.teacher.folder import TeacherFolder
from udkd.utils.errors import BusyError, ConfigError, RunError
from udkd.utils.files import read_exact_json, write_json

DATASET_IMAGES = {"per_class": 6, "val_per_class": 3}
SHORT = ("train.epochs=1", "train.batch_size=24")


class Notes:
    """An observer that keeps the notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)

    def start(self, task: str, total: int, unit: str) -> None: ...
    def advance(self, count: int, **fields: float | str) -> None: ...
    def finish(self) -> None: ...

    @property
    def trained(self) -> list[str]:
        """The runs that were begun."""
        return [match[1] for line in self.lines if (match := re.match(r"run \d+ of \d+: (.*)", line))]


class NoExclusion(StudyProcess):
    """A process whose locks exclude no other."""

    def require_proof(self) -> None:
        raise BusyError("locks do not exclude")


def plan_of(name: str = "grid", **options: object) -> StudyPlan:
    return make_plan(name, GRID, overrides=[*SMALL, *SHORT], **options)  # type: ignore[arg-type]


Where = Callable[..., StudyContext]


@pytest.fixture
def where(tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder) -> Where:
    def make(name: str = "grid", **options: object) -> StudyContext:
        folder = StudyFolder(out=tmp_path / "out", name=name)
        return StudyContext(data=dataset.path, folder=folder, device=CPU, teacher=teacher.path, **options)  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("text", ["", "1", "1/", "2/2", "-1/2", "0/0", "1/2/3", "a/b", "0x1/2", "1/9999999999", " 1/2"])
def test_a_share_is_two_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--share .*; expected I/N with I from 0 to N - 1, such as 0/4; correct it"):
        Share.parse(text)


def test_shares_are_all_items_once() -> None:
    for count in (1, 2, 3, 7, 20):
        shares = [Share.parse(f"{index}/{count}") for index in range(count)]
        assert shares == Share.all(count)
        assert sorted(item for share in shares for item in share.of(range(13))) == list(range(13))


def test_shares_train_each_run_once_without_locks(where: Where, tmp_path: Path) -> None:
    plan = plan_of()
    assert prepare_study(plan, where())
    trained = []
    for index in (1, 0):
        notes = Notes()
        context = where(share=Share(index=index, count=2), process=NoExclusion(tmp_path), observer=notes)
        (progress,) = run_share([(plan, context)], Share(index=index, count=2))
        trained.append(notes.trained)
        assert progress.failed == {}
        complete = progress.complete
        warnings = [line for line in notes.lines if line.startswith("warning: ")]
        # The second finds nothing left, so it need not ask whether locks exclude.
        assert warnings == ([] if complete else ["warning: locks do not exclude; runs of other shares are left to them"])
    # "distilled again" is the same runs as "distilled": the shares are of 4 runs, in the plan's order.
    assert trained == [["distilled, seed 0", "distilled, seed 1"], ["hard, seed 0", "hard, seed 1"]]
    assert complete


def test_a_share_helps_where_locks_exclude(where: Where, tmp_path: Path) -> None:
    plan, notes, share = plan_of(seeds=[0]), Notes(), Share(index=1, count=2)
    with StudyProcess(tmp_path / "out") as process:
        context = where(share=share, process=process, observer=notes)
        assert prepare_study(plan, context)
        (progress,) = run_share([(plan, context)], share)
    assert progress.complete
    assert notes.trained == ["distilled, seed 0", "hard, seed 0"], "its own first"


def test_shares_count_over_the_runs_of_all_studies(where: Where) -> None:
    """The second study has the first one's runs of seed 0, and others."""
    studies = [(plan_of("one", seeds=[0]), where("one")), (plan_of("two", seeds=[0, 1]), where("two"))]
    runs = [run.name for run, _ in distinct_runs(studies)]
    assert len(runs) == len(set(runs)) == 4
    assert runs[:2] == [run.name for run, _ in distinct_runs(studies[:1])]


def test_a_share_needs_the_teacher_and_the_caches(where: Where, tmp_path: Path, dataset: DatasetFolder) -> None:
    plan, share = plan_of(seeds=[0]), Share(index=0, count=1)
    fitted = StudyContext(data=dataset.path, folder=where().folder, device=CPU)
    remedy = "; expected teacher and caches before --share; run the same command with --only prepare instead"
    with pytest.raises(RunError, match=f"out lacks the teacher of grid{remedy}"):
        run_share([(plan, fitted)], share)
    with pytest.raises(RunError, match=f"out lacks a cache of grid{remedy}"):
        run_share([(plan, where())], share)
    assert not list(tmp_path.glob("out/runs/*"))
    assert prepare_study(plan, where())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["caches"]
    assert run_share([(plan, where())], share)[0].complete


def test_a_stopped_share_resumes(where: Where) -> None:
    plan, share = make_plan("grid", GRID, overrides=SMALL, seeds=[0]), Share(index=0, count=2)
    assert not prepare_study(plan, where(stopped=lambda: True))
    assert prepare_study(plan, where())
    (stopped,) = run_share([(plan, where(stopped=StopAfterCalls(3)))], share)
    assert (stopped.finished, stopped.failed) == (0, {})
    assert run_share([(plan, where())], share)[0].complete


def test_a_failed_run_of_a_share_is_recorded(where: Where) -> None:
    hot = GRID.arms[0].model_copy(update={"set": (*GRID.arms[0].set, "students.0.lr=1e30")})
    study = GRID.model_copy(update={"arms": (hot, GRID.arms[1]), "contrasts": ()})
    plan = make_plan("grid", study, overrides=SMALL, seeds=[0])
    assert prepare_study(plan, where())
    (progress,) = run_share([(plan, where())], Share(index=0, count=2))
    assert "is not finite" in progress.failed["hard, seed 0"]
    assert progress.finished == 1


def test_a_share_writes_what_the_study_writes(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_only(monkeypatch)
    plan = plan_of(seeds=[0])
    progress = run_study(plan, where())
    result = write_result(plan, where(), progress).page.parent
    before = {path.name: path.read_bytes() for path in result.iterdir()}
    (result / "old.png").write_bytes(b"of a page before")
    assert write_result(plan, where(share=Share(index=0, count=1)), study_progress(plan, where())).page == result / "index.html"
    assert {path.name: path.read_bytes() for path in result.iterdir()} == before


def write_often(context: StudyContext, rounds: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda file, operation: None)
        for number in range(rounds):
            with writer._to_write(context) as folder:
                write_json(folder / "study.json", [number] * 20_000)


def test_shares_on_hosts_without_locks_do_not_damage_each_others_results(where: Where) -> None:
    contexts = [where(share=Share(index=index, count=2)) for index in range(2)]
    children = [forked(write_often, context, 60) for context in contexts]
    file = contexts[0].folder.result / "study.json"
    codes: list[int] = []
    while children:
        if file.exists():
            assert len(set(read_exact_json(file))) == 1
        ended, status = os.waitpid(children[0], os.WNOHANG)
        if ended:
            codes.append(os.waitstatus_to_exitcode(status))
            children.remove(ended)
    assert codes == [0, 0]
    assert [path.name for path in file.parent.iterdir()] == ["study.json"]
    assert json.loads(file.read_text())[0] == 59
