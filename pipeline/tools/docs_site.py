"""The docs as a site: MkDocs calls these hooks (mkdocs.yml), and `make docs` builds it strictly.

The Markdown files are those that GitHub shows. The hooks add what lies outside docs/ and is linked from there, one page
for each module of the package, and the contents, which are those of docs/README.md.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
}  # outside docs/, as pages of the site
API = "api"
CONTENTS = "docs/README.md"
PACKAGE = "src/ifm"
# Where somebody who uses the package begins; the rest is in the contents.
FIRST = {
    "load a model and sample it": "ifm.use.models",
    "train in Python": "ifm.training.loop",
    "paths and velocities": "ifm.dynamics.base",
    "the network's wrapper": "ifm.model",
    "losses": "ifm.objectives",
    "figures of samples": "ifm.metrics.catalogue",
    "export and publish": "ifm.use.publishing",
}
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^(```.*?^```|~~~.*?^~~~)", re.S | re.M)
SHOWN = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".sh": "bash", ".sbatch": "bash"}
SHOWN |= {".txt": "text", ".cff": "yaml", "": "text"}  # other files are copied as they are


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The contents: sections of docs/README.md, pages in the order in which it names them, then the package."""
    root = _root(config)
    config.nav = [
        {"Home": "README.md"},
        {"What it is": PAGES["README.md"]},
        *sections(root),
        {"API": api_contents(root)},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages outside docs/, of the package, and of every file or folder that a page links to."""
    root = _root(config)
    for source, page in PAGES.items():
        if (root / source).is_file():
            files.append(File.generated(config, page, content=(root / source).read_text(encoding="utf-8")))
    targets = linked(root)
    codes = {_module(target): root / target for target in targets if target.startswith(PACKAGE)}
    for module, page in modules(root).items():
        files.append(File.generated(config, page, content=api_page(module, codes.get(module))))
    files.append(File.generated(config, f"{API}/index.md", content=api_index(root)))
    for target in sorted(targets):
        place, known = place_of(root, target), {file.src_uri for file in files}
        if place in known:
            continue
        if place.endswith(".md"):
            text, where = shown(root / target, root), InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, place, content=text, inclusion=where))
        else:
            files.append(File.generated(config, place, abs_src_path=str(root / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to what is outside docs/ lead to where the site has it."""
    uri = page.file.src_uri
    if uri.startswith((f"{API}/", "files/")):
        return markdown
    source = next((name for name, place in PAGES.items() if place == uri), f"docs/{uri}")
    return with_links(markdown, source, _root(config), uri)


def with_links(markdown: str, source: str, root: Path, uri: str) -> str:
    """The text of a page at `uri`, with the links that `source` (a path in the repository) has."""

    def link(found: re.Match[str]) -> str:
        before, target, anchor, after = found.groups(default="")
        path = repository_path(root, source, target)
        if path is None:
            return found[0]
        place = os.path.relpath(place_of(root, path), os.path.dirname(uri) or ".")
        return f"{before}{place}{anchor}{after}"

    return _outside_fences(markdown, lambda text: LINK.sub(link, text))


def repository_path(root: Path, source: str, target: str) -> str | None:
    """What a link of the file `source` names, as a path in the repository; None for addresses and what is not there."""
    if "://" in target or target.startswith(("mailto:", "#", "/")):
        return None
    path = os.path.normpath(os.path.join(os.path.dirname(source), target))
    return None if path.startswith("..") or not (root / path).exists() else path


def linked(root: Path) -> set[str]:
    """Paths outside docs/ that pages link to."""
    found = set()
    for source in [*(name for name in PAGES if (root / name).is_file()), *_docs(root)]:
        text = FENCE.sub("", (root / source).read_text(encoding="utf-8"))
        targets = (repository_path(root, source, match[2]) for match in LINK.finditer(text))
        found |= {path for path in targets if path is not None and not path.startswith("docs/")}
    return found


def place_of(root: Path, path: str) -> str:
    """Where the site has a file or folder of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path == "docs" or path.startswith("docs/"):
        return os.path.relpath(path, "docs")
    if path.startswith(f"{PACKAGE}/") and (page := modules(root).get(_module(path))):
        return page
    if (root / path).is_dir() or Path(path).suffix in SHOWN:
        return f"files/{path}.md"
    return f"files/{path}"


def shown(path: Path, root: Path) -> str:
    """A page with a file's text, or with those of a folder."""
    inner = sorted(one for one in path.rglob("*") if one.is_file() and one.suffix in SHOWN) if path.is_dir() else [path]
    parts = [f"# {path.relative_to(root).as_posix()}"]
    for one in inner:
        if "__pycache__" in one.parts:
            continue
        heading = [f"## {one.relative_to(path).as_posix()}"] if path.is_dir() else []
        text = one.read_text(encoding="utf-8").rstrip("\n")
        parts += [*heading, f"~~~~~{SHOWN[one.suffix]}\n{text}\n~~~~~"]
    return "\n\n".join(parts) + "\n"


def sections(root: Path) -> list[dict[str, list[str]]]:
    """The contents that docs/README.md gives: [{section: [page, ...]}, ...], each page where it comes first."""
    found: list[dict[str, list[str]]] = []
    seen, pages = {"README.md", PAGES["README.md"]}, []
    for line in (root / CONTENTS).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            pages = []
            found.append({line[3:].strip(): pages})
        for match in LINK.finditer(line):
            path = repository_path(root, CONTENTS, match[2])
            page = path and place_of(root, path)
            if page and page.endswith(".md") and page not in seen and not page.startswith((API, "files/")):
                seen.add(page)
                pages.append(page)
    return [section for section in found if any(section.values())]


def modules(root: Path) -> dict[str, str]:
    """The package's modules and packages by name, with the page of each."""
    found = {}
    for file in sorted((root / PACKAGE).rglob("*.py")):
        name = _module(file.relative_to(root).as_posix())
        if file.name != "__main__.py":
            inner = "/index.md" if file.name == "__init__.py" else ".md"
            found[name] = f"{API}/{name.replace('.', '/')}{inner}"
    return found


def api_contents(root: Path) -> list[Any]:
    """The package as a tree: an index, then a section for each inner package."""
    tree: dict[str, list[Any]] = {}
    for name, page in modules(root).items():
        package = name if page.endswith("/index.md") else name.rpartition(".")[0]
        tree.setdefault(package, []).append({name.rpartition(".")[2]: page} if package != name else page)
    for pages in tree.values():
        pages.sort(key=lambda page: not isinstance(page, str))  # the package's own page first
    return [f"{API}/index.md", *({package: tree[package]} for package in sorted(tree))]


def api_page(module: str, code: Path | None) -> str:
    """A module's page. code: its file, where a page links to it; searches find the docstrings alone, after the docs."""
    text = f"---\nsearch:\n  boost: 0.3\n---\n\n# {module}\n\n::: {module}\n"
    if code is None or not code.is_file():
        return text
    lines = code.read_text(encoding="utf-8").rstrip("\n")
    return f"{text}\n## Source {{ data-search-exclude }}\n\n~~~~~python\n{lines}\n~~~~~\n"


def api_index(root: Path) -> str:
    """The first page of the package's reference."""
    known = modules(root)
    rows = [
        f"| {what} | [{name}]({os.path.relpath(known[name], API)}) |" for what, name in FIRST.items() if name in known
    ]
    text = "Every module of the package, from its docstrings. `pip install ifm` brings it; extras bring the rest."
    return "\n".join(["# API", "", text, "", "| you want to | module |", "|---|---|", *rows]) + "\n"


def _module(path: str) -> str:
    """src/ifm/data/points.py -> ifm.data.points; src/ifm/data and its __init__.py -> ifm.data."""
    return path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _docs(root: Path) -> Iterator[str]:
    return (path.relative_to(root).as_posix() for path in sorted((root / "docs").rglob("*.md")))


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent


def _outside_fences(markdown: str, change: Any) -> str:
    """The text with `change` made to all but blocks of code."""
    parts = FENCE.split(markdown)
    return "".join(part if FENCE.fullmatch(part) else change(part) for part in parts)
