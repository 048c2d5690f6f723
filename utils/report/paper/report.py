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
) -> Path | None:
    """Print the table, and write it; return the path of the Markdown file.

    Nothing is written, and None returned, where `folder` would lie in a `root` that isn't there.

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
    kept = root.is_dir() or root not in folder.parents
    if kept:
        writable(folder)
    twin = "fast" if fast else None
    words = "python pipeline.py experiment={}" + (f" twin={twin}" if twin else "")
    words += "" if root == Path("runs") else f" runs_dir={shlex.quote(str(root))}"

    @lru_cache
    def compose(experiment: str) -> dict[str, Any]:
        return composed(experiment, twin)

    lines = paper.lines(table, _finished(root, only), compose, words)
    shown, commands = paper_text.text(table, lines, fast), paper_text.missing(lines)
    screen = render.console()
    screen.print(shown.terminal(screen.width))
    for note in shown.notes:
        print(note)
    if commands:
        print("To fill the empty rows:", *commands, sep="\n  ")
    if not kept:
        print(
            f"there is no folder {root}, so nothing is written; to=FOLDER writes this table there"
        )
        return None
    name = f"table_{table}{'_fast' if fast else ''}"
    empty = [f"empty: {command}" for command in commands]
    write_text(folder / f"{name}.md", render.page("paper.md", table=shown, commands=commands))
    write_text(folder / f"{name}.tex", shown.latex(name.replace("_", "-"), empty))
    write_text(folder / f"{name}.csv", paper_text.raw(lines).csv())
    print(f"{folder / name}.md, .tex, .csv have this table")
    return folder / f"{name}.md"


def _finished(root: Path, only: str | None) -> list[dict[str, Any]]:
    """The finished runs below `root`; that there are none yet is said, and no error here."""
    try:
        return choose(find_runs(root), only)
    except FileNotFoundError as error:
        print(error)
        return []
