"""Room for the temporary files of the 8-bit model."""

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from udkd.export.quantise import quantise
from udkd.utils.errors import RunError


def test_a_temporary_folder_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(RunError, match=rf"{tmp_path} \(0 MB free\); expected 4 MB of room there; .* set TMPDIR"):
        quantise(bytes(1_000_000), [])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(RunError, match=r"gone .*No such file or directory.* set TMPDIR"):
        quantise(b"", [])
    assert list(tmp_path.iterdir()) == []
