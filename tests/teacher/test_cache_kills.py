"""SIGKILL at 20 random moments of real builds, also within a write, an fsync and a rename: the bytes are those of one build."""

import json
import signal
from pathlib import Path

import pytest

from tests.cli.commands import run
from tests.teacher.cache_fixtures import make_dataset, make_teacher, views_of
from tests.teacher.cache_fixtures import run as build
from tests.teacher.kill_harness import KILLS, VIEWS


def test_twenty_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udkd.teacher.cache.build.BLOCK_ROWS", 8)
    dataset, teacher = make_dataset(tmp_path / "data"), make_teacher(tmp_path / "teacher")
    done = run(dataset.path, teacher.path, tmp_path / "killed", module="tests.teacher.kill_harness")
    assert done.code == 0, done
    attempts = json.loads(done.out)
    killed = [each for each in attempts if each["code"] == -signal.SIGKILL]
    assert all(each["code"] in (0, -signal.SIGKILL) for each in attempts)
    assert attempts[-1]["code"] == 0
    assert len(killed) >= KILLS // 4, "builds were hit before they ended"
    assert any(each["after"] > 0 for each in killed)
    assert all(each["after"] >= each["before"] + each["reported"] for each in attempts), "a block reported as done was lost"
    # A kill costs at most the current block: all builds together computed at most each block once and one per kill.
    complete = build(tmp_path / "complete", dataset, teacher, VIEWS)
    blocks = attempts[-1]["after"]
    assert sum(each["reported"] for each in attempts) <= blocks
    assert complete.views == tuple(range(VIEWS))
    assert views_of(tmp_path / "killed") == views_of(tmp_path / "complete")
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {path.name for path in (tmp_path / "complete").iterdir()}
