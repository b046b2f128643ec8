"""README, docs/ and the pages beside them: links lead somewhere, commands and code run, tables are those of the results."""

import csv
import importlib
import json
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import typer.main
import yaml

import benchmarks.__main__
import udkd.cli.app
from docs import hooks
from tests.cli.examples import parsed
from tests.factories import unregister_method
from udkd.config.keys import nested_section
from udkd.config.loading import load_recipe
from udkd.config.recipe import Recipe
from udkd.data.backends.registry import backend_names
from udkd.losses.methods.builtin import METHODS
from udkd.study.spec import load_study

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
RESULTS = ROOT / "benchmarks" / "results"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language, except those below a comment that excludes them."""
    fenced = re.findall(rf"^(<!-- not run: .*\n)?```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [text for not_run, text in fenced if not not_run]


def commands(*programs: str) -> list[str]:
    """Every command of a bash block that calls one of these programs, continued lines joined."""
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line) for line in lines]
    return list(dict.fromkeys(line for line in lines if line.startswith(programs)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs and GitHub make them."""
    without_code = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", without_code, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_file(), f"{page.name}: {target}"
        assert path.is_relative_to(ROOT), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(path), f"{page.name}: {target}"


def test_each_page_is_in_the_navigation_once() -> None:
    (line,) = re.findall(r"^nav:\n(.*)", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE | re.DOTALL)
    named = [page for entry in yaml.safe_load(line) for page in _pages(entry)]
    assert sorted(named) == sorted([page.name for page in DOCS] + list(hooks.ROOT_PAGES.values()))


def _pages(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for inner in (entry.values() if isinstance(entry, dict) else entry) for page in _pages(inner)]


def test_there_is_one_command() -> None:
    assert not commands("udkd-prep "), "its old name"


@pytest.mark.parametrize("line", commands("udkd "))
def test_commands_options_and_settings_exist(line: str) -> None:
    values = parsed(line)
    if isinstance(values.get("recipe"), str):
        load_recipe(values["recipe"], values.get("overrides") or [])


@pytest.mark.parametrize("line", commands("torchrun "))
def test_commands_below_torchrun_exist(line: str) -> None:
    values = parsed("udkd " + line.split(" -m udkd ")[1])
    load_recipe(values["recipe"], values.get("overrides") or [])


@each_page
def test_kubernetes_manifests_fit_their_schemas(page: Path) -> None:
    manifests = [each for block in blocks(page, "yaml") for each in yaml.safe_load_all(block) if "apiVersion" in each]
    if manifests:
        validator = pytest.importorskip("kubernetes_validate")
        for manifest in manifests:
            validator.validate(manifest, "1.31", strict=True)


@pytest.mark.parametrize("line", commands("python -m benchmarks "))
def test_benchmarks_and_their_options_exist(line: str) -> None:
    name, *args = shlex.split(line, comments=True)[3:]
    app = typer.Typer()
    app.command(name)(importlib.import_module(f"benchmarks.{name}").main)
    typer.main.get_command(app).make_context(name, args)


@pytest.mark.parametrize("line", commands("make ", "scripts/"))
def test_make_targets_and_scripts_exist(line: str) -> None:
    program, name = shlex.split(line, comments=True)[:2]
    if program == "make":
        assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    else:
        assert (ROOT / program).is_file()


def test_every_benchmark_has_a_line_in_the_table() -> None:
    named = re.findall(r"^\| `(\w+)` \|", _section("speed.md", "How to measure"), flags=re.MULTILINE)
    known = set(benchmarks.__main__.names())
    assert set(named) == known - {"first", "gpu", "report"}


@each_page
def test_python_blocks_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name == "README.md":
        pytest.skip("its loop needs the quickstart's folders: tests/test_readme.py")
    backend_names()  # the package's own are registered before, and stay
    homes = {"losses.sample_weight": "_KINDS", "data.backends.registry": "_OPENERS", "training.loggers": "_OPENERS"}
    for home, registry in homes.items():
        module = importlib.import_module(f"udkd.{home}")  # registrations of a block end with it
        monkeypatch.setattr(module, registry, dict(getattr(module, registry, {})), raising=False)
    methods = set(METHODS)
    try:
        for block in blocks(page, "python"):
            with torch.random.fork_rng(devices=[]):
                exec(compile(block, page.name, "exec"), {})
    finally:
        for name in set(METHODS) - methods:
            unregister_method(name)


@each_page
def test_toml_blocks_are_recipes_or_studies(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "toml")):
        file = tmp_path / f"block{number}.toml"
        file.write_text(block)
        if "[[arms]]" in block:
            load_study(str(file))
        else:
            load_recipe(str(file))


