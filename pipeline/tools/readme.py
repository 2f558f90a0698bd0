"""`make readme`: the README's picture and results table, from the results that lie in reports/ and data/samples.

The columns of docs/tables.md are written too, from the catalogue of metrics.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ifm.files import read_json, write_text
from ifm.metrics import catalogue, cautions
from ifm.metrics.metric import SPREAD
from ifm.modalities.pictures import side_by_side, side_by_side_choice
from ifm.report.names import DYNAMICS as TITLES
from ifm.report.rounding import measured
from pipeline.runner import paths

README, PICTURE, MARK = Path("README.md"), Path("docs/images/digits.png"), "<!-- results -->"
TABLES, COLUMNS = Path("docs/tables.md"), "<!-- columns -->"
SHOWN = 32  # images a panel


def table(summary: pd.DataFrame) -> str:
    """Markdown: one line for each dynamics, flow in one step against the teacher at its most evaluations.

    ratio: the summary's, the mean over sampling seeds of the two FIDs' ratio.
    """
    lines = [
        "| dynamics | FID: flow, 1 NFE | teacher, {most} NFE | ratio | teacher, 1 NFE | recall: flow | teacher "
        "| speed-up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    most = int(summary[summary.model == "teacher"].nfe.max())
    for d in TITLES:
        rows = summary[summary.dynamics == d].set_index(["sampler", "nfe"])
        if rows.empty:
            continue
        flow, best, first = rows.loc[("one_step", 1)], rows.loc[("heun", most)], rows.loc[("heun", 1)]
        speed = best.seconds_per_image / flow.seconds_per_image
        lines.append(
            f"| {TITLES[d]} | {_with_deviation(flow, 'fid')} | {_with_deviation(best, 'fid')} | "
            f"{_with_deviation(flow, 'ratio', decimals=2)} | {first.fid:.1f} | {flow.recall:.2f} | "
            f"{best.recall:.2f} | {speed:.1f}x |"
        )
    warned = cautions.of_cells(summary["warnings"]) if "warnings" in summary else []
    lines += ["", *(f"*With care:* {text}" for text in warned)] if warned else []
    return "\n".join(lines).replace("{most}", str(most))


def columns() -> str:
    """Markdown: a line for each metric of the catalogue, the columns of reports/summary.csv."""
    lines = ["| column | in the report | better | what it says | kinds of data |", "|---|---|---|---|---|"]
    for m in catalogue.of():
        names = ", ".join(f"`{column}`" for column in m.columns)
        title = m.title.format(sample="sample")
        lines.append(f"| {names} | {title} | {m.better or ''} | {m.tooltip.rstrip('.')} | {', '.join(m.kinds)} |")
    return "\n".join(lines)


def _write_between(file: Path, mark: str, text: str) -> None:
    """The text between the file's two marks."""
    before, _, after = file.read_text(encoding="utf-8").split(mark, 2)
    write_text(file, f"{before}{mark}\n{text}\n{mark}{after}")


def _with_deviation(row: pd.Series, column: str, *, decimals: int = 3) -> str:
    return measured(row[column], row[column + SPREAD], decimals=decimals)


def picture(dynamics: list[str]) -> Image.Image:
    """A row of panels for each dynamics: flow in one step, teacher at its most evaluations, teacher in one."""
    rows = []
    for d in dynamics:
        samplers = read_json(paths.samples(d) / "metadata.json")["samplers"]
        panels = []
        for s in side_by_side_choice(samplers):
            images = np.load(paths.samples(d) / f"{s['name']}.npy", mmap_mode="r", allow_pickle=False)[:SHOWN]
            panels.append((f"{TITLES[d]}: {s['model']}, {s['nfe']} NFE", np.asarray(images)))
        side_by_side(panels, PICTURE, columns=8, scale=4)
        rows.append(Image.open(PICTURE).copy())
    canvas = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    return canvas


def main() -> None:
    """Rewrites docs/images/digits.png and the lines between the marks of docs/tables.md and the README."""
    _write_between(TABLES, COLUMNS, columns())
    summary = pd.read_csv(paths.REPORTS / "summary.csv")
    if set(summary.data) != {"digits"}:
        sys.exit("reports/summary.csv is not of the digits: make preset NAME=digits, dvc repro, then again")
    picture([d for d in TITLES if d in set(summary.dynamics)]).save(PICTURE, optimize=True)
    _write_between(README, MARK, table(summary))


if __name__ == "__main__":
    main()
