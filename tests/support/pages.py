"""HTML pages as a program reads them, and as a browser shows them."""

import html
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from types import ModuleType
from typing import Any

import pytest

SPLIT_WORDS = """const splitWords = (inner) => {
  const texts = inner.createTreeWalker(inner.body, NodeFilter.SHOW_TEXT), found = [];
  for (let text; (text = texts.nextNode());) {
    if (!text.parentElement.closest("td, th")) continue;
    for (const word of text.data.matchAll(/(?<![\\w-])[A-Za-z]{2,20}(?![\\w-])/g)) {
      const range = inner.createRange();
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map((box) => box.top)).size > 1) found.push(word[0]);
    }
  }
  return found;
};"""


class Page(HTMLParser):
    """A page's start tags, the tags left open, what a browser would fetch, and the text outside scripts and styles."""

    VOID = ("meta", "link", "br", "img", "use", "path", "circle", "rect", "input", "hr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.texts, self.inside = [], [], ""
        self.fetched, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self._seen(tag, attrs)
        self.inside = tag
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._seen(tag, attrs)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.texts.append(data)

    def _seen(self, tag, attrs):
        of = dict(attrs)
        self.tags.append((tag, of))
        self.fetched += [of[k] for k in ("src", "href") if of.get(k) and not of[k].startswith(("#", "data:"))]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def browser():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium on this machine: the page's layout cannot be measured")
    return found


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages whose figures are empty, for a test of what stands beside them: see `draw_nothing`."""
    draw_nothing(monkeypatch)


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Figures are empty from here on: matplotlib takes 5 to 10 s for a page's.

    Nor are the lines gathered that they would have: that is half of what is left.
    """
    from ifm.report import plots

    def empty(draw: Callable, *, name: str, label: str, size: Any = None) -> str:
        return f'<svg viewBox="0 0 1 1" id="{name}" role="img" aria-label="{html.escape(label)}"></svg>'

    for module in (plots, *vars(plots).values()):
        if isinstance(module, ModuleType) and hasattr(module, "svg"):
            patch.setattr(module, "svg", empty)
    patch.setattr(plots.merits, "_series", lambda *rows: [])


def chromium(browser, folder, *arguments):
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    command = [browser, *flags, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=True).stdout
