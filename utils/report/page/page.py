"""index.html: everything a person needs to understand what happened, in one file.

It loads nothing: data and scripts are inside it, and its template escapes whatever a result says.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from markupsafe import Markup

from utils.report import render, tables
from utils.report.label import common
from utils.report.origins import commits, environments, letters
from utils.report.page import content
from utils.report.plots.compared import compared
from utils.report.plots.cost import cost
from utils.report.plots.curves import curves
from utils.report.plots.gammas import evolution, gammas
from utils.report.plots.grid import grid
from utils.report.plots.layers import layers
from utils.report.plots.marks import Drawn, Panel, bundle, charts_json
from utils.report.plots.networks import choices
from utils.report.plots.ratio import ratio
from utils.report.story import Story

PRINTED = 60  # lines of tables: two or three sheets
SHEET = 1400  # pixels of charts: at most two sheets


class Plot(NamedTuple):
    """A section of the page that is a plot."""

    name: str  # of its file, and of its place in the page
    title: str
    draw: Callable[[Story], Drawn]
    lead: str


PLOTS = (
    Plot(
        "compare", "Methods at one cost", compared,
        "What other ways of choosing channels reach at the same cost, against slimming of the same "
        "training (or, for methods that train without the penalty, of each λ); and what training "
        "the thin network from new weights reaches, against fine-tuning it. Grey: one seed, the "
        "same in both networks of a pair. Coloured: an interval of at least three seeds that does "
        "not hold 0.",
    ),
    Plot(
        "cost", "Accuracy against cost", cost,
        "Each mark is a kind of network, averaged over its seeds; further left is cheaper, further "
        "up is better. The line joins those that no other network beats in both (the Pareto "
        "front, of all networks here). It describes the test set: nothing was chosen by it, and a "
        "front of many networks flatters its winners, the hollow ones (fewer than 3 seeds) most.",
    ),
    Plot("grid", "Which penalty, which cut", grid, ""),
    Plot(
        "ratio", "How much can go", ratio,
        "Test accuracy right after the cut, after its repair, and after fine-tuning, against the "
        "share of channels removed; levels are the uncut networks. A plain cut takes away what the "
        "cut channels still contributed; recalibration measures BatchNorm anew, compensation "
        "(bias, expected, refit) gives it back to the layers that read them. (Figure 5 of the "
        "paper.)",
    ),
    Plot(
        "layers", "What is left of each layer", layers,
        "Before the cut (outline) and after it (filled), from input to output.",
    ),
    Plot(
        "gammas", "What the penalty does to γ", gammas,
        "How many channels have a γ of which size before any cut, on logarithmic axes. Without a "
        "penalty all are of one kind; with one, a second heap appears near zero: these channels "
        "can go. (Figure 4 of the paper.)",
    ),
    Plot(
        "evolution", "One layer while it is trained", evolution,
        "Each line is a channel, from the first epoch to the last; bright channels matter, dark "
        "ones have faded out. (Figure 6 of the paper.)",
    ),
    Plot(
        "curves", "How training went", curves,
        "Mean over seeds; the band spans the lowest and the highest seed. Accuracy is that of the "
        "last epoch everywhere on this page, never of the best one.",
    ),
)  # fmt: skip
FOLDED = {"gammas", "evolution", "curves"}  # interesting once


def draw(story: Story) -> dict[str, Drawn]:
    return {plot.name: plot.draw(story) for plot in PLOTS}


def page(story: Story, drawn: Mapping[str, Drawn]) -> str:
    """
    Args:
        drawn: of `draw`.
    """
    plots = [(plot, drawn[plot.name]) for plot in PLOTS]
    results, contests = _printable(tables.results(story), tables.contests(story))
    return render.page(
        "page.html",
        story=story,
        content=content,
        results=results,
        contests=contests,
        every_run=tables.every_run(story, content.numbered(story)),
        plots=[(plot, shown) for plot, shown in plots if shown.panels],
        missing=[(plot, shown.note) for plot, shown in plots if not shown.panels],
        folded=FOLDED,
        choices=choices(story),
        charts=charts_json(drawn),
        bundle=Markup(bundle()),
        details=_json(content.details(story)),
        letters=letters(story.runs),
        mixed=commits(story.runs),
        environments=environments(story.runs),
        common=common,
        on_paper=_on_paper,
    )


def _printable(*several: list[render.Table]) -> list[list[render.Table]]:
    """Mark the lines that would make a book of a page on paper."""
    left, marked = PRINTED, []
    for group in several:
        made = []
        for one in group:
            rows = [
                {**row, "screen": "true"} if n >= left else row for n, row in enumerate(one.rows)
            ]
            left = max(0, left - len(rows))
            made.append(replace(one, rows=rows))
        marked.append(made)
    return marked


def _on_paper(panels: Sequence[Panel]) -> int:
    """How many charts of a plot are printed: three, fewer where they are long."""
    heights = [panel.chart.height for panel in panels[:3]]
    return max(1, sum(sum(heights[: n + 1]) <= SHEET for n in range(len(heights))))


def _json(data: Any) -> Markup:
    """For a <script>: nothing in it can end that."""
    return Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))


def markdown(story: Story, pictures: Mapping[str, str]) -> str:
    """report.md: the networks, the contests, and by which commands they were made.

    Args:
        pictures: file name -> what it shows.
    """
    return render.page(
        "report.md",
        story=story,
        content=content,
        results=tables.results(story),
        contests=tables.contests(story),
        letters=letters(story.runs),
        mixed=commits(story.runs),
        environments=environments(story.runs),
        pictures=pictures,
        common=common,
    )
