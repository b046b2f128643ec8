"""What all commands have in common: the order of arguments, help, levels of output, exit codes, completion."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import udkd
from tests.cli.commands import ROOT, inside, refused
from tests.cli.examples import parsed, program
from tests.factories import make_dataset
from tests.timeouts import scaled
from udkd.utils.files import FolderLock
from udkd.utils.output import out
from udkd.utils.toml_files import shipped_names

WORKED_ON = {"PREFIX", "RECIPE", "STUDY…", "RUN", "CACHE", "MODEL", "LOGITS", "SOURCE…", "SOURCE", "DATA"}
INPUTS = {"DATA": ("--data", "--other-data"), "TEACHER": ("--teacher",), "CACHE": ("--cache",)}


def walk(command: Any = None, path: str = "udkd") -> Iterator[tuple[str, Any]]:
    """Every command and group with its name."""
    command = command or program()
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{path} {name}")


EVERY = dict(walk())
LEAVES = {name: command for name, command in EVERY.items() if not hasattr(command, "commands")}


def test_the_first_argument_is_what_the_command_works_on() -> None:
    assert len(LEAVES) >= 19
    for name, command in LEAVES.items():
        arguments = [param.metavar for param in command.params if param.param_type_name == "argument"]
        assert arguments[1:] == {"udkd predict": ["IMAGE…"], "udkd data stage": ["FOLDER"]}.get(name, []), name  # as cp has it
        assert set(arguments[:1]) <= WORKED_ON, name
        for param in command.params:
            if param.param_type_name == "option" and param.opts != ["--out"]:
                for metavar, options in INPUTS.items():
                    assert param.metavar != metavar or param.opts[0] in options, f"{name} {param.opts}"


@pytest.mark.parametrize("name", EVERY)
def test_help_is_readable_and_its_example_is_true(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = inside(capsys, *name.split()[1:], "--help")
    assert code == 0
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"<(str|path|int|float|bool|list)|BOOLEAN|range>", text), "Python's types"
    assert "-q, --quiet" in text
    assert "-v, --verbose" in text
    if name in LEAVES:
        (example,) = re.findall(r"\n  Example:\n    (.*)\n", text)
        assert f"{example} ".startswith(f"{name} ")
        parsed(example)
    else:
        assert "..." not in text.split("Commands:")[1], "a summary is cut off"
    brackets = {"udkd teacher fit": "[fit] and [train]", "udkd study": "[fit]", "udkd data convert": "[train/|val/]<class>"}
    assert brackets.get(name, "") in text


OLD = {
    "cache build data teacher cache --recipe smoke --views 2": (
        "cache build smoke --data data --teacher teacher --out cache --views 2"
    ),
    "cache build --views 2 data teacher --teacher more cache": (
        "cache build --data data --teacher teacher --out cache --views 2 --teacher more"
    ),
    "cache build --recipe=smoke --data data --teacher teacher --out cache": (
        "cache build smoke --data data --teacher teacher --out cache"
    ),
    "cache import data logits.npy cache --recipe smoke": "cache import logits.npy --data data --out cache --recipe smoke",
    "cache export cache out.npy --data data": "cache export cache --out out.npy --data data",
    "teacher fit data teacher --recipe smoke --resume": "teacher fit smoke --data data --out teacher --resume",
    "teacher fit data teacher": "teacher fit --data data --out teacher",
    "teacher import data teacher --model resnet18": "teacher import resnet18 --data data --out teacher",
    "teacher import data teacher --run run": "teacher import --data data --out teacher --run run",
    "export run out --student a": "export run --out out --student a",
    "data sheet data sheet.png": "data sheet data --out sheet.png",
    "data synth -- -images": "data synth --out -images",
    "export -- -run out": "export --out out -- -run",
}


@pytest.mark.parametrize("old", OLD)
def test_the_old_order_still_works(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, command = "udkd", program()
    words = old.split()
    while hasattr(command, "commands"):
        path, command = f"{path} {words[0]}", command.commands[words.pop(0)]
    with command.make_context(path, words) as context:
        assert capsys.readouterr().err == f"note: the order of arguments has changed; this is now: udkd {OLD[old]}\n"
        assert context.params == parsed(f"udkd {OLD[old]}")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("cache build data teacher cache --out cache", "data teacher cache --out"),
        ("cache build data teacher --out cache", "data teacher"),
        ("cache build smoke --recipe smoke --data d --teacher t --out c", "smoke --recipe"),
        ("teacher fit data teacher --data data", "data teacher --data"),
        ("cache import data logits --out cache", "data logits"),
        ("export run out --out out", "run out --out"),
    ],
)
def test_a_mixture_of_both_orders_is_refused(line: str, found: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = " ".join(line.split()[:1] if line.startswith("export") else line.split()[:2])
    refused(inside(capsys, *line.split()), f"found {found}; expected udkd {command} ", "--out", "give each of these once")


def test_the_last_source_is_the_folder_as_with_cp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(tmp_path, per_class=2, val_per_class=1)
    images, options = tmp_path / "images", ("--side", 32, "--workers", 1, "--formats", "none", "--quiet")
    assert inside(capsys, "data", "convert", images, tmp_path / "one", *options).code == 0
    assert inside(capsys, "data", "convert", images, "--out", tmp_path / "two", *options).code == 0
    digests = [udkd.Dataset(tmp_path / name).digest for name in ("one", "two")]
    assert digests[0] == digests[1]
    refused(inside(capsys, "data", "convert", images), "found one folder", "add --out DATA")


def test_quiet_and_verbose_before_and_after_the_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_dataset(tmp_path, per_class=2, val_per_class=1).path
    result = f"{folder}: intact\n"
    plain = inside(capsys, "data", "verify", folder)
    assert (plain.out, "verify train" in plain.err) == (result, True)
    for arguments in (("-q", "data", "verify"), ("data", "--quiet", "verify"), ("data", "verify", "-q")):
        assert inside(capsys, *arguments, folder) == (0, result, "")
    for arguments in (("-v", "data", "verify"), ("data", "verify", "--verbose")):
        code, out, err = inside(capsys, *arguments, folder)
        assert (code, out) == (0, result)
        assert re.search(r"^took \d+\.\d s$", err, flags=re.MULTILINE)
    refused(inside(capsys, "-q", "data", "verify", tmp_path), "holds no dataset.json")
    code, _, err = inside(capsys, "-v", "data", "verify", tmp_path)
    assert code == 1
    assert "Traceback" in err
    assert "\nerror: " in err
    again = inside(capsys, "data", "verify", tmp_path)
    assert "Traceback" not in again.err, "a level ends with its command"
    both = inside(capsys, "-q", "data", "verify", folder, "-v")
    assert both.code == 2
    assert "contradicts --quiet" in both.err
    old = inside(capsys, "data", "sheet", folder, tmp_path / "s.png", "--images", 2, "-q")
    assert old == (0, f"{tmp_path / 's.png'}: 2 images\n", "")


def test_quiet_keeps_warnings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from udkd.utils.output import err
    from udkd.utils.terminal import observed

    monkeypatch.setattr(err, "quiet", True)
    with observed() as observer:
        observer.note("as usual")
        observer.note("warning: not as usual")
    assert capsys.readouterr().err == "warning: not as usual\n"


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 and 1 are everywhere in these tests; 75 is in test_study_command.py, 128 + n in test_commands.py."""
    folder = make_dataset(tmp_path, per_class=2, val_per_class=1).path
    with FolderLock(folder):
        assert inside(capsys, "data", "derive", folder, "--formats", "none").code == 1
    for usage in (("data", "verify"), ("data", "verify", folder, "--fast"), ("data", "check"), ("trian",)):
        result = inside(capsys, *usage)
        assert result.code == 2, result
        assert result.last.startswith("Error: ")
    for code in ("0 ", "1 ", "2 ", "75 ", "128+n "):
        assert re.search(rf"^    {re.escape(code)}", inside(capsys, "--help").out, flags=re.MULTILINE)


