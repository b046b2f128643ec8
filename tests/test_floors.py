"""Imports only go down: a file imports from lower floors, never sideways within its floor, and there are no cycles."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    name: floor
    for floor, names in enumerate(
        (
            ("words",),
            ("formats", "operations"),
            ("backends", "parts"),
            ("engine",),
            ("actors",),
            ("conductors",),
            ("console",),
            ("commands",),
            ("cli",),
            ("__main__",),
        )
    )
    for name in names
}
# What the other files of their floor are made of.
GROUND = (
    "udkd.words.errors",
    "udkd.words.hashing",
    "udkd.words.printable",
    "udkd.words.signals",
    "udkd.words.batch",
    "udkd.words.parsing",
    "udkd.words.options",
    "udkd.operations.prefetch",
    "udkd.parts.frozen_teacher",
    "udkd.console.terminal",
    "udkd.parts.average",
    "udkd.engine.step",
)
DATA_PREP_MAY_USE = ("udkd.words", "udkd.formats", "udkd.operations")
SOURCES = sorted([*ROOT.glob("udkd/**/*.py"), *ROOT.glob("data_prep/**/*.py")])


def imported_modules(path: Path) -> set[str]:
    """Every module of ours that a file imports, lazily or not."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole path"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {member for member in members if is_module(member)}
            names |= modules if modules == members else modules | {str(node.module)}
    return {name for name in names if name.split(".")[0] in ("udkd", "data_prep", "benchmarks", "tests")}


def is_module(name: str) -> bool:
    path = ROOT / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def floor(module: str) -> float:
    return FLOORS[module.split(".")[1]] - (0.5 if module in GROUND else 0)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    here = module_of(path)
    for name in imported_modules(path):
        if here.startswith("data_prep"):
            assert name.startswith(("data_prep", *DATA_PREP_MAY_USE)), f"{here} imports {name}"
        elif here == "udkd":
            continue  # the front door re-exports the pieces
        else:
            assert name.startswith("udkd."), f"{here} imports {name}"
            inside_own_package = len(here.split(".")) > 2 and name.startswith(".".join(here.split(".")[:3]) + ".")
            opens_own_members = path.name == "__init__.py" and name.startswith(here + ".")
            if not (inside_own_package or opens_own_members):
                assert floor(name) < floor(here), f"{here} imports {name}, which is not on a lower floor"


def test_no_cycles() -> None:
    graph = {module_of(path): imported_modules(path) for path in SOURCES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"cycle: {' -> '.join((*trail, module))}"
        if module in done:
            return
        for name in graph.get(module, ()):
            if name != module and not module.startswith(name + "."):
                visit(name, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())
