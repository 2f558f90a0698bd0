"""docs/benchmarks.md's tables, from benchmarks/results: `python -m benchmarks.table`."""

import textwrap
from pathlib import Path
from typing import Any

from benchmarks.results import Result, short
from ifm.files import read_json, write_text

ROOT = Path(__file__).parents[1]
RESULTS, PAGE, MARK = ROOT / "benchmarks" / "results", ROOT / "docs" / "benchmarks.md", "<!-- results -->"
HELD = {True: "yes", False: "**no**", None: ""}


def line(row: Result) -> str:
    """A row of the table: | what | value | peer | ratio | target | met | note |."""
    value = "" if row.value is None else f"{short(row.value)} {row.unit}"
    ratio = "" if row.ratio is None else short(row.ratio)
    cells = (row.name, value, row.peer or "", ratio, row.target or "", HELD[row.holds], row.note)
    return f"| {' | '.join(cells)} |"


def heading(document: dict[str, Any]) -> list[str]:
    """A run's hardware, versions and command."""
    hw = document["hardware"]
    where = f"{hw['cpu']}, {hw['cores']} cores, {hw['threads']} threads, {hw['memory_gb']:g} GB"
    return [
        f"### {hw['gpu'] or hw['cpu']}",
        "",
        f"{where}; load {hw['load_before']:g} before the start; {document['date']}, `{document['command']}`.",
        wrapped(f"{', '.join(f'{name} {version}' for name, version in document['versions'].items())}."),
    ]


def wrapped(text: str) -> str:
    """A paragraph, or an item of a list, in lines of at most 120 characters."""
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def section(document: dict[str, Any]) -> str:
    """A run: where it was made, and its rows."""
    return "\n".join(
        [
            *heading(document),
            "",
            "| what | value | against | ratio | target | met | note |",
            "|---|---|---|---|---|---|---|",
            *[line(Result(**row)) for row in document["results"]],
        ]
    )


def between_marks(text: str, sections: list[str], *, name: str) -> str:
    """The page `name` with these sections between its marks. Raises ValueError where it has not two."""
    if text.count(MARK) != 2:
        raise ValueError(f"{name} must have {MARK} twice, it has it {text.count(MARK)} times")
    before, _, after = text.split(MARK)
    return f"{before}{MARK}\n{chr(10).join(s + chr(10) for s in sections)}{MARK}{after}"


def page(text: str, documents: list[dict[str, Any]]) -> str:
    """The page with its tables made again."""
    return between_marks(text, [section(d) for d in documents], name=PAGE.name)


def results() -> list[dict[str, Any]]:
    """The runs' documents; those of `growth` have a page of their own."""
    return [read_json(path) for path in sorted(RESULTS.glob("*.json")) if not path.name.startswith("growth-")]


def write() -> None:
    """Rewrites docs/benchmarks.md from all files of results."""
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), results()))


if __name__ == "__main__":
    write()
