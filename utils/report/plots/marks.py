"""What all plots share: their looks, and how they become files and SVG.

Each plot is a function `(story) -> Drawn`; `page.py` lists them in their order. Colours are
Okabe and Ito's, told apart by every kind of colour vision.
"""

import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("Agg")
BLACK, GREY, GRID, GAP = "#1A1A1A", "#8C8C8C", "#D8D8D8", "#FEFEFD"
BLUE, RED, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE = "#56B4E9", "#E69F00"
SERIES = (BLUE, RED, GREEN, PINK, ORANGE, SKY)
# In a page the two themes choose; the names are those of page.css.
THEMED = {
    BLACK: "currentColor", GAP: "var(--card)", GRID: "var(--grid)", GREY: "var(--grey)",
    BLUE: "var(--blue)", RED: "var(--red)", GREEN: "var(--green)", PINK: "var(--pink)",
    SKY: "var(--sky)", ORANGE: "var(--orange)",
}  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P")
PANELS = 6
STYLE = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 1,
    "grid.linewidth": 0.8,
    "grid.color": GRID,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "legend.frameon": False,
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "network slimming",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a run may have dollars in its name
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), BLACK
    ),
}


class Drawn(NamedTuple):
    """A plot, or what is missing for it; and what didn't fit into it."""

    figure: Figure | None
    note: str = ""


@contextmanager
def style() -> Iterator[None]:
    with matplotlib.rc_context(STYLE):
        yield


def panels(number: int, height: float = 3.0, share: bool | str = False) -> tuple:
    """(figure, axes): `number` panels in as many columns as are readable."""
    columns = 1 if number == 1 else 2 if number in (2, 4) else 3
    lines = math.ceil(number / columns)
    figure = Figure(figsize=(8, height * lines + 0.5))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=share).flatten()
    for spare in grid[number:]:
        spare.remove()
    return figure, list(grid[:number])


def legend(figure: Figure, axes: Sequence[Axes], columns: int = 4) -> None:
    """One legend for all panels, above them: it can't cover any data."""
    entries = {
        label: handle
        for panel in axes
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if entries:
        figure.legend(
            entries.values(), entries.keys(), loc="outside upper center",
            ncols=min(columns, len(entries)),
        )  # fmt: skip


def spread(names: Sequence[str], most: int) -> list[str]:
    """At most so many of them, evenly over the whole list: not only the mildest cuts."""
    if len(names) <= most:
        return list(names)
    return [names[round(k * (len(names) - 1) / (most - 1))] for k in range(most)]


def left_out(names: Iterable[str], most: int = 8) -> str:
    """ "Not shown: a, b." or "" """
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"Not shown: {'; '.join(names[:most])}{more}." if names else ""


def _shorter(attribute: re.Match) -> str:
    """Coordinates to a hundredth of a point; what is text stays."""
    name, value = attribute.groups()
    if name in ("d", "x", "y", "points", "transform", "width", "height"):
        value = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", value)
    return f'{name}="{value}"'


def save(figure: Figure, path: Path) -> None:
    """As the suffix says: .png, .svg or .pdf."""
    dates = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix]
    with style():
        figure.savefig(path, metadata=dates)


def svg(figure: Figure, name: str, label: str) -> Markup:
    """An <svg> for the middle of a page: in the page's font and colours, without foreign names."""
    file = io.StringIO()
    with style():
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text).replace("xlink:href", "href")
    text = re.sub(r" transform=\"rotate\(-0 [^)]*\)\"", "", text)
    text = re.sub(r"(?<= )([a-z0-9]+)=\"([^\"]*)\"", _shorter, text)
    text = re.sub(r"\s*\n\s*", " ", text)
    # Names are the page's, not the plot's: keep only those that are used, as our own.
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", text))
    text = re.sub(
        r" id=\"([^\"]*)\"", lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text
    )
    text = re.sub(r"(href=\"#|url\(#)", rf"\g<1>{name}-", text)
    for colour, themed in THEMED.items():
        text = re.sub(colour, themed, text, flags=re.I)
    size = re.search(r'viewBox="[^"]*"', text)[0]
    inside = text[text.index(">") + 1 :].strip()
    head = '<svg class="plot" {} role="img" aria-label="{}">{}'
    return Markup(head).format(Markup(size), label, Markup(inside))
