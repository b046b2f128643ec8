"""The command line: every mistake is one line, and nothing half-written looks complete."""

import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.cli.commands import ENVIRONMENT, Call, Command, Result, failed, inside, refused, set_options, start
from tests.factories import SMALL, make_dataset, make_teacher, rewrite_json
from tests.timeouts import scaled, wait_until
from tests.training.runs import checkpoint_hash
from udkd.data.dataset import DatasetFolder
from udkd.models.build import build
from udkd.teacher.cache.reader import Cache
from udkd.teacher.folder import TeacherFolder
from udkd.training.run_folder import RunFolder

SETTINGS = set_options(*SMALL)
DATASET_IMAGES = {"per_class": 6, "val_per_class": 3}


@pytest.fixture(scope="module")
def cache(call: Call, tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder, teacher: TeacherFolder) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    result = call("cache", "build", "smoke", "--data", dataset.path, "--teacher", teacher.path, "--out", folder, *SETTINGS)
    assert result.code == 0, result
    assert "mean weight" in result.out
    assert "teacher accuracy" in result.out
    return folder


@pytest.fixture(scope="module")
def finished(call: Call, tmp_path_factory: pytest.TempPathFactory, dataset: DatasetFolder, cache: Path) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    result = call("train", "smoke", "--data", dataset.path, "--cache", cache, "--out", out, *SETTINGS)
    assert result.code == 0, result
    assert result.out == ""
    assert result.last == f"finished: 9 steps, in {out}"
    return out


def test_wrong_names_and_values_are_one_line(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder
) -> None:
    here = functools.partial(inside, capsys)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"

    def train(*arguments: object) -> Result:
        return here("train", "smoke", *arguments, "--out", out)

    data = ("--data", dataset.path)
    refused(call("train", "smoke", "--data", tmp_path / "nowhere", "--out", out), "nowhere is not a folder")
    refused(train("--data", tmp_path / "empty"), "empty")
    refused(train("--data", tmp_path / "file"), "file is not a folder")
    refused(train("--data", tmp_path / "[bold]:bee:"), "[bold]:bee: is not a folder")
    refused(here("train", "smoek", *data, "--out", out), "recipe 'smoek' not found", "smoke")
    refused(train(*data, "--set", "train.epochs"), "--set 'train.epochs'; expected KEY=VALUE")
    refused(train(*data, "--set", "train.epoch=2"), "train.epoch is not a key of a recipe; expected epochs, ")
    refused(train(*data, "--set", "train.epochs=many"), 'train.epochs is "many"')
    refused(train(*data, "--set", "train.epochs=2026-01-01"), "train.epochs is")
    refused(train(*data, "--set", "teacher.views=0"), "views is 0")
    refused(train(*data, "--backend", "fast"), 'data.backend is "fast"')
    refused(train(*data, "--device", "gpu"), "device 'gpu' is unknown; expected auto, cpu")
    refused(train(*data, "--device", "mps"), "device 'mps' is unknown")
    refused(train(*data, "--device", "cuda:99"), "device cuda:99 was requested and PyTorch sees")
    if not torch.cuda.is_available():
        refused(train(*data, "--device", "cuda"), "PyTorch sees 0 GPUs; expected one of those; use --device")
    refused(here("eval", tmp_path / "nowhere"), "nowhere is not a run")
    refused(here("report", tmp_path / "nowhere"), "nowhere is not a run")
    refused(here("cache", "build", "smoke", *data, "--teacher", tmp_path / "empty", "--out", out), "empty is not a teacher")
    refused(
        here("cache", "build", *data, "--teacher", teacher.path, "--out", out, "--views", "many"),
        "--views 'many'; expected eval",
    )
    refused(here("teacher", "fit", "--data", tmp_path / "nowhere", "--out", out), "nowhere is not a folder")
    refused(here("teacher", "fit", *data, "--out", tmp_path / "file"), "file is a file; expected a new folder")
    importing = ("teacher", "import", *data, "--out", out)
    refused(here(*importing, "--weights", tmp_path / "nowhere"), "nowhere is not a file; expected ")
    refused(here(*importing, "--student", "a"), "--student a without --run")
    refused(here(*importing, "--run", tmp_path / "empty"), "empty is not a run")
    refused(
        here(*importing, "--run", out, "--weights", out),
        "--run and options of other weights are both given",
    )
    refused(here("teacher", "fit", *data, "--out", teacher.path), "already holds a teacher; expected a new folder")
    assert not out.exists(), "nothing was started"
    assert call("train", "--help").code == 0
    assert call().code != 0
    incomplete = call("train", "smoke")
    assert incomplete.code == 2
    assert "--data" in incomplete.err
    assert "Traceback" not in incomplete.err


