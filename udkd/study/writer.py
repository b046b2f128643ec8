"""OUT/STUDY: study.json, table.csv, cost.csv and the page."""

import contextlib
import os
import tempfile
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
from udkd.utils.files import FolderLock, fsync_folder, write_json, write_text


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
    values = to_json(
        plan, dataset=dataset, teacher=teacher, folder=context.folder, progress=progress, runs=runs, summary=summary
    )
    with _to_write(context) as folder:
        write_json(folder / "study.json", values)
        write_text(folder / "table.csv", table_csv(summary))
        write_text(folder / "cost.csv", cost_csv(summary))
        page = write_page(folder, values)
    return StudyOutput(summary=summary, page=context.folder.result / page.name)


@contextlib.contextmanager
def _to_write(context: StudyContext) -> Iterator[Path]:
    """The folder to write the result to.

    A share's own temporary folder, whose files are moved when the block ends: the locks that protect a file while it is written
    may not exclude other shares. Each file is of one process, the last one's.
    """
    result = context.folder.result
    result.mkdir(parents=True, exist_ok=True)
    if context.share is None:
        with _locked(result):
            yield result
        return
    with tempfile.TemporaryDirectory(prefix=".", dir=result) as folder:
        yield Path(folder)
        names = {path.name for path in Path(folder).iterdir()}
        for old in result.glob("*.png"):
            if old.name not in names:
                old.unlink(missing_ok=True)
        for name in sorted(names):
            os.replace(Path(folder, name), result / name)
        fsync_folder(result)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for the folder's lock and hold it: writing takes seconds, and the last process has loaded the most runs."""
    with contextlib.ExitStack() as stack:
        while True:
            with contextlib.suppress(BusyError):
                stack.enter_context(FolderLock(folder))
                break
            time.sleep(POLL_S)
        yield
