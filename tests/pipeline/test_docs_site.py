"""The docs as a site: complete, without dead links, without requests to elsewhere."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WANTED = ("mkdocs", "material", "mkdocstrings")
MISSING = [name for name in WANTED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs the extra [docs]: {', '.join(MISSING)} not installed")


def build(root: Path, out: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    words = ["-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    return subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The project's own."""
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def pages(site: Path) -> dict[str, str]:
    return {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}


def test_every_page_of_the_docs_and_every_module_has_its_place(site):
    found = pages(site)
    docs = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} - {"README.html"}
    modules = {path.relative_to(ROOT / "src").with_suffix(".html") for path in (ROOT / "src/ifm").rglob("*.py")}
    named = {f"api/{path.as_posix()}".replace("__init__", "index") for path in modules if path.stem != "__main__"}
    assert not (docs | named | {"index.html", "overview.html", "contributing.html"}) - found.keys()
    assert "uint8 [n, C, H, W], points float [n, d] or texts" in found["api/ifm/use/models.html"]  # a docstring
    assert "data-search-exclude" in found["api/ifm/dynamics/trig.html"]  # linked for its code, which searches leave out


def test_no_page_asks_elsewhere(site):
    """Links may lead out; what the browser fetches by itself is the site's own."""
    fetched = re.compile(r'<(script|img|iframe)[^>]*\ssrc="https?:|<link[^>]*rel="(stylesheet|preconnect)"[^>]*http')
    assert not [name for name, text in pages(site).items() if fetched.search(text)]


def test_the_contents_are_those_of_the_readme(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    for section in re.findall(r"^## (.*)$", (ROOT / "docs/README.md").read_text(encoding="utf-8"), re.M):
        assert section in home


def test_it_can_be_searched_and_is_light_and_dark(site):
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"troubleshooting.html", "api/ifm/use/models.html"} <= found
    schemes = set(re.findall(r'data-md-color-scheme="(\w+)"', (site / "index.html").read_text(encoding="utf-8")))
    assert {"default", "slate"} <= schemes


def test_the_pages_hold_no_path_of_this_machine(site):
    assert not [name for name, text in pages(site).items() if str(ROOT) in text]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[there](page.md) [code](../src/ifm/one.py) [text](../LICENSE)", None),
        ("[gone](gone.md)", "gone.md"),
        ("[gone](../src/ifm/gone.py)", "gone.py"),
        ("[no such part](page.md#nowhere)", "#nowhere"),
    ],
    ids=["alive", "page", "code", "anchor"],
)
def test_a_dead_link_fails(tmp_path, line, said):
    for name in ("docs", "src/ifm", "pipeline/tools"):
        (tmp_path / name).mkdir(parents=True)
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "pipeline/tools/docs_site.py", tmp_path / "pipeline/tools")
    (tmp_path / "src/ifm/__init__.py").write_text('"""A package."""\n')
    (tmp_path / "src/ifm/one.py").write_text('"""One."""\n')
    (tmp_path / "LICENSE").write_text("As you like.\n")
    (tmp_path / "README.md").write_text("# What it is\n")
    (tmp_path / "docs/site.css").write_text("")
    (tmp_path / "docs/README.md").write_text(f"# Start\n\n## Read\n\n[page](page.md)\n\n{line}\n")
    (tmp_path / "docs/page.md").write_text("# Page\n\nText.\n")
    done = build(tmp_path, tmp_path / "site")
    if said is None:
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "site/files/LICENSE.html").is_file()
        assert 'href="api/ifm/one.html"' in (tmp_path / "site/index.html").read_text(encoding="utf-8")
    else:
        assert done.returncode != 0
        assert said in done.stderr
