"""A package imports only packages earlier in the list, which is in the order of the data; and there are no import cycles."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [
    "utils",
    "data",
    "data_prep",
    "augment",
    "models",
    "losses",
    "config",
    "teacher",
    "training",
    "export",
    "report",
    "study",
    "cli",
    "__main__",
]
MAY_IMPORT_DATA_PREP = ("data_prep", "cli")
SOURCES = sorted([*ROOT.glob("udkd/**/*.py"), *ROOT.glob("udkd/data_prep/**/*.py")])


def imported_modules(path: Path) -> set[str]:
    """Every module of this repository that a file imports, at module level or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the absolute path"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {member for member in members if is_module(member)}
            names |= modules if modules == members else modules | {str(node.module)}
    return {name for name in names if name.split(".")[0] in ("udkd", "data_prep", "benchmarks", "tests")}


def is_module(name: str) -> bool:
    path = ROOT / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package(module: str) -> str:
    return module.split(".")[1]


def test_the_order_lists_every_package() -> None:
    modules = {module_of(path) for path in SOURCES if path.is_relative_to(ROOT / "udkd")} - {"udkd"}
    assert {package(module) for module in modules} == set(ORDER)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_earlier_packages(path: Path) -> None:
    module = module_of(path)
    for name in imported_modules(path):
        if module != "udkd":  # which re-exports public names of all packages
            assert name.split(".")[0] == "udkd", f"{module} imports {name}"
            assert ORDER.index(package(name)) <= ORDER.index(package(module)), f"{module} imports {name}, a later package"
            if package(name) == "data_prep":
                assert package(module) in MAY_IMPORT_DATA_PREP, f"{module} imports {name}"


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name == "__init__.py"], ids=module_of)
def test_every_package_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    if module_of(path) != "udkd" and package(module_of(path)) != "data_prep":
        assert len(tree.body) == 1, "only a docstring: import from the modules directly"


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