@each_page
def test_settings_in_the_text_are_keys(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        pytest.skip("it names keys of earlier versions")
    keys = "|".join(Recipe.model_fields)
    for path in re.findall(rf"`((?:{keys})(?:\.\w+)+)(?: ?=[^`]*)?`", page.read_text()):
        if not path.endswith((".py", ".json", ".jsonl", ".tar", ".md")):
            assert _is_key(path.split(".")), f"{page.name}: {path}"


def _is_key(parts: list[str]) -> bool:
    """Whether a dotted path is a key of a recipe; N or NAME stands for any student, method or schedule."""
    schema = Recipe.model_json_schema()
    section = schema
    for part in parts:
        if part.isdecimal() or part == "N":
            continue
        if part == "NAME":
            return True
        if part not in section.get("properties", {}):
            return False
        field = section["properties"][part]
        name = nested_section(field, schema["$defs"])
        section = schema["$defs"][name] if name else {}
    return True


def test_the_table_of_keys_is_complete() -> None:
    schema = Recipe.model_json_schema()
    leaves = {
        (definition, key)
        for definition, section in [("Recipe", schema), *schema["$defs"].items()]
        for key, field in section.get("properties", {}).items()
        if nested_section(field, schema["$defs"]) is None
    }
    table = hooks.recipe_tables()
    assert len(re.findall(r"^\| `\w+` \|", table, flags=re.MULTILINE)) == len(leaves), "one row per key"
    assert "### `[students.N]`" in table
    assert "### `[loss.schedules.NAME]`" in table
    assert re.search(r"^\| `temperature` \|.*\| `4` \|", table, flags=re.MULTILINE)


def test_names_of_the_api_page_exist() -> None:
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE)
    assert names
    for name in names:
        assert pkgutil.resolve_name(name).__doc__, name
    homes = {f"{home}.{name}" for name, home in udkd._MODULES.items()}
    assert homes <= set(names), "every public name has its documentation"


def test_the_front_page_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1200
    assert max(map(len, text.splitlines())) <= 300


def _section(page: str, heading: str) -> str:
    text = (ROOT / "docs" / page).read_text()
    return text.split(f"## {heading}\n")[1].split("\n## ")[0]


def _rows(text: str) -> dict[str, list[str]]:
    """First cell -> the other cells, of every row of every Markdown table."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_accuracies_are_those_of_the_run(page: str) -> None:
    rows = _rows((ROOT / page).read_text().split("<!-- results: tiny-imagenet-100-cpu -->\n")[1].split("\n\n")[0])
    result = json.loads((RESULTS / "tiny-imagenet-100-cpu" / "eval.json").read_text())
    first, second = result["students"]
    labels = ("ResNet-18", "MobileNetV2", "both, probabilities averaged", "teacher, ResNet-18")
    for label, scores in zip(labels, (first, second, result["ensemble"], result["teacher"]), strict=True):
        size = f"{scores['parameters'] / 1e6:.1f} M" if "parameters" in scores else ""
        assert rows[label] == [f"{scores['top1']:.2f}", f"{scores['top5']:.2f}", size], label


def test_speeds_are_those_of_the_benchmarks() -> None:
    loader, cost = (json.loads((RESULTS / f"{name}-2-cores-amd-epyc.json").read_text()) for name in ("loader", "cost"))
    speeds = {
        row["variant"]: f"{row['items_per_s']:,.0f}" for row in loader["rows"] if (row["side"], row["threads"]) == (512, 2)
    }
    readme = _rows((ROOT / "README.md").read_text())
    names = ("resident", "folder", "dali", "FFCV's Loader", "torchvision DataLoader")
    assert readme["canvases/s, ImageNet images, S = 512"] == list(names)
    assert readme["2 threads"] == [speeds[name] for name in names]
    for label, key in (
        ("two students from the cache / one with a live teacher", "cached dual / live single"),
        ("two students with a live teacher / one with a live teacher", "live dual / live single"),
    ):
        ratios = [f"{cost['facts'][f'ratios at {at}'][key]:.2f}" for at in ("224 px, batch 16", "64 px, batch 64")]
        assert readme[label][:2] == ratios, label
    titles = {f"`{name}`": name for name in ("resident", "folder", "ffcv", "dali")} | {
        "FFCV's own Loader": "FFCV's Loader",
        "DALI's own pipeline": "DALI's pipeline",
        "DALI's decode alone, no canvas": "DALI's decode, no canvas",
        "torchvision DataLoader with Pillow": "torchvision DataLoader",
    }
    table = _rows(_section("speed.md", "Loading"))
    for label, variant in titles.items():
        assert table[label] == [speeds[variant]], label


@pytest.mark.parametrize("study", ["table1", "table3"])
def test_tables_of_studies_are_those_of_their_results(study: str) -> None:
    text = _section("results.md", "Does it help? The paper's rows on a small scale")
    table = _rows(text.split(f"| {study} |")[1].split("\n\n")[0].partition("\n")[2])
    with (RESULTS / "study-32px-cpu" / study / "table.csv").open() as file:
        scores = {(row["arm"].partition(",")[0], row["student"]): row for row in csv.DictReader(file)}
    del table["---"]
    for label, cells in table.items():
        arm = label.partition(" (")[0].partition(",")[0]
        for student, cell in zip(("resnet18", "mobilenet_v2", "averaged"), cells, strict=True):
            score = scores.get((arm, student))
            expected = f"{float(score['top1_last_mean']):.2f} ± {float(score['top1_last_sd']):.2f}" if score else ""
            assert cell == expected, f"{label}, {student}"


def test_the_licence_is_the_same_everywhere() -> None:
    assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == "Apache-2.0"
    text = (ROOT / "pyproject.toml").read_text()
    assert 'license = "Apache-2.0"' in text
    assert f'version = "{citation["version"]}"' in text
    assert f"## [{citation['version']}] - {citation['date-released']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.long
def test_the_site_builds_and_loads_nothing_from_the_net(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"(https?://[^\"]+)", page.read_text())
        assert not loaded, f"{page.name}: {loaded}"


def test_a_quickstart_on_own_images_sets_some_aside() -> None:
    """A folder for each class has no validation images of its own, and is what most readers have."""
    assert all("--hold-out" in line for line in commands("udkd quickstart --data"))
    assert "--hold-out" in udkd.cli.app.START
