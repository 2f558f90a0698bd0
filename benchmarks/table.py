"""docs/benchmarks.md's tables, from benchmarks/results: `python -m benchmarks.table`."""

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


def section(document: dict[str, Any]) -> str:
    """A run: its hardware, versions and command, and its rows."""
    hw = document["hardware"]
    where = f"{hw['cpu']}, {hw['cores']} cores, {hw['threads']} threads, {hw['memory_gb']:g} GB"
    rows = [line(Result(**row)) for row in document["results"]]
    return "\n".join(
        [
            f"### {hw['gpu'] or hw['cpu']}",
            "",
            f"{where}; load {hw['load_before']:g} before the start; {document['date']}, `{document['command']}`.",
            f"{', '.join(f'{name} {version}' for name, version in document['versions'].items())}.",
            "",
            "| what | value | against | ratio | target | met | note |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def page(text: str, documents: list[dict[str, Any]]) -> str:
    """The page with its tables made again. Raises ValueError where it has not two marks."""
    if text.count(MARK) != 2:
        raise ValueError(f"{PAGE.name} must have {MARK} twice, it has it {text.count(MARK)} times")
    before, _, after = text.split(MARK)
    return f"{before}{MARK}\n{chr(10).join(section(d) + chr(10) for d in documents)}{MARK}{after}"


def write() -> None:
    """Rewrites docs/benchmarks.md from all files of results."""
    documents = [read_json(path) for path in sorted(RESULTS.glob("*.json"))]
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), documents))


if __name__ == "__main__":
    write()
