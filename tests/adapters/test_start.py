"""The command behind the table of starts in docs/teachers.md."""

from pathlib import Path

from pipeline.tools import teacher_start as tool

ROOT = Path(__file__).parents[2]


def test_the_table_is_made_and_put_into_the_page():
    budget = tool.Budget(
        ddpm_steps=2, denoiser_steps=2, paths=8, new_paths=4, solver_steps=2, batch_size=4, after=(0, 2)
    )
    rows = tool.measure(budget, say=lambda line: None)
    assert [name for name, _ in rows] == list(tool.STARTS)
    assert all(len(values) == 2 and min(values) > 0 for _, values in rows)
    of_ours, of_all = (
        next(values for name, values in rows if key in name) for key in ("this is `flow.init: teacher`", "every level")
    )
    assert of_ours[0] != of_all[0]  # asked at another level
    page = (ROOT / tool.PAGE).read_text(encoding="utf-8")
    made = tool.put(page, tool.table(rows, budget.after))
    assert "| start | before | after 2 steps |" in made
    assert tool.put(made, page.partition(tool.MARK)[2].lstrip().split("\n\n")[0]) == page