def test_mismatched_inputs_are_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    dataset: DatasetFolder,
    teacher: TeacherFolder,
    cache: Path,
    finished: Path,
) -> None:
    here = functools.partial(inside, capsys)
    other_data = make_dataset(tmp_path, per_class=2, val_per_class=1).path
    other_teacher = make_teacher(tmp_path / "other", dataset, seed=4).path
    out = tmp_path / "out"

    def train(*arguments: object, data: Path = dataset.path) -> Result:
        return here("train", "smoke", "--data", data, "--cache", cache, "--out", out, *SETTINGS, *arguments)

    failed(train("--teacher", other_teacher), "the cache in", "teacher_sha256: stored")
    failed(train(data=other_data), "dataset_digest: stored")
    failed(train("--set", "views.size_px=24"), "views.size_px: stored 32, wanted 24")
    failed(train("--set", "evaluation.scheme=centre_squash"), "views.scheme: stored 'centre', wanted 'centre_squash'")
    failed(train("--set", "teacher.views=2"), "policy: stored 'canonical', wanted 'views'")
    failed(train("--allow-mismatch", "pixels"), "allowed field 'pixels'; expected one of")
    failed(train("--set", "teacher.source=live"), "no teacher was given; expected --teacher")
    failed(train("--set", "students.0.architecture=resnet5"), "architecture 'resnet5' is unknown", "did you mean")
    refused(train("--set", "train.batch_size=25"), "train.batch_size = 25 is more than the 24 training images")
    small = ["--set", "views.size_px=2", "--set", "loss.beta=0"]
    failed(train(*small), "squeezenet1_1 cannot take 2 px images", "change views.size_px")
    assert not out.exists(), "nothing was started"
    failed(train("--resume", "--extend", "9"), "out is not a run")
    assert not out.exists()
    result = here("cache", "build", "smoke", "--data", dataset.path, "--teacher", other_teacher, "--out", cache, *SETTINGS)
    failed(result, "teacher_sha256: stored")
    failed(here("eval", finished, "--teacher", other_teacher), "teacher_sha256")
    failed(here("report", finished, "--baseline", tmp_path / "nowhere"), "nowhere is not a run")
    failed(here("report", finished, "--baseline", finished), "is the run itself; expected another run")
    other_run = tmp_path / "other-run"
    shutil.copytree(finished, other_run)
    rewrite_json(other_run / "run.json", lambda values: values | {"dataset_digest": "0" * 64})
    failed(here("report", finished, "--baseline", other_run), "dataset_digest: stored", "name a run on the same data")
    before = checkpoint_hash(finished)
    again = ["train", "smoke", "--data", dataset.path, "--cache", cache, "--out", finished, *SETTINGS]
    failed(here(*again), "already holds a run; expected a new folder; continue it with --resume")
    failed(here(*again, "--resume", "--set", "train.seed=1"), "(train.seed: stored 0, wanted 1)")
    result = here(*again, "--resume")
    assert result.code == 0
    assert "is finished already" in result.err
    assert checkpoint_hash(finished) == before
    assert len(RunFolder.open(finished).metrics()) == 3


def test_evaluation_of_a_finished_run(
    call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, finished: Path, teacher: TeacherFolder
) -> None:
    result = call("eval", finished, "--teacher", teacher.path)
    assert result.code == 0, result
    for text in ("squeezenet1_1", "squeezenet1_0", "ensemble", "teacher squeezenet1_1", "12 images, 4 classes"):
        assert text in result.out
    stored = RunFolder.open(finished).evaluation
    assert stored is not None
    assert stored["num_samples"] == 12
    baseline = finished.parent / "baseline"
    shutil.copytree(finished, baseline)
    (baseline / "predictions.safetensors").rename(baseline / "kept")
    monkeypatch.setattr("udkd.report.style._drawn", lambda *figure, **options: b"<svg></svg>")
    failed(
        inside(capsys, "report", finished, "--baseline", baseline), f"{baseline} has no predictions; run udkd eval {baseline}"
    )
    (baseline / "kept").rename(baseline / "predictions.safetensors")
    assert inside(capsys, "report", finished, "--baseline", baseline).code == 0
    assert "no clear difference" in (finished / "report" / "index.html").read_text()


