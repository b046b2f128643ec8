"""OUT/STUDY: study.json, table.csv, cost.csv and the page."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from udkd.data.dataset import DatasetFolder
from udkd.study.plan import StudyPlan
from udkd.study.results import Summary, load_results, summarise
from udkd.study.runner import POLL_S, Progress, StudyContext, find_teacher
from udkd.study.tables import cost_csv, table_csv
from udkd.study.to_json import to_json
from udkd.utils.errors import BusyError
from udkd.utils.files import FolderLock, write_json, write_text


@dataclass(frozen=True, kw_only=True)
class StudyOutput:
    """A study's statistics, and the path of its page."""

    summary: Summary
    page: Path


def write_result(plan: StudyPlan, context: StudyContext, progress: Progress) -> StudyOutput:
    """Load all finished runs and rewrite the result's files."""
    from udkd.study.page import write_page  # matplotlib takes a second

    dataset = DatasetFolder.open(context.data)
    teacher = find_teacher(plan.base, dataset, context) if plan.needs_teacher else None
    ready = teacher is not None or not plan.needs_teacher
    runs = load_results(plan, dataset, teacher, context.folder) if ready else []
    summary = summarise(plan.study, runs, len(dataset.split("val").ids))
    folder = context.folder.result
    values = to_json(
        plan, dataset=dataset, teacher=teacher, folder=context.folder, progress=progress, runs=runs, summary=summary
    )
    with _locked(folder):
        write_json(folder / "study.json", values)
        write_text(folder / "table.csv", table_csv(summary))
        write_text(folder / "cost.csv", cost_csv(summary))
        return StudyOutput(summary=summary, page=write_page(folder, values))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for the folder's lock and hold it: writing takes seconds, and the last process has loaded the most runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            with contextlib.suppress(BusyError):
                stack.enter_context(FolderLock(folder))
                break
            time.sleep(POLL_S)
        yield
