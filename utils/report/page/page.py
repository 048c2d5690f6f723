"""index.html: everything a person needs to understand what happened, in one file.

It loads nothing: plots are SVG inside it, and its template escapes whatever a result says.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from utils.report import knee, render
from utils.report.compare import as_text
from utils.report.origins import commits, environments
from utils.report.page import content
from utils.report.plots.compare import compared
from utils.report.plots.cost import cost
from utils.report.plots.gammas import evolution, gammas
from utils.report.plots.layers import widths
from utils.report.plots.marks import Drawn, svg
from utils.report.plots.sweep import after_cut, against_ratio, grid
from utils.report.plots.training import curves
from utils.report.story import Story
from utils.report.summary import goal
from utils.report.table import machine


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
    return _filled(
        "page.html",
        story,
        title=title,
        results=[(part, *_told_once(story, part)) for part in content.parts(story)],
        plots=[(plot, drawn[plot.name]) for plot in PLOTS],
        svg=svg,
        mixed=commits(story.runs),
        environments=environments(story.runs),
        knee=knee,
        goal=goal,
    )


def markdown(story: Story, pictures: Mapping[str, str]) -> str:
    """report.md: a table per recipe, the pictures, and how each run came to be.

    Args:
        pictures: file name -> a note on what is not in it, or "".
    """
    by_thop = any(row["macs_thop"] is not None for row in story.rows)
    return _filled("report.md", story, pictures=pictures, by_thop=by_thop, machine=machine)


def _filled(template: str, story: Story, **more: Any) -> str:
    contests = [(contest.title, as_text(contest)) for contest in story.contests]
    return render.page(template, story=story, content=content, contests=contests, **more)


def _told_once(story: Story, part: content.Part) -> tuple[pd.DataFrame, str | None]:
    """The means without what is the same everywhere, and the number of seeds if that is."""
    text = part.means
    if part.commits:
        text = text.assign(commit=part.commits)
    if story.alone:  # the title says it
        text = text.drop(columns=["network", "data"])
    found = {n for column in text for cell in text[column] for n in render.SEEDS.findall(str(cell))}
    if len(found) != 1:
        return text, None
    return text.replace(render.SEEDS, "", regex=True), found.pop()
