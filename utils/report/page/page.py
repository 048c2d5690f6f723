"""index.html: everything a person needs to understand what happened, in one file.

It loads nothing: plots are SVG inside it, and what is written in a result is escaped.
"""

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

from utils.report.page import tables as page_tables
from utils.report.page.lead import cards, knee_lead, summary
from utils.report.plots import marks as plots
from utils.report.plots.compare import compared
from utils.report.plots.cost import cost
from utils.report.plots.gammas import evolution, gammas
from utils.report.plots.layers import widths
from utils.report.plots.marks import Drawn, Story
from utils.report.plots.sweep import after_cut, against_ratio, grid
from utils.report.plots.training import curves

HERE = Path(__file__).parent


class Plot(NamedTuple):
    """A section of the page that is a plot."""

    name: str  # of its file, and of its place in the page
    title: str
    draw: Callable[[Story], Drawn]
    lead: str


PLOTS = (
    Plot("grid", "Which penalty, which cut: λ × ratio", grid, ""),
    Plot(
        "cost", "Accuracy against cost", cost,
        "Each mark is a kind of network, averaged over its seeds; further left is cheaper, further "
        "up is better. The red line joins those that no other network beats in both (the Pareto "
        "front). It describes the test set: nothing was chosen by it. Bars: standard deviation "
        "over seeds.",
    ),
    Plot(
        "compare", "Methods against each other", compared,
        "What other ways of choosing channels reach at the same cost, against slimming; and what "
        "training the thin network from new weights reaches, against fine-tuning it. Grey: one "
        "seed, the same in both networks of a pair. Coloured: their mean with its 95 % confidence "
        "interval (Student's t). An interval that crosses the dashed line says that these seeds "
        "can't tell the two apart.",
    ),
    Plot(
        "after_cut", "Right after the cut", after_cut,
        "Nothing was trained yet. A plain cut takes away what the cut channels still contributed. "
        "Compensation (bias, expected, refit) gives it back to the layers that read them; "
        "recalibration measures the BatchNorm statistics of the thin network anew. Where the lines "
        "stay at the level of the uncut network, the cut was free.",
    ),
    Plot(
        "ratio", "How much can go", against_ratio,
        "The plain cut and what training the thin network makes of it, against the share of "
        "channels removed. The dashed level is the network trained without a penalty, the dotted "
        "one the sparse network before any cut. (Figure 5 of the paper.) Bars: standard deviation "
        "over seeds.",
    ),
    Plot(
        "gammas", "What the penalty does to γ", gammas,
        "How many channels have a γ of which size, on logarithmic axes. Without a penalty (λ 0) "
        "all are of one kind; with one, a second heap appears near zero: these channels can go. A "
        "cut through the gap between the heaps costs little. (Figure 4 of the paper.)",
    ),
    Plot(
        "evolution", "One layer while it is trained", evolution,
        "Each line is a channel, from the first epoch to the last; bright channels matter, dark "
        "ones have faded out. The penalty turns channels off one after the other, and the share "
        "that stays bright is what a cut can keep. (Figure 6 of the paper.)",
    ),
    Plot(
        "widths", "What is left of each layer", widths,
        "Channels per layer before (outline) and after the cut (filled). The ranking is over the "
        "whole network, so how much each layer needs comes out of training: nobody set it.",
    ),
    Plot(
        "curves", "How training went", curves,
        "Mean over seeds; the band spans the lowest and the highest seed. Accuracy is that of the "
        "last epoch everywhere on this page, never of the best one.",
    ),
)  # fmt: skip


def draw(story: Story) -> dict[str, Drawn]:
    return {plot.name: plot.draw(story) for plot in PLOTS}


def page(story: Story, drawn: Mapping[str, Drawn], title: str) -> str:
    """
    Args:
        drawn: of `draw`.
    """
    sections = [
        ("results", "Results", page_tables.results(story), True),
        *(_plot(plot, drawn[plot.name], story) for plot in PLOTS),
        ("runs", "Where each number is from", page_tables.origins(story), True),
    ]
    contents = "".join(
        f'<a href="#{name}">{escape(head)}</a>' for name, head, _, there in sections if there
    )
    body = "\n".join(
        f'<section id="{name}"{"" if there else " class=missing"}><h2>{escape(head)}</h2>'
        f"{inside}</section>".replace("class=missing", 'class="missing"')
        for name, head, inside, there in sections
    )
    return Template((HERE / "page.html").read_text()).substitute(
        title=escape(title),
        css=(HERE / "page.css").read_text(),
        js=(HERE / "page.js").read_text(),
        summary=summary(story),
        cards=cards(story),
        toc=contents,
        sections=body,
    )


def _plot(plot: Plot, drawn: Drawn, story: Story) -> tuple[str, str, str, bool]:
    if drawn.figure is None:
        return plot.name, plot.title, f'<p class="soft">{_code(drawn.note)}</p>', False
    lead = knee_lead(story) if plot.name == "grid" else escape(plot.lead)
    picture = plots.svg(drawn.figure, plot.name, escape(plot.title, quote=True))
    note = f"<figcaption>{escape(drawn.note)}</figcaption>" if drawn.note else ""
    more = page_tables.comparisons(story) if plot.name == "compare" else ""
    inside = f'<p>{lead}</p><figure><div class="scroll">{picture}</div>{note}</figure>{more}'
    return plot.name, plot.title, inside, True


def _code(text: str) -> str:
    """Escaped; `words` as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if k % 2 else part for k, part in enumerate(parts))
