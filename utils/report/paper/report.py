"""`report.py table=...`: a table of the paper, from what is finished below `runs_dir`."""

import shlex
from functools import lru_cache
from pathlib import Path
from typing import Any

from utils.cli.experiments import composed
from utils.report import render
from utils.report.paper import rows as paper
from utils.report.paper import text as paper_text
from utils.report.table import choose
from utils.runs.results import find_runs, writable, write_text


def paper_table(
    table: str, root: Path, folder: Path, only: str | None = None, fast: bool = False
) -> Path:
    """Print the table, and write it; return the path of the Markdown file.

    Args:
        table: "1a", ...: a table of results/paper.yaml.
        root: where the runs are; there may be none.
        folder: where the files go.
        only: a text in the names of the runs to take.
        fast: the rows' twins for a laptop instead; runs of one never get into the other's table.

    Raises:
        ValueError: there is no such table.
    """
    paper.rows(table)  # an unknown table is refused before anything is read
    writable(folder)
    twin = "fast" if fast else None
    words = "python pipeline.py experiment={}" + (f" twin={twin}" if twin else "")
    words += "" if root == Path("runs") else f" runs_dir={shlex.quote(str(root))}"

    @lru_cache
    def compose(experiment: str) -> dict[str, Any]:
        return composed(experiment, twin)

    lines = paper.lines(table, _finished(root, only), compose, words)
    name = f"table_{table}{'_fast' if fast else ''}"
    shown, title = paper_text.text(lines, fast), paper_text.title(table, fast)
    notes, commands = paper_text.notes(table, lines, fast), paper_text.missing(lines)
    said = {"title": title, "text": shown, "notes": notes, "commands": commands}
    write_text(folder / f"{name}.md", render.page("paper.md", **said))
    caption, empty = " ".join([f"{title}.", *notes]), [f"empty: {command}" for command in commands]
    write_text(folder / f"{name}.tex", render.latex(shown, caption, empty))
    write_text(folder / f"{name}.csv", render.csv(paper_text.raw(lines)))
    render.console().print(render.terminal(shown, title))
    for note in notes:
        print(note)
    if commands:
        print("To fill the empty rows:", *commands, sep="\n  ")
    print(f"{folder / name}.md, .tex, .csv have this table")
    return folder / f"{name}.md"


def _finished(root: Path, only: str | None) -> list[dict[str, Any]]:
    """The finished runs below `root`; that there are none yet is said, and no error here."""
    try:
        return choose(find_runs(root), only)
    except FileNotFoundError as error:
        print(error)
        return []
