"""The two pictures of a report: what the penalty did to the gammas, what the cut left per layer.

Both take chains (see utils/table.py), write one PNG and return what did not fit into it.
Colours are Okabe and Ito's, told apart by every kind of colour vision.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.table import network, ratio, strength, tuning

matplotlib.use("Agg")
BEFORE, CUT, TUNED = "#BBBBBB", "#0072B2", "#D55E00"
PANELS = 6
ZERO = 1e-8  # a gamma below this is drawn as exactly 0
STYLE = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
}


def gammas(chains: Sequence[list[dict[str, Any]]], path: Path) -> list[str]:
    """One panel per chain: histogram of all |gamma| before the cut, after it, after fine-tuning.

    -> the names of the chains left out: more than six, or without gammas. Chains with a cut
    come first.
    """
    able = _distinct([chain for chain in chains if any(_values(run).size for run in chain)])
    shown = sorted(able, key=lambda chain: not any(run["stage"] == "prune" for run in chain))
    shown = [chain for chain in able if chain in shown[:PANELS]]
    if not shown:
        path.unlink(missing_ok=True)  # an older picture would be of other runs
        return [chain[-1]["run"] for chain in chains]
    positive = np.concatenate([_values(run) for chain in shown for run in chain])
    positive = positive[positive >= ZERO]
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    # 8 bins per decade; whole decades, so that the ticks fall on edges.
    start, stop = math.floor(math.log10(low)), math.floor(math.log10(high)) + 1
    edges = np.logspace(start, stop, 8 * (stop - start) + 1)
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(len(shown))
        for panel, chain in zip(panels, shown, strict=True):
            _gamma_panel(panel, chain, edges)
        _label(figure, r"$|\gamma|$ of a channel (BatchNorm scale, no unit)", "channels")
        _legend(figure, panels)
        figure.savefig(path)
    return [chain[-1]["run"] for chain in able if chain not in shown]


def _gamma_panel(axes: Axes, chain: list[dict[str, Any]], edges: np.ndarray) -> None:
    looks = {
        "train": {"color": BEFORE, "label": "before the cut", "histtype": "stepfilled"},
        "prune": {"color": CUT, "label": "kept by the cut", "histtype": "stepfilled"},
        "finetune": {
            "color": TUNED,
            "label": "trained after it",
            "histtype": "step",
            "linewidth": 2,
        },
    }
    # Zeros have no place on a log axis: they get a bin of their own, one decade to the left.
    zero = (edges[0] / 10, edges[0] / 10 ** (7 / 8))
    edges = np.concatenate([zero, edges])
    for run in {run["stage"]: run for run in chain}.values():  # the last run of each stage
        values = _values(run)
        values = np.where(values < ZERO, math.sqrt(zero[0] * zero[1]), values)
        axes.hist(values, bins=edges, **looks[run["stage"]])
    axes.set(xscale="log", yscale="log", title=_title(chain), xlim=(zero[0] / 1.3, edges[-1]))
    axes.set_ylim(bottom=0.7)
    decades = range(round(math.log10(edges[2])), round(math.log10(edges[-1])) + 1)
    decades = decades[:: math.ceil(len(decades) / 6)]
    labels = ["0", *(f"$10^{{{d}}}$" for d in decades)]
    axes.set_xticks([math.sqrt(zero[0] * zero[1]), *(10.0**d for d in decades)], labels)
    axes.minorticks_off()


def widths(chains: Sequence[list[dict[str, Any]]], path: Path) -> list[str]:
    """One panel per pruned run: channels of each layer, kept (bar) of original (outline).

    -> the names of the pruned runs left out: more than six, or without widths.
    """
    cuts = {
        run["run"]: chain[: position + 1]
        for chain in chains
        for position, run in enumerate(chain)
        if run["stage"] == "prune"
    }
    able = [name for name, chain in cuts.items() if chain[-1].get("widths")]
    pictures = {_title(cuts[name]): name for name in reversed(able)}  # the first of each
    able = [name for name in able if name in pictures.values()]
    shown = able[:PANELS]
    if not shown:
        path.unlink(missing_ok=True)
        return list(cuts)
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(len(shown))
        for panel, name in zip(panels, shown, strict=True):
            _width_panel(panel, cuts[name])
        _label(figure, "layer (BatchNorms, from input to output)", "channels")
        _legend(figure, panels)
        figure.savefig(path)
    return [name for name in able if name not in shown]


def _distinct(chains: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """The longest chain of each title: cuts that differ in what was done after look alike."""
    longest: dict[str, list[dict[str, Any]]] = {}
    for chain in chains:
        if len(chain) > len(longest.get(_title(chain), [])):
            longest[_title(chain)] = chain
    return list(longest.values())


def _width_panel(axes: Axes, chain: list[dict[str, Any]]) -> None:
    kept, total = zip(*chain[-1]["widths"].values(), strict=True)
    layers = range(1, len(total) + 1)
    # Outlines of neighbours in a network of 100 layers would hide the bars.
    line = 1.2 if len(total) <= 40 else 0.4
    axes.bar(layers, total, color="none", edgecolor="#555555", linewidth=line, label="original")
    axes.bar(layers, kept, color=CUT, label="kept")
    # The count of the result: where BatchNorms are cut together, bars would add up to more.
    channels = chain[-1]["channels"]
    axes.set_title(f"{_title(chain)}\n{channels['kept']} of {channels['total']} channels stay")
    axes.set_xlim(0.3, len(total) + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def _values(run: dict[str, Any]) -> np.ndarray:
    return np.abs(np.array([g for layer in (run.get("gammas") or {}).values() for g in layer]))


def _title(chain: Iterable[dict[str, Any]]) -> str:
    chain = list(chain)
    parts = [network(chain[0]), chain[0]["dataset"], f"λ {strength(chain):g}"]
    share = ratio(chain)
    parts += [] if share is None else [f"cut {100 * share:g} %"]
    parts += [tuning(chain[-1])] if chain[-1].get("scratch", "none") != "none" else []
    return ", ".join([*parts, f"seed {chain[0]['seed']}"])


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    """A figure with `number` axes of the same scales, in as many columns as are readable."""
    columns = 1 if number == 1 else 2 if number in (2, 4) else 3
    lines = math.ceil(number / columns)
    figure = Figure(figsize=(max(7, 5 * columns), 3.6 * lines + 0.8))
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for spare in grid[number:]:
        spare.remove()
    return figure, list(grid[:number])


def _label(figure: Figure, x: str, y: str) -> None:
    figure.supxlabel(x)
    figure.supylabel(y)


def _legend(figure: Figure, panels: list[Axes]) -> None:
    """One legend for all panels, above them: it can't cover any data."""
    entries = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        entries.values(), entries.keys(), loc="outside upper center", ncols=3, frameon=False
    )
