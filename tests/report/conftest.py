"""Fixtures of the tests of reports."""

import pytest

from tests.report.pages import draw_only


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_only(monkeypatch)
