"""The wheel and the sdist: what is in them, what a registry shows of them, and the commands after `pip install`."""

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from tests.cli.commands import set_options
from tests.factories import SMALL
from tests.timeouts import scaled

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = f"udkd-{PROJECT['version']}"
SOURCES = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
ADDRESS = "https://example.org/owner/udkd"

for package in ("build", "readme_renderer", "setuptools", "twine"):  # of the extra dev
    pytest.importorskip(package)


def run(*command: object, folder: Path, **variables: str) -> str:
    """Run a command and return its output; a failure shows it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    command_line = [str(argument) for argument in command]
    done = subprocess.run(command_line, cwd=folder, env=environment, capture_output=True, text=True, timeout=scaled(300))
    assert not done.returncode, f"{command_line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copy_sources(folder: Path) -> Path:
    """What the distribution is built from, and tests that must not get into it; a build leaves files behind."""
    folder.mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, folder)
    for name in ("udkd", "data_prep"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    shutil.copy(__file__, folder / "tests")
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel made from it."""
    folder = tmp_path_factory.mktemp("distribution")
    sources = copy_sources(folder / "sources")
    run(sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", folder / "dist", sources, folder=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"{NAME}-py3-none-any.whl"


def package_files() -> set[str]:
    """Every file below udkd/, also through its link to data_prep/."""
    walk = os.walk(ROOT / "udkd", followlinks=True)
    files = [Path(folder, name).relative_to(ROOT) for folder, _, names in walk for name in names]
    return {str(path) for path in files if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        top = file.read(f"{NAME}.dist-info/top_level.txt").split()
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    assert names == package_files() | {f"{NAME}.dist-info/{name}" for name in about}
    assert top == [b"udkd"]
    assert {"udkd/py.typed", "udkd/data_prep/convert.py", "udkd/report/page.html"} <= names


def test_a_checkout_without_the_link_is_refused(tmp_path: Path) -> None:
    """As some unpackers leave it; the wheel would lack the converter."""
    sources = copy_sources(tmp_path / "sources")
    (sources / "udkd" / "data_prep").unlink()
    (sources / "udkd" / "data_prep").write_text("../data_prep")
    done = subprocess.run([sys.executable, "setup.py", "--version"], cwd=sources, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: udkd/data_prep is not a link to ../data_prep; expected it as in git; run: ln -sfn")
    assert done.stderr.count("\n") == 1


def test_the_sdist_holds_what_the_wheel_is_made_from(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as file:
        names = {member.name.removeprefix(f"{NAME}/") for member in file if member.isfile()}
    about = {"PKG-INFO", "setup.cfg"} | {name for name in names if name.startswith("udkd.egg-info/")}
    assert names - about == package_files() | set(SOURCES)


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as file:
        return Parser().parsestr(file.read(f"{NAME}.dist-info/METADATA").decode())


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def test_a_registry_accepts_and_renders_it(built: Path, wheel: Path) -> None:
    run(sys.executable, "-P", "-m", "twine", "check", "--strict", *built.iterdir(), folder=built)
    fields = metadata(wheel)
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.11"
    assert fields["Summary"] == PROJECT["description"]

    from readme_renderer import markdown

    description = fields.get_payload()
    assert isinstance(description, str)
    page = markdown.render(description)
    assert page is not None
    assert page.count("<table>") == prose((ROOT / "README.md").read_text(encoding="utf-8")).count("\n|---")
    targets = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert not [target for target in targets if not target.startswith(("https://", "#"))]


def test_the_description_is_the_readme(wheel: Path, tmp_path: Path) -> None:
    """Words and code are the same. Links and pictures are absolute if the repository has an address, else plain text."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    relative = re.findall(r"\]\((?!https:)([^)]+)\)", prose(readme))
    assert relative

    def words(text: str) -> list[str]:
        return re.findall(r"\w+", re.sub(r"\]\([^)]*\)", "", text))

    assert "urls" not in PROJECT, "this test expects no address"
    plain = metadata(wheel).get_payload()
    assert words(str(plain)) == words(readme)
    assert not re.findall(r"\]\((?!https:)", prose(str(plain)))

    sources = copy_sources(tmp_path / "sources")
    with (sources / "pyproject.toml").open("a") as file:
        file.write(f'\n[project.urls]\nRepository = "{ADDRESS}"\n')
    code = "import sys; from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel(sys.argv[1])"
    run(sys.executable, "-P", "-c", code, tmp_path, folder=sources)
    linked = (tmp_path / f"{NAME}.dist-info" / "METADATA").read_text(encoding="utf-8")
    assert words(linked)[-len(words(readme)) :] == words(readme)
    tag = f"v{PROJECT['version']}"
    for target in relative:
        kind = "raw" if target.endswith(".svg") else "blob"
        assert f"]({ADDRESS}/{kind}/{tag}/{target})" in linked, target


def test_the_installed_commands(wheel: Path, tmp_path: Path) -> None:
    """In a new environment, in a folder whose files have the names of packages, with a home that cannot be written."""
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-P", "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, folder=tmp_path)
    purelib = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=tmp_path).strip())
    # What udkd depends on. An editable udkd is not among it: the .pth files of these folders are not read.
    others = [sysconfig.get_path("purelib"), *site.getsitepackages(), *(path for path in sys.path if "site-packages" in path)]
    (purelib / "dependencies.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(others)))
    work = tmp_path / "work"
    work.mkdir()
    for name in ("data_prep", "numpy", "torch", "udkd"):
        (work / f"{name}.py").write_text("raise SystemExit('imported from the current folder')\n")

    def udkd(*arguments: object) -> str:
        quiet = {"PYTHONWARNINGS": "error,ignore::DeprecationWarning", "HOME": "/proc", "OMP_NUM_THREADS": "1"}
        return run(tmp_path / "venv" / "bin" / "udkd", *arguments, folder=work, **quiet)

    assert "train" in udkd("--help")
    where = run(python, "-P", "-c", "import udkd; print(udkd.__file__)", folder=work)
    assert Path(where.strip()).is_relative_to(purelib)
    udkd("data", "synth", "--out", "images", "--classes", 2, "--images", 8, "--val-images", 4, "--workers", 1)
    udkd("data", "convert", "images", "dataset", "--workers", 1)
    labels_only = ("loss.alpha=1", "loss.beta=0", "loss.gamma=0")
    settings = set_options(*SMALL, "train.epochs=1", *labels_only)
    udkd("train", "smoke", "--data", "dataset", "--out", "run", *settings)
    assert (work / "run" / "students" / "squeezenet1_1.safetensors").is_file()