def test_without_arguments_it_says_where_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys)
    assert (code, out) == (2, "")
    assert "  udkd quickstart " in err
    assert len(err.splitlines()) < 8


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    expected = f"udkd {udkd.__version__}, Python {sys.version.split()[0]}, torch {torch.__version__.partition('+')[0]}"
    code, out, _ = inside(capsys, "--version")
    assert (code, out.strip().partition("+")[0]) == (0, expected)


COMPLETE = """
import json, os, sys
from tests.forks import forked
from udkd.__main__ import main

def complete(shell, line):
    words = line.split(" ")
    os.environ |= {"_UDKD_COMPLETE": f"complete_{shell}", "COMP_WORDS": "\\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    os.environ |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    try:
        main()
    finally:
        assert "torch" not in sys.modules

sys.argv, requests = sys.argv[:1], json.loads(sys.argv[1])
for shell, line in requests:
    assert os.waitpid(forked(complete, shell, line), 0)[1] == 0, line
    print("next", flush=True)
"""


def completions(*requests: tuple[str, str]) -> list[list[str]]:
    """What a shell's script gets from the command for a line with the cursor at its end; torch must not be imported.

    Each is a fork of one process, which has imported what a command imports before it looks at its arguments.
    """
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE, json.dumps(requests)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=scaled(60),
        check=True,
    )
    assert done.stderr == ""
    return [[line for line in text.splitlines() if line] for text in done.stdout.split("next\n")[:-1]]


def test_completion_of_commands_recipes_studies_and_backends() -> None:
    wanted = {
        "udkd ca": ["cache"],
        "udkd train ": shipped_names("recipe"),
        "udkd study table1 tab": ["table1", "table2", "table3", "table4"],
        "udkd train smoke --backend f": ["ffcv", "folder"],
        "udkd cache info --da": ["--data"],
        "udkd train smoke --data ": [],  # files, by the shell
        "udkd train smoke --set train.ep": ["train.epochs=", "train.epochs=50"],
        "udkd train smoke --set students.1.lr": ["students.1.lr=", "students.1.lr_end="],
    }
    others = [("fish", "udkd teacher "), ("zsh", "udkd train sm")]
    *by_bash, by_fish, by_zsh = completions(*(("bash", line) for line in wanted), *others)
    assert dict(zip(wanted, by_bash, strict=True)) == wanted
    (fit,) = [line for line in by_fish if line.startswith("fit")]
    assert fit == "fit\tTrain a teacher with hard labels."
    assert '"smoke"' in "".join(by_zsh)


def test_no_figure_of_an_accuracy_table_is_cut_off(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "_width", 30)
    values = {"top1": 29.17, "top5": 100.0}
    result = {"num_samples": 24, "num_classes": 4, "ensemble": values, "teacher": None}
    result["students"] = [{"name": name, "parameters": 11_200_000, **values} for name in ("resnet18", "mobilenet_v2")]
    monkeypatch.setattr("udkd.training.run_folder.RunFolder.open", lambda folder: folder)
    monkeypatch.setattr("udkd.training.evaluate.evaluate", lambda *args, **options: result)
    printed = inside(capsys, "eval", "run").out
    assert printed.count("29.17") == printed.count("100.00") == 3
    assert "mobilenet_v2" in printed