def test_json_is_one_document(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    dataset: DatasetFolder,
    teacher: TeacherFolder,
    cache: Path,
    finished: Path,
) -> None:
    """Numbers are those of the files and of the readers; problems are in the document, and the exit codes stay."""

    def document(*arguments: object, code: int = 0) -> dict[str, Any]:
        result = inside(capsys, *arguments, "--json")
        assert result.code == code, result
        values: dict[str, Any] = json.loads(result.out)
        return values

    evaluation = document("eval", finished, "--teacher", teacher.path)
    stored = json.loads((finished / "eval.json").read_text())
    assert evaluation == {name: value for name, value in stored.items() if name != "checksum"}

    info = document("cache", "info", cache, "--data", dataset.path)
    entropy = np.concatenate([Cache.open(cache).view_file(0).uncertainties["entropy"]]).astype(np.float64)
    assert info["mean_weight"] == pytest.approx(1 - entropy.mean() / math.log(4), abs=1e-6)
    assert (info["num_targets"], sum(info["weights"]), len(info["weights"]), info["missing"]) == (24, 24, 20, [])
    assert info["key"]["dataset_digest"] == dataset.digest
    assert 0 <= info["top1"] <= 100

    recompute = ("--recompute", 5, "--data", dataset.path, "--teacher")
    verified = document("cache", "verify", cache, *recompute, teacher.path)
    assert (verified["intact"], verified["problems"], verified["recomputed"]["pairs"]) == (True, [], 5)
    assert verified["recomputed"]["probability"]["difference"] <= verified["recomputed"]["probability"]["bound"]
    damaged = tmp_path / "cache"
    shutil.copytree(cache, damaged)
    flip_a_bit(damaged / "view-0000.udkd", -1)
    verified = document("cache", "verify", damaged, code=1)
    assert (verified["intact"], verified["problems"]) == (False, ["view 0: block 0 is damaged"])

    assert document("run", "verify", finished) == {"run": str(finished), "intact": True, "problems": []}
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    flip_a_bit(run / "predictions.safetensors", -1)
    verified = document("run", "verify", run, code=1)
    assert (verified["intact"], len(verified["problems"])) == (False, 1)

    Image.new("RGB", (40, 30)).save(tmp_path / "image.png")
    (tmp_path / "text.png").write_text("no image")
    predicted = document("predict", finished, tmp_path / "image.png", tmp_path / "text.png", "--top", 4, code=1)
    image, text = predicted["images"]
    assert image["error"] is None
    assert sum(each["percent"] for each in image["classes"]) == pytest.approx(100, abs=1e-3)
    assert {each["wnid"] for each in image["classes"]} == {entry.wnid for entry in dataset.classes}
    assert (text["classes"], "text.png" in text["error"]) == ([], True)

    data = document("data", "info", dataset.path)
    train = data["splits"]["train"]
    assert (train["images"], train["images_per_class"], train["excluded"]) == (24, [6, 6, 6, 6], [])
    assert train["bytes"] == int(dataset.train.size.sum())
    assert document("data", "verify", dataset.path) == {"data": str(dataset.path), "intact": True, "problems": []}
    shutil.copytree(dataset.path, tmp_path / "data")
    flip_a_bit(tmp_path / "data" / "report.json", 30)
    verified = document("data", "verify", tmp_path / "data", code=1)
    assert (verified["intact"], len(verified["problems"])) == (False, 1)
    refused(inside(capsys, "eval", tmp_path, "--json"), "is not a run")


