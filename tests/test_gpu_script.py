"""scripts/gpu.sh, run on the CPU from a bare copy of the tree: it keeps its time limit and packs the results."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.timeouts import scaled

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A copy of the code without .git and other files."""
    for name in ("udkd", "data_prep", "benchmarks", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / "tree" / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    return tmp_path / "tree"


def call(bare: Path, *arguments: object, **variables: object) -> subprocess.CompletedProcess[str]:
    given = {"OUT": bare.parent / "out", "PYTHON3": sys.executable, "DEVICE": "cpu", **variables}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {name: str(value) for name, value in given.items()}
    return subprocess.run(
        [bare / "scripts/gpu.sh", *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("arguments", [(), ("first",), ("second", 60), ("first", "soon"), ("first", 5)])
def test_bad_arguments_print_the_usage(bare: Path, arguments: tuple[object, ...]) -> None:
    done = call(bare, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: scripts/gpu.sh first|bench|study SECONDS")


@pytest.mark.parametrize("step", ["first", "bench", "study"])
def test_results_are_packed_after_a_failure(bare: Path, step: str) -> None:
    """A Python that leaves half a result and fails."""
    broken = bare.parent / "python"
    broken.write_text(f"#!/bin/sh\necho half > {bare}/.gpu/work/{step}/half.json\nexit 7\n")
    broken.chmod(0o755)
    (bare / ".gpu/tars").mkdir(parents=True)
    with tarfile.open(bare / ".gpu/tars/val.tar.xz", "w:xz"):
        pass
    done = call(bare, step, 60, PYTHON3=broken)
    assert done.returncode == 7, done
    with tarfile.open(bare.parent / f"out/{step}.tgz") as packed:
        assert f"{step}/half.json" in packed.getnames()


def test_a_copy_with_a_text_file_for_the_link(bare: Path) -> None:
    shutil.rmtree(bare / "udkd/data_prep")
    (bare / "udkd/data_prep").write_text("../data_prep")
    call(bare, "first", 60, PYTHON3="false")
    assert (bare / "udkd/data_prep/__init__.py").is_file()


@pytest.mark.long
def test_everything_runs_that_needs_no_gpu(bare: Path) -> None:
    done = call(bare, "first", round(scaled(900)))
    assert done.returncode == 0, done
    with tarfile.open(bare.parent / "out/first.tgz") as packed:
        (name,) = (name for name in packed.getnames() if name.endswith(".json") and name.count("/") == 1)
        file = packed.extractfile(name)
        assert file
        facts = json.load(file)["facts"]
    assert {line.split(",")[0].split(":")[0] for line in facts.values()} == {"passed", "skipped", "the same bits"}
    assert facts["stream = live"] == facts["stream = resident"] == "the same bits"
    assert "cuda-graph" in done.stdout
