"""`make readme`: the README's picture and results table, from the results that lie in reports/ and data/samples.

The columns of docs/tables.md are written too, from the catalogue of metrics.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from PIL import Image

from ifm.errors import UserError, in_a_line
from ifm.files import atomic_path, read_json
from ifm.metrics import catalogue, cautions
from ifm.modalities.pictures import side_by_side, side_by_side_choice
from ifm.report import names
from ifm.report.headlines import Estimate, Headline, best_teachers, estimate, headlines, nfe_text, outdated, written
from ifm.report.names import DYNAMICS as TITLES
from ifm.report.rounding import MISSING
from ifm.report.summary import read_summary
from pipeline.runner import paths
from pipeline.tools.marks import write_between

README, PICTURE, MARK = Path("README.md"), Path("docs/images/digits.png"), "<!-- results -->"
TABLES, COLUMNS = Path("docs/tables.md"), "<!-- columns -->"
SHOWN = 32  # images a panel


def table(summary: pd.DataFrame) -> str:
    """Markdown: a line for each dynamics, the flow in one step against the teacher at its best evaluations.

    ratio: the mean over sampling seeds of the two FIDs' ratio, over training seeds in turn (`headlines`).
    """
    rows = [
        "| dynamics | FID: flow, 1 NFE | teacher, best (NFE) | ratio | teacher, 1 NFE | recall: flow | teacher "
        "| speed-up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    summary = names.at_own_scale(summary)
    for line in headlines(summary):
        mine = summary[summary.dynamics == line.dynamics]
        flow, best = mine[mine.sampler == "one_step"], best_teachers(mine[mine.model == "teacher"])
        cells = [
            " ".join([TITLES.get(line.dynamics, line.dynamics), line.variant]).strip(),
            written(line.flow_fid, 3),
            f"{written(line.teacher_fid, 3)} ({nfe_text(line.teacher_nfe)})" if line.teacher_fid else MISSING,
            written(line.ratio, 2),
            _mean(line.single_fid, 1),
            _mean(estimate(flow, "recall"), 2),
            _mean(estimate(best, "recall"), 2),
            MISSING if line.speed_up is None else f"{line.speed_up:.1f}x",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    warned = [*(cautions.of_cells(summary["warnings"]) if "warnings" in summary else []), *outdated(summary)]
    rows += ["", *(f"*With care:* {text}" for text in warned)] if warned else []
    return "\n".join([*rows, "", _seeds(names.of_models(summary)), *_nearest(headlines(summary))])


def _nearest(lines: Sequence[Headline]) -> list[str]:
    """Whether samples are copies, as a list; none where it was not measured."""
    found = []
    for line in lines:
        flow, teacher, unseen = (f"{each.mean:.2f}" if each else MISSING for each in line.nearest)
        if line.nearest[0] and line.nearest[2]:
            title = TITLES.get(line.dynamics, line.dynamics)
            found.append(f"- {title}: flow {flow}, teacher {teacher}, test images {unseen}")
    said = (
        "Median distance to the nearest training image. If the samples were copies, it would be below that of the test "
        "images:"
    )
    return ["", said, "", *found] if found else []


def _mean(found: Estimate | None, decimals: int) -> str:
    return MISSING if found is None else f"{found.mean:.{decimals}f}"


def _seeds(rows: pd.DataFrame) -> str:
    """What the figures are means over, in a sentence."""
    sets, training = int(rows["seeds"].fillna(1).max()), rows["seed"].nunique()
    drawn = f"{sets} sampling seed{'s' * (sets > 1)} of {rows['n_samples'].max():,.0f} samples"
    if training > 1:
        return f"Mean ± standard deviation over {training} training seeds, each the mean over {drawn}."
    return f"Mean ± standard deviation over {drawn}; one training seed." if sets > 1 else f"From {drawn}."


def columns() -> str:
    """Markdown: a line for each metric of the catalogue, the columns of reports/summary.csv."""
    lines = ["| column | in the report | better | what it says | kinds of data |", "|---|---|---|---|---|"]
    for m in catalogue.of():
        names = ", ".join(f"`{column}`" for column in m.columns)
        title = m.title.format(sample="sample")
        lines.append(f"| {names} | {title} | {m.better or ''} | {m.tooltip.rstrip('.')} | {', '.join(m.kinds)} |")
    return "\n".join(lines)


def picture(summary: pd.DataFrame) -> Image.Image:
    """A row of panels for each dynamics: flow in one step, teacher at its best evaluations, teacher in one."""
    rows = []
    best = {line.dynamics: max(line.teacher_nfe, default=None) for line in headlines(summary)}
    for d in names.ordered(best):
        samplers = read_json(paths.samples(d) / "metadata.json")["samplers"]
        panels = []
        for s in side_by_side_choice(samplers, best=best[d]):
            images = np.load(paths.samples(d) / f"{s['name']}.npy", mmap_mode="r", allow_pickle=False)[:SHOWN]
            panels.append((f"{TITLES[d]}: {s['model']}, {s['nfe']} NFE", np.asarray(images)))
        with TemporaryDirectory() as folder:
            side_by_side(panels, Path(folder, PICTURE.name), columns=8, scale=4)
            rows.append(Image.open(Path(folder, PICTURE.name)).copy())
    canvas = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    return canvas


def main() -> None:
    """Rewrites docs/images/digits.png and the lines between the marks of docs/tables.md and the README."""
    try:
        write_between(TABLES, COLUMNS, columns())
        summary = read_summary(paths.REPORTS / "summary.csv")
        if set(summary.data) != {"digits"}:
            raise UserError("reports/summary.csv is not of the digits: make preset NAME=digits, dvc repro, then again")
        drawn = picture(summary)
        with atomic_path(PICTURE) as temporary:
            drawn.save(temporary, "PNG", optimize=True)
        write_between(README, MARK, table(summary))
    except (UserError, OSError) as error:
        sys.exit(f"make readme: {in_a_line(error)}")


if __name__ == "__main__":
    main()
