"""The benchmarks: their computations, and small runs of seconds."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu, loader, report
from benchmarks.common.baseline_script import kl_loss, train_steps
from benchmarks.common.harness import canvases, make_step, paper_recipe, synthetic_targets
from benchmarks.common.results import BenchmarkResult
from benchmarks.common.roofline import Peaks, build_on_meta, network_cost
from benchmarks.common.synthetic_images import image_folder
from benchmarks.common.timing import Timed, Variant, side_by_side
from benchmarks.cost import DUAL, FOLDED, LIVE_DUAL, MOBILENET_ONLY, RESNET_ONLY, SINGLE, hours, ratios
from benchmarks.loaders import torchvision_loader
from tests.timeouts import scaled
from udkd.data_prep.synth import synth
from udkd.losses.distill import divergence
from udkd.utils.errors import DataError

CPU = torch.device("cpu")


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v2", pytest.param("resnet50", marks=pytest.mark.long)])
def test_operation_counts_match_pytorch(architecture: str) -> None:
    ours = network_cost(architecture, 64, 100, Peaks(flops=1.0, bytes_per_s=1e30), training=False, item_bytes=2)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build_on_meta(architecture, 100).eval()(torch.empty(1, 3, 64, 64))
    assert ours.flops == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert ours.seconds == pytest.approx(ours.flops)
    training = network_cost(architecture, 64, 100, Peaks(flops=1.0, bytes_per_s=1e30), training=True, item_bytes=2)
    assert 2.8 * ours.flops < training.flops < 3 * ours.flops


def test_ratios_are_medians_within_rounds_and_hours_include_the_cache() -> None:
    seconds = {DUAL: (2.0, 8.0, 2.0), SINGLE: (1.0, 8.0, 2.0), FOLDED: (1.0,) * 3, LIVE_DUAL: (3.0, 3.0, 3.0)}
    seconds |= {RESNET_ONLY: (1.0, 4.0, 1.0), MOBILENET_ONLY: (1.0, 4.0, 3.0)}
    timed = [Timed(name=name, items=10, seconds=values) for name, values in seconds.items()]
    medians = ratios(timed)
    assert medians["cached dual / live single"] == 1.0
    assert medians["cached dual / sum of the cached singles"] == 1.0
    assert medians["cached dual / cached single"] == 2.0
    projected = hours(timed, teacher_per_s=130.0)
    assert projected["of which the cache"] == pytest.approx(1000 / 3600)
    assert projected[DUAL] == pytest.approx(50 * 130_000 / 5 / 3600 + 1000 / 3600)
    assert projected[SINGLE] == pytest.approx(50 * 130_000 / 5 / 3600)


def test_the_baseline_script_uses_the_papers_loss(tmp_path: Path) -> None:
    student, teacher = (torch.rand(3, 10, generator=torch.Generator().manual_seed(n)) * 6 for n in range(2))
    soft = [torch.log_softmax(z / 4, -1) for z in (student, teacher)]
    torch.testing.assert_close(kl_loss(student, teacher), 16 * divergence(*soft, "reverse"), rtol=1e-4, atol=1e-6)
    tree = image_folder(tmp_path, 4, classes=2, val=0)
    trained = train_steps(tree, px=32, batch=2, workers=0, amp=False, classes=10, device=CPU)
    assert [next(trained) for _ in range(3)] == [2, 2, 2]


@pytest.mark.parametrize("settings", [(), ('train.input="resident"',), ('teacher.source="live"', "teacher.views=1")])
def test_the_harness_takes_steps(settings: tuple[str, ...]) -> None:
    alone = 'students=[{architecture="squeezenet1_1"}]'
    recipe = paper_recipe(CPU, 'train.compile="off"', alone, *settings, px=32, batch=4)
    step = make_step(recipe, canvases(8, 36, CPU), CPU, architecture="squeezenet1_1")
    assert [step.run() for _ in range(3)] == [4, 4, 4]


def test_the_loader_benchmark_needs_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images, without FFCV, DALI and the DataLoader's processes, which take seconds to import."""
    for package in ("ffcv", "nvidia.dali"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(loader, "synth", lambda folder, **options: synth(folder, **options | {"images": 20}))
    monkeypatch.setattr(torchvision_loader, "image_loop", lambda *given: lambda count: count)
    loader.main(sides=[64], images=1, threads=[1], batch=10, rounds=1, device="cpu", results=tmp_path)
    (path,) = tmp_path.glob("loader-*.json")
    stored = json.loads(path.read_text())
    assert [row["variant"] for row in stored["rows"]] == ["resident", "ffcv", "folder", loader.DATALOADER]
    assert stored["facts"]["images of synthetic"].startswith("20, on average ")
    assert list(tmp_path.glob("loader-*.png"))


def test_canvases_and_targets_are_the_same_each_time() -> None:
    first, second = canvases(3, 16, CPU), canvases(3, 16, CPU)
    assert torch.equal(first.canvas, second.canvas)
    assert first.canvas.float().std() > 10
    assert float(synthetic_targets(5, CPU).weight.mean()) > 0


PIPELINE = (
    "pipeline --rounds 1 --batch 2 --px 32 --side 36 --backend resident --backend folder --set 'train.compile=\"off\"' "
    "--set 'students=[{architecture=\"squeezenet1_1\"}]'"
)


@pytest.fixture(scope="module")
def gpu_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a GPU set of two parts, one of which fails."""
    folder = tmp_path_factory.mktemp("gpu")
    gpu.main(budget_s=int(scaled(200)), device="cpu", parts=[PIPELINE, "lose --batch 8"], results=folder)
    return folder


def test_efficiency_of_each_backend_is_measured(gpu_set: Path) -> None:
    (path,) = gpu_set.glob("pipeline-*.json")
    facts = json.loads(path.read_text())["facts"]
    assert set(facts) == {"efficiency of resident", "efficiency of folder"}
    assert all(value > 0 for value in facts.values())
    assert list(gpu_set.glob("pipeline-*.png"))


def test_the_gpu_set_keeps_finished_results(gpu_set: Path) -> None:
    (path,) = gpu_set.glob("gpu-*.json")
    facts = json.loads(path.read_text())["facts"]
    assert facts[PIPELINE].endswith(" s")
    assert facts["lose --batch 8"].startswith("failed after")
    assert "(see gpu-1.log)" in facts["lose --batch 8"]
    assert "'lose'" in (gpu_set / "gpu-1.log").read_text()
    assert [result["name"] for result in facts["results"]] == ["pipeline"]
    assert not [entry for entry in gpu_set.iterdir() if entry.is_dir()]


def test_parts_never_started_come_before_those_that_failed() -> None:
    parts = [gpu.Part(command, 10) for command in ("failed", "finished", "skipped", "new")]
    facts = {"failed": "stopped after 10 s; …", "finished": "7 s", "skipped": gpu.SKIPPED}
    assert [part.command for _, part in gpu.unfinished_parts(parts, facts)] == ["skipped", "new", "failed"]
    assert [number for number, _ in gpu.unfinished_parts(parts, facts)] == [2, 3, 0], "their numbers do not change"


@pytest.mark.parametrize(
    ("commit", "speeds"), [("abc", {"old": 1.0, "both": 3.0, "new": 4.0}), ("unknown", {"both": 3.0, "new": 4.0})]
)
def test_rows_of_one_commit_are_merged_without_duplicates(tmp_path: Path, commit: str, speeds: dict[str, float]) -> None:
    def result(folder: Path, rows: dict[str, float]) -> None:
        folder.mkdir(exist_ok=True)
        all_rows = [{"variant": name, "batch": 8, "items_per_s": speed, "seconds": {}} for name, speed in rows.items()]
        machine = {"commit": commit}
        (folder / "step-x.json").write_text(json.dumps({"machine": machine, "rows": all_rows, "facts": rows}))

    result(tmp_path / "results", {"old": 1.0, "both": 2.0})
    result(tmp_path / "part", {"both": 3.0, "new": 4.0})
    gpu.merge_results(tmp_path / "part", tmp_path / "results")
    merged = json.loads((tmp_path / "results" / "step-x.json").read_text())
    assert {row["variant"]: row["items_per_s"] for row in merged["rows"]} == speeds
    assert len(merged["rows"]) == len(speeds)


def test_continuing_the_gpu_set_keeps_finished_parts(tmp_path: Path) -> None:
    parts = ["loss --batch 8 --classes 10 --rounds 1", "loss --batch 16 --classes 10 --rounds 1"]
    earlier = BenchmarkResult.begin("gpu", "nothing", CPU, {})
    earlier.facts = {parts[0]: "7 s", "results": [{"name": "kept"}]}
    (tmp_path / "results").mkdir()
    path = earlier.write(tmp_path / "results")
    gpu.main(budget_s=2, device="cpu", parts=parts, rest=True, results=tmp_path / "results")
    facts = json.loads(path.read_text())["facts"]
    assert facts == {parts[0]: "7 s", parts[1]: "skipped: out of time", "results": [{"name": "kept"}]}


def test_a_part_that_exceeds_its_time_is_killed_with_its_processes(tmp_path: Path) -> None:
    outcome = gpu.run(gpu.Part("loss --batch 8 --classes 10", 1), "cpu", tmp_path / "gpu-0", 0.3)
    assert outcome.startswith("stopped after 0 s")


def test_prepare_is_called_before_each_timed_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)
    calls: list[str] = []
    variant = Variant("a", lambda: calls.append("run"), prepare=lambda: calls.append("prepare"))
    side_by_side([variant], CPU, rounds=2, warmup=1, min_span_s=0)
    assert calls == ["run", *["prepare", "run"] * 3]


def result(name: str, kind: str, **more: Any) -> dict[str, Any]:
    machine = {
        "slug": f"one-{kind}",
        "hardware": {"type": kind, "device": "NVIDIA H200" if kind == "cuda" else "Some CPU", "cores": 2},
        "versions": {"torch": "2.14.1"},
        "date": "2026-11-24T00:00:00+00:00",
        "commit": "abc",
        "load_average_at_start": 1.0,
    }
    return {"format": 1, "name": name, "machine": machine, "rows": [], "facts": {}} | more


def test_the_report_names_hardware_and_leaves_gaps(tmp_path: Path) -> None:
    results, page = tmp_path / "results", tmp_path / "speed.md"
    results.mkdir()
    row = {"variant": "compiled", "batch": 256, "classes": 100, "ratio": {"median": 0.25}}
    (results / "loss-one-cpu.json").write_text(json.dumps(result("loss", "cpu", rows=[row])))
    facts = {"ratios at 64 px, batch 16": {"cached dual / live single": 0.98}}
    (results / "cost-one-cpu.json").write_text(json.dumps(result("cost", "cpu", facts=facts)))
    page.write_text(f"before\n{report.BEGIN}\nstale\n{report.END}\nafter\n")
    report.main(page, results, check=False)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "stale" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("| cached dual / live single |")]
    assert line == "| cached dual / live single | 1.63 (live) | 0.98 (64 px, batch 16) |"
    assert "| the paper | 2 cores, Some CPU |" in text
    assert report.NOT_MEASURED not in text, "what no machine has measured is named in a sentence"
    assert "No GPU has been measured yet" in text
    assert "step without channels_last" in next(line for line in text.splitlines() if line.startswith("No machine"))
    assert "4.0" in next(line for line in text.splitlines() if line.startswith("| compiled loss"))
    report.main(page, results, check=True)
    (results / "cost-one-cuda.json").write_text(json.dumps(result("cost", "cuda", facts=facts)))
    with pytest.raises(DataError, match="differs from the results"):
        report.main(page, results, check=True)
    report.main(page, results, check=False)
    text = page.read_text()
    assert "| NVIDIA H200 | 2 cores, Some CPU |" in text
    assert "No GPU" not in text
    assert f"| {report.NOT_MEASURED} | 4.0 |" in next(line for line in text.splitlines() if line.startswith("| compiled loss"))
    page.write_text("no markers")
    with pytest.raises(DataError, match="lacks its markers"):
        report.main(page, results, check=False)


def test_the_documentation_has_the_table_of_the_results() -> None:
    report.main(report.RESULTS.parents[1] / "docs" / "speed.md", report.RESULTS, check=True)
