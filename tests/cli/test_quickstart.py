"""The quickstart never reports one image set's results as those of another."""

from pathlib import Path

import pytest

from tests.cli.commands import inside, refused


def test_other_images_need_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic, users = tmp_path / "synthetic", tmp_path / "users"
    (synthetic / "images").mkdir(parents=True)
    (users / "data").mkdir(parents=True)
    refused(
        inside(capsys, "quickstart", "--out", synthetic, "--data", tmp_path), "is the quickstart on synthetic images", "--out"
    )
    refused(inside(capsys, "quickstart", "--out", users), "is a quickstart on other images; expected --data again")