def flip_a_bit(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_an_allowed_mismatch_is_recorded(call: Call, tmp_path: Path, dataset: DatasetFolder, cache: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", "smoke", "--data", dataset.path, "--cache", cache, "--out", out, *SETTINGS, "--set", "train.epochs=1"]
    arguments += ["--set", "evaluation.resize_px=34"]
    failed(call(*arguments), "views.resize_px: stored 36, wanted 34")
    result = call(*arguments, "--allow-mismatch", "views.resize_px")
    assert result.code == 0, result
    assert RunFolder.open(out).provenance["allowed"] == ["views.resize_px"]


def test_caches_of_augmented_views(call: Call, tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder) -> None:
    cache, out = tmp_path / "cache", tmp_path / "run"
    build_arguments = ["cache", "build", "smoke", "--data", dataset.path, "--teacher", teacher.path, "--out", cache, *SETTINGS]
    train_arguments = ["train", "smoke", "--data", dataset.path, "--cache", cache, *SETTINGS]
    assert call(*build_arguments, "--views", 1).code == 0
    failed(call(*train_arguments, "--set", "teacher.views=2", "--out", out), "view")
    assert not out.exists()
    assert call(*build_arguments, "--set", "teacher.views=2").code == 0
    assert call(*train_arguments, "--set", "teacher.views=2", "--out", out).code == 0
    assert [row["view"] for row in RunFolder.open(out).metrics()] == [0, 1, 0]
    failed(call(*train_arguments, "--out", tmp_path / "run2"), "policy: stored 'views', wanted 'canonical'")
    failed(
        call(*train_arguments, "--set", "teacher.views=2", "--set", "views.seed=1", "--out", tmp_path / "run3"),
        "seed: stored 0",
    )


def test_fit_train_evaluate_and_import(call: Call, tmp_path: Path, dataset: DatasetFolder) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        "[views]\nsize_px=32\n[evaluation]\nresize_px=36\n[fit]\narchitecture='resnet18'\nlr=0.01\nepochs=1\n"
        "[[students]]\narchitecture='squeezenet1_1'\nlr=0.01\n[train]\nepochs=1\nbatch_size=8\nthreads=1\n[teacher]\nbatch_size=8\n"
    )
    teacher = tmp_path / "teacher"
    fit = ("teacher", "fit", recipe, "--data", dataset.path, "--out", teacher, "--architecture", "squeezenet1_0")
    result = call(*fit)
    assert result.code == 0, result
    assert "teacher squeezenet1_0, 4 classes: validation top-1" in result.out
    failed(call(*fit), "already holds a teacher")
    weights = (teacher / "weights.safetensors").read_bytes()
    again = call(*fit, "--resume")
    assert (again.code, again.out) == (0, result.out), again
    assert (teacher / "weights.safetensors").read_bytes() == weights
    failed(call(*fit, "--resume", "--set", "fit.lr=0.02"), "lr")
    cache, out = tmp_path / "cache", tmp_path / "run"
    assert call("cache", "build", recipe, "--data", dataset.path, "--teacher", teacher, "--out", cache).code == 0
    result = call("train", recipe, "--data", dataset.path, "--cache", cache, "--teacher", teacher, "--out", out)
    assert result.code == 0, result
    result = call("eval", out)
    assert result.code == 0, result
    assert "teacher squeezenet1_0" in result.out, "the run records its teacher"
    imported = tmp_path / "imported"
    result = call("teacher", "import", "--run", out, "--data", dataset.path, "--out", imported, "--recipe", recipe)
    assert result.code == 0, result
    failed(call("teacher", "fit", recipe, "--data", dataset.path, "--out", imported, "--resume"), "already holds a teacher")
    assert TeacherFolder.open(imported).info.architecture == "squeezenet1_1"
    unfit = tmp_path / "w.safetensors"
    save_file(build("squeezenet1_1", 4, image_px=32, seed=0).state_dict(), unfit)
    failed(
        call("teacher", "import", "--data", dataset.path, "--out", tmp_path / "x", "--weights", unfit, "--recipe", recipe),
        "does not fit resnet50 (",
    )


@pytest.mark.parametrize("limit_bytes", [1_000, pytest.param(20_000, marks=pytest.mark.long), 1_000_000])
def test_a_run_resumes_after_a_full_disk(
    call: Call,
    tmp_path: Path,
    dataset: DatasetFolder,
    teacher: TeacherFolder,
    cache: Path,
    finished: Path,
    limit_bytes: int,
) -> None:
    """A limit on file size simulates the full disk: the same OSError at the same points."""
    out, again = tmp_path / "run", tmp_path / "cache"
    arguments = ["train", "smoke", "--data", dataset.path, "--cache", cache, "--out", out, *SETTINGS]
    failed(call(*arguments, limit_bytes=limit_bytes), str(out), "File too large", "free some space")
    assert not list(out.rglob("*.tmp"))
    failed(call("eval", out), "is not a run" if limit_bytes < 10_000 else "no checkpoint yet")
    started = (out / "config.json").exists()
    assert call(*arguments, *(["--resume"] if started else [])).code == 0
    assert checkpoint_hash(out) == checkpoint_hash(finished)
    if limit_bytes < 10_000:
        build_arguments = [
            "cache",
            "build",
            "smoke",
            "--data",
            dataset.path,
            "--teacher",
            teacher.path,
            "--out",
            again,
            *SETTINGS,
        ]
        failed(call(*build_arguments, limit_bytes=limit_bytes), "free space and build again")
        assert call(*build_arguments).code == 0
        assert (again / "view-0000.udkd").read_bytes() == (cache / "view-0000.udkd").read_bytes()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="only root can mount a small disk")
