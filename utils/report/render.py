"""A table for every reader: HTML, Markdown, LaTeX, CSV, the terminal; and pages from templates.

What stands in a result may come from a stranger, so each renderer escapes for its own reader.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import rich.table
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from rich import box
from rich.console import Console

from utils.runs.units import si

TEMPLATES = Path(__file__).parent / "page"
# What would begin code, a link, HTML, a cell or emphasis; "1.81*" and "l1_norm" begin nothing.
MARKDOWN = re.compile(r"[\\`\[\]|~<]|&(?=[#\w])|\*(?=\S)|(?<![^\W_])_(?=\S)")
ENTITIES = {"<": "&lt;", "&": "&amp;"}
LATEX = {character: f"\\{character}" for character in "&#_$%{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"±": r"$\pm$", "λ": r"$\lambda$", "γ": r"$\gamma$", "×": r"$\times$", "−": "$-$"}
LATEX |= {" %": r"\,\%", "\n": " ", "\r": " "}
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet computes


@dataclass(frozen=True)
class Column:
    """One column: what people read, and what it is sorted by."""

    name: str
    cells: Sequence[str]
    values: Sequence[Any] | None = None  # as numbers, None where there is none; None: no numbers
    words: bool = False  # stands to the left and may wrap; numbers do neither
    minor: int = 0  # a narrow terminal does without the highest first; 0 always stays


@dataclass(frozen=True)
class Table:
    """Columns of equal length, and what is said of them.

    `rows` has facts of each row for the page: "run" (a row leads there), "label", "method",
    "penalty" (to be filtered by), "knee" (shaded).
    """

    columns: Sequence[Column]
    title: str = ""
    notes: Sequence[str] = ()
    rows: Sequence[Mapping[str, str]] = field(default_factory=tuple)

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def body(self) -> list[tuple[str, ...]]:
        return [*zip(*(column.cells for column in self.columns), strict=True)]

    def told(self) -> "Table":
        """Without the columns that have nothing to say."""
        kept = [column for column in self.columns if any(cell != "-" for cell in column.cells)]
        return replace(self, columns=kept)

    def head(self, most: int) -> "Table":
        """The first rows; what is left out is said."""
        if (more := len(self.body) - most) <= 0:
            return self
        columns = [
            replace(c, cells=c.cells[:most], values=c.values and c.values[:most])
            for c in self.columns
        ]
        return replace(self, columns=columns, title=f"{self.title} ({more} more in report.md)")

    def cells(self) -> Iterator[tuple[Mapping[str, str], list[tuple[Column, str, Any]]]]:
        """Row by row: its facts, and (column, text, the number it is sorted by)."""
        for number, texts in enumerate(self.body):
            values = (c.values[number] if c.values else None for c in self.columns)
            cells = [*zip(self.columns, texts, values, strict=True)]
            yield (self.rows[number] if self.rows else {}), cells

    def html(self) -> Markup:
        return Markup(page("table.html", table=self))

    def markdown(self) -> "Markdown":
        """A GitHub table; numbers to the right."""
        head, *body = ([*map(words, row)] for row in [self.names, *self.body])
        rule = ["---" if column.words else "---:" for column in self.columns]
        return Markdown("\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body)))

    def latex(self, label: str, comments: Sequence[str] = ()) -> str:
        r"""A table for \usepackage{booktabs}; its notes stand below it."""
        sides = "".join("l" if column.words else "r" for column in self.columns)
        head, *body = (" & ".join(map(_latex, row)) + r" \\" for row in [self.names, *self.body])
        lines = [
            r"needs \usepackage{booktabs}",
            *(" ".join(text.splitlines()) for text in comments),
        ]
        notes = [rf"\par\footnotesize {_latex(note)}" for note in self.notes]
        return "\n".join(
            [
                *(f"% {line}" for line in lines),
                *(r"\begin{table}", r"\centering", rf"\caption{{{_latex(self.title)}}}"),
                *(rf"\label{{tab:{label}}}", rf"\begin{{tabular}}{{{sides}}}", r"\toprule"),
                *(head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"),
                *(*notes, r"\end{table}", ""),
            ]
        )

    def csv(self) -> str:
        """All numbers as they are; text that a spreadsheet would compute gets an apostrophe."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.names)
        columns = (
            column.cells if column.values is None else column.values for column in self.columns
        )
        for row in zip(*columns, strict=True):
            writer.writerow("" if cell is None else _defused(cell) for cell in row)
        return file.getvalue()

    def terminal(self, width: int) -> rich.table.Table:
        """As many of the columns as the window holds; words wrap in it, numbers don't."""
        shown, spare = _fitting(self.columns, width)
        left_out = [column.name for column in self.columns if column not in shown]
        said = f"not in this window: {', '.join(left_out)}" if left_out else None
        made = rich.table.Table(
            title=self.title, caption=said, box=box.SIMPLE, padding=(0, 1, 0, 0)
        )
        for column in shown:
            made.add_column(
                column.name,
                justify="left" if column.words else "right",
                no_wrap=not column.words,
                min_width=None if column.words else _width(column),
                max_width=max(16, spare) if column is shown[0] else None,
            )
        for row in zip(*(column.cells for column in shown), strict=True):
            made.add_row(*row)
        return made


def _fitting(columns: Sequence[Column], width: int) -> tuple[list[Column], int]:
    """(the columns that a window holds, what is left for the first, which may wrap)"""
    shown = list(columns)
    while True:
        spare = width - 4 - sum(2 + _width(column) for column in shown[1:])
        last = max(shown, key=lambda column: column.minor)
        if spare >= min(30, _width(shown[0])) or not last.minor:
            return shown, spare
        shown.remove(last)


def _width(column: Column) -> int:
    return max(map(len, [column.name, *column.cells]))


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


def in_code(text: str) -> Markup:
    """HTML in which `words` are code."""
    parts = text.split("`")
    coded = [Markup("<code>{}</code>").format(part) for part in parts]
    return Markup("").join(coded[k] if k % 2 else escape(part) for k, part in enumerate(parts))


def _latex(text: str) -> str:
    text = re.sub(r"(?<![\w.])-(?=[\d.])", "−", str(text))  # a minus, not a hyphen
    return re.sub("|".join(map(re.escape, LATEX)), lambda m: LATEX[m[0]], text)


def _defused(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def console() -> Console:
    """The terminal; a file gets lines of 200. No text is taken for rich's own markup."""
    return Console(width=None if Console().is_terminal else 200, markup=False, highlight=False)


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
    made.filters |= {"si": si, "code": code, "in_code": in_code}
    return made
