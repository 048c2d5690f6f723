"""What a cut left of each layer."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from utils.report.plots.gammas import title
from utils.report.plots.marks import (
    BLUE,
    GREY,
    PANELS,
    Drawn,
    left_out,
    legend,
    panels,
    spread,
    style,
)
from utils.report.story import Story

Chain = list[dict[str, Any]]


def widths(story: Story) -> Drawn:
    """One panel per kind of cut, first seed: channels of each layer, kept (bar) of original."""
    cuts: dict[str, Chain] = {}
    for path in story.paths.values():
        if path[-1]["stage"] == "prune" and path[-1].get("widths"):
            name = title(path, story.alone)
            if name not in cuts or path[-1]["seed"] < cuts[name][-1]["seed"]:
                cuts[name] = path
    shown = spread([*cuts], PANELS)
    if not shown:
        return Drawn(None, "Nothing was cut here: `python prune.py` does.")
    with style():
        figure, axes = panels(len(shown), 2.6, share=True)
        for panel, name in zip(axes, shown, strict=True):
            _widths(panel, cuts[name][-1], name)
        figure.supxlabel("layer (BatchNorms, from input to output)", fontsize=11)
        figure.supylabel("channels", fontsize=11)
        legend(figure, axes)
    return Drawn(figure, left_out(name.replace("\n", ", ") for name in cuts if name not in shown))


def _widths(axes: Axes, run: dict[str, Any], name: str) -> None:
    kept, total = zip(*run["widths"].values(), strict=True)
    layers = range(1, len(total) + 1)
    # Outlines of neighbours in a network of 100 layers would hide the bars.
    line = 1.2 if len(total) <= 40 else 0.4
    axes.bar(layers, total, color="none", edgecolor=GREY, linewidth=line, label="before the cut")
    axes.bar(layers, kept, color=BLUE, label="after it")
    # The count of the result: where BatchNorms are cut together, bars would add up to more.
    channels = run["channels"]
    axes.set_title(f"{name}\n{channels['kept']:,} of {channels['total']:,} stay", fontsize=10)
    axes.set_xlim(0.3, len(total) + 0.7)
    axes.grid(False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