def test_a_full_file_system(call: Call, tmp_path: Path, dataset: DatasetFolder, cache: Path, finished: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        out = disk / "run"
        arguments = ["train", "smoke", "--data", dataset.path, "--cache", cache, "--out", out, *SETTINGS]
        (disk / "ballast").write_bytes(bytes(20 << 20))
        failed(call(*arguments), "No space left on device", str(out), "free some space")
        (disk / "ballast").unlink()
        (disk / "ballast").touch()
        assert call(*arguments, "--resume").code in (0, 1)
        assert not list(out.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        assert call(*arguments, "--resume").code == 0
        assert checkpoint_hash(out) == checkpoint_hash(finished)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        failed(call(*arguments, "--out", disk / "new"), "Read-only file system")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, cache: Path
) -> None:
    (tmp_path / "file").write_text("keep me")
    data = ("--data", dataset.path)
    for folder in (tmp_path / "file" / "run", tmp_path / "file", Path("/proc/nowhere/run"), tmp_path / ("x" * 300)):
        train = ("train", "smoke", *data, "--cache", cache, "--out", folder, *SETTINGS)
        failed(inside(capsys, *train), "check the path")
        failed(inside(capsys, "cache", "build", "smoke", *data, "--teacher", teacher.path, "--out", folder, *SETTINGS))
    assert (tmp_path / "file").read_text() == "keep me"


def test_a_folder_whose_name_is_not_text(call: Call, tmp_path: Path, dataset: DatasetFolder) -> None:
    """Bytes that are not UTF-8, and an escape sequence that must not reach the terminal."""
    folder = tmp_path / os.fsdecode(b"\xff\x1b[31m")
    shutil.copytree(dataset.path, folder / "data")
    settings = [*SETTINGS, *set_options("train.epochs=1", "loss.beta=0", "loss.gamma=0", "loss.alpha=1")]
    image = folder / os.fsdecode(b"\xfe\x1b[2J.png")
    Image.new("RGB", (40, 30)).save(image)
    for arguments in (
        ["train", "smoke", "--data", folder / "data", "--out", folder / "run", *settings],
        ["eval", folder / "run"],
        ["report", folder / "run"],
        ["predict", folder / "run", image],
    ):
        result = call(*arguments)
        assert result.code == 0, result
        assert "\x1b" not in result.out + result.err
        assert r"\udcff\x1b[31m" in result.out + result.err or arguments[0] == "eval"
    assert RunFolder.open(folder / "run").provenance["dataset"] == str(folder / "data")
    page = (folder / "run" / "report" / "index.html").read_text()
    assert r"\udcff\x1b[31m" in page
    assert "\x1b" not in page


def test_two_trainings_of_one_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, dataset: DatasetFolder, cache: Path
) -> None:
    out = tmp_path / "run"
    arguments = [
        "train",
        "smoke",
        "--data",
        dataset.path,
        "--cache",
        cache,
        "--out",
        out,
        *SETTINGS,
        "--set",
        "train.epochs=300",
    ]
    first = start(*arguments)
    try:
        assert wait_until(lambda: (out / "checkpoints" / "last.json").exists() or first.ended())
        failed(inside(capsys, *arguments, "--resume"), f"is being written by process {first.pid}")
    finally:
        first.send_signal(signal.SIGTERM)
        stopped = first.finish()
    assert stopped.code == 143, stopped
    assert "the same command with --resume continues" in stopped.last


