"""A table of text for every reader: Markdown, LaTeX, CSV, the terminal; and pages from templates.

What stands in a result may come from a stranger, so each renderer escapes for its own reader.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pandas.api.types import is_numeric_dtype
from rich import box
from rich.console import Console
from rich.table import Table

from utils.runs.units import si

TEMPLATES = Path(__file__).parent / "page"
# Columns of words, which stand to the left and may wrap; numbers do neither.
WORDS = {"row", "step", "network", "data", "recipe", "method", "then", "against", "verdict", "run"}
WORDS |= {"stage", "commit", "machine", "command"}
SEEDS = re.compile(r" \(n = (\d+)\)")
# What would begin code, a link, HTML, a cell or emphasis; "1.81*" and "l1_norm" begin nothing.
MARKDOWN = re.compile(r"[\\`\[\]|~<]|&(?=[#\w])|\*(?=\S)|(?<![^\W_])_(?=\S)")
ENTITIES = {"<": "&lt;", "&": "&amp;"}
LATEX = {character: f"\\{character}" for character in "&#_$%{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"±": r"$\pm$", "λ": r"$\lambda$", " %": r"\,\%", "\n": " "}
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet computes


class Markdown(str):
    """Text that is Markdown already; any other text is escaped in a template."""


def words(value: Any) -> Markdown:
    """Text as it reads, in one line of Markdown."""
    if isinstance(value, Markdown):
        return value
    line = " ".join(str(value).splitlines())
    return Markdown(MARKDOWN.sub(lambda m: ENTITIES.get(m[0], f"\\{m[0]}"), line))


def code(value: Any) -> Markdown:
    """Text in a fence that is longer than any inside."""
    text = " ".join(str(value).splitlines())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return Markdown(f"{fence} {text} {fence}" if "`" in text else f"`{text}`")


def markdown(text: pd.DataFrame) -> Markdown:
    """A GitHub table; numbers to the right."""
    head, *body = ([*map(words, row)] for row in [text.columns, *_rows(text)])
    rule = ["---" if column in WORDS else "---:" for column in text.columns]
    return Markdown("\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body)))


def latex(text: pd.DataFrame, caption: str, comments: list[str]) -> str:
    r"""A table for \usepackage{booktabs}."""
    sides = "".join("l" if column in WORDS else "r" for column in text.columns)
    head, *body = (" & ".join(map(_latex, row)) + r" \\" for row in [text.columns, *_rows(text)])
    lines = ["needs \\usepackage{booktabs}", *(" ".join(text.splitlines()) for text in comments)]
    return "\n".join(
        [
            *(f"% {line}" for line in lines),
            *(r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{sides}}}", r"\toprule"),
            *(head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"),
            *(rf"\caption{{{_latex(caption)}}}", r"\end{table}", ""),
        ]
    )


def _latex(text: str) -> str:
    return re.sub("|".join(map(re.escape, LATEX)), lambda m: LATEX[m[0]], text)


def csv(data: pd.DataFrame) -> str:
    """All numbers as they are; text that a spreadsheet would compute gets an apostrophe."""
    words = [column for column in data if not is_numeric_dtype(data[column])]
    defused = {column: [*map(_defused, data[column])] for column in words}
    data = data.assign(**{name: pd.Series(x, data.index, object) for name, x in defused.items()})
    return data.to_csv(index=False, lineterminator="\n")


def _defused(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def console() -> Console:
    """The terminal; a file gets lines of 200. No text is taken for rich's own markup."""
    return Console(width=None if Console().is_terminal else 200, markup=False, highlight=False)


def terminal(text: pd.DataFrame, title: str | None) -> Table:
    """Words may wrap in a narrow window, numbers may not."""
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in text.columns:
        justify, least = ("left", 12) if column in WORDS else ("right", None)
        table.add_column(column, justify=justify, no_wrap=column not in WORDS, min_width=least)
    for row in _rows(text):
        table.add_row(*row)
    return table


def _rows(text: pd.DataFrame) -> list[list[str]]:
    return text.astype(str).values.tolist()


def page(template: str, **content: Any) -> str:
    """A template of this folder, filled; `.html` and `.md` escape whatever is put in."""
    return _templates(template.endswith(".html")).get_template(template).render(**content)


@lru_cache
def _templates(html: bool) -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=html,
        finalize=None if html else words,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"si": si, "rows": _rows, "around_n": SEEDS.split, "code": code}
    made.filters |= {"table": markdown}
    made.globals["WORDS"] = WORDS
    return made
