"""Reading report pages in tests, and choosing the figures to draw: one figure takes longer than all the text."""

from collections import Counter
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import pytest

from udkd.report import gallery, style

VOID = {"meta", "img", "br", "link", "use", "path", "rect", "circle"}
HOSTILE_NAMES = (
    '<script>alert("x")</script>',
    "$\\frac{1}{0$",
    "a & b < c",
    "红鸢",
    "'\"><img src=x onerror=alert(1)>",
    "100 %",
    "",
    "-->",
    "{{ x }}",
    "z",
)


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; raises where tags do not nest, an id repeats or a link has no target."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.classes: Counter[str] = Counter()
        self._text: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text())
        self.close()
        assert not self._open, f"unclosed {self._open}"
        ids = [value for name, value in self.attributes if name == "id"]
        assert len(ids) == len(set(ids))
        assert set(self.links) <= set(ids)
        self.text = " ".join(" ".join(self._text).replace("\u00a0", " ").split())

    @property
    def links(self) -> list[str]:
        """The ids of link targets."""
        return [value[1:] for name, value in self.attributes if name == "href" and value.startswith("#")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        self.classes.update((dict(attrs).get("class") or "").split())
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "title"):
            self._text.append(data)


def draw_only(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Draw only the figures of these names (or patterns), and none as PNG, which would draw them once more."""
    drawn = style.svg

    def svg(name: str, caption: str, draw: style.Draw, height: float) -> str:
        return drawn(name, caption, draw, height) if any(fnmatch(name, known) for known in names) else "<svg></svg>"

    patch.setattr(style, "svg", svg)
    for module in (style, gallery):
        patch.setattr(module, "png", lambda *args, **options: b"")