def signal_when(path: Path, command: Command, kind: signal.Signals) -> Result:
    assert wait_until(lambda: path.exists() or command.ended())
    command.send_signal(kind)
    return command.finish()


@pytest.mark.parametrize("module", ["udkd", "udkd.data_prep"])
@pytest.mark.parametrize("loaded", [1, 30, 300])
def test_ctrl_c_while_modules_load(module: str, loaded: int) -> None:
    """The signal comes `loaded` imports or a few more after the module that handles it, as Python lists them."""
    command = [sys.executable, "-X", "importtime", "-m", module, "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stderr
    while not process.stderr.readline().endswith(" udkd.utils.signals\n"):
        assert process.poll() is None
    for _ in range(loaded):
        process.stderr.readline()
    process.send_signal(signal.SIGINT)
    lines = [line for line in process.stderr if not line.startswith("import time:")]
    process.communicate(timeout=scaled(60))
    assert "Traceback" not in "".join(lines)
    assert process.returncode in (0, 130, -signal.SIGINT)  # the last: Python itself was ending
    assert len(lines) == (1 if process.returncode == 130 else 0)


def test_ctrl_c_while_a_teacher_is_fitted(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Many epochs of one step, so that the signal comes before the last."""
    dataset = make_dataset(tmp_path / "data", per_class=2, val_per_class=1)
    arguments = ["teacher", "fit", "smoke", "--data", dataset.path, "--out", tmp_path / "t", *SETTINGS]
    arguments += set_options("fit.architecture=squeezenet1_1", "fit.epochs=25", "fit.lr=0.01")
    stopped = signal_when(tmp_path / "t" / "run" / "checkpoints" / "last.json", start(*arguments), signal.SIGINT)
    assert stopped.code == 130, stopped
    assert "Traceback" not in stopped.err
    assert "continues" in stopped.last
    build_arguments = ("cache", "build", "smoke", "--data", dataset.path, "--teacher", tmp_path / "t", "--out", tmp_path / "c")
    failed(inside(capsys, *build_arguments), "is not a teacher")
    failed(inside(capsys, *arguments), "already holds a run; expected a new folder; continue it with --resume")
    result = call(*arguments, "--resume")
    assert result.code == 0, result
    assert TeacherFolder.open(tmp_path / "t").info.architecture == "squeezenet1_1"
    assert len(RunFolder.open(tmp_path / "t" / "run").metrics()) == 25


@pytest.mark.parametrize("kind", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_ctrl_c_while_a_cache_is_built(
    call: Call, tmp_path: Path, dataset: DatasetFolder, teacher: TeacherFolder, kind: signal.Signals
) -> None:
    arguments = ["cache", "build", "smoke", "--data", dataset.path, "--teacher", teacher.path, *SETTINGS]
    arguments += ["--out", tmp_path / "c", "--views"]
    stopped = signal_when(tmp_path / "c" / "view-0001.udkd", start(*arguments, 400), kind)
    assert stopped.code == 128 + kind, stopped
    assert stopped.last == f"error: stopped by {kind.name}; finished work is kept, the same command resumes"
    assert stopped.err.count("error:") == 1
    have = len(list((tmp_path / "c").glob("view-*.udkd")))
    assert 2 <= have < 400
    result = call(*arguments, have + 1)
    assert result.code == 0, result
    assert call("cache", "verify", tmp_path / "c").code == 0
    assert len(Cache.open(tmp_path / "c").views) == have + 1
    fresh = tmp_path / "fresh"
    assert call(*arguments[:-2], fresh, "--views", have + 1).code == 0
    for file in fresh.glob("view-*.udkd"):
        assert file.read_bytes() == (tmp_path / "c" / file.name).read_bytes(), file.name
