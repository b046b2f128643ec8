"""The long description that a package registry shows: README.md, whose relative links and pictures lead nowhere there.

With a Repository under project.urls they get its address. Without one, links keep their text and pictures their description.
"""

import re
import sys
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def long_description() -> str:
    """README.md as it can be read outside of the repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project.get("urls", {}).get("Repository")

    def link(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        if repository:
            return f"{mark}[{text}]({repository}/{'raw' if mark else 'blob'}/v{project['version']}/{target})"
        return f"*{text}*" if mark else text

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.split(r"(^```.*?^```$)", readme, flags=re.MULTILINE | re.DOTALL)
    blocks[::2] = (re.sub(r"(!?)\[([^]]*)\]\((?!https?:|#)([^)\s]+)\)", link, prose) for prose in blocks[::2])
    return "".join(blocks)


if not (ROOT / "udkd" / "data_prep" / "__init__.py").is_file():  # Windows and some unpackers write a text file for the link
    sys.exit(
        "error: udkd/data_prep is not a link to ../data_prep; expected it as in git; run: ln -sfn ../data_prep udkd/data_prep"
    )

setup(long_description=long_description(), long_description_content_type="text/markdown")
