"""What the penalty does to the BatchNorm scales: after training (Figure 4 of the paper), while
one layer is trained (Figure 6)."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from utils.report.plots.marks import (
    BLUE,
    GREY,
    PANELS,
    RED,
    Drawn,
    left_out,
    legend,
    panels,
    style,
)
from utils.report.story import Story
from utils.report.table import method, network, ratio, strength, target
from utils.runs.results import metrics
from utils.training.strength import EDGES

Chain = list[dict[str, Any]]
ZERO = 1e-8  # a gamma below this is drawn as exactly 0
FAINT = 1e-3  # ... in the picture of one layer


def gammas(story: Story) -> Drawn:
    """One panel per lambda: histogram of all |gamma| before the cut, after it, after fine-tuning.

    Of each lambda the first seed, and the middle one of its cuts.
    """
    known = [chain for chain in story.chains if any(_values(run).size for run in chain)]
    able = [*map(_furthest, _by_lambda(known))]
    shown = able[:PANELS]
    if not shown:
        return Drawn(None, "No run here recorded its gammas: train one with `python pipeline.py`.")
    positive = np.concatenate([_values(run) for chain in shown for run in chain])
    positive = positive[positive >= ZERO]
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    # 8 bins per decade; whole decades, so that the ticks fall on edges.
    start, stop = math.floor(math.log10(low)), math.floor(math.log10(high)) + 1
    edges = np.logspace(start, stop, 8 * (stop - start) + 1)
    with style():
        figure, axes = panels(len(shown), 2.7, share=True)
        for panel, chain in zip(axes, shown, strict=True):
            _histogram(panel, chain, edges)
            panel.set_title(title(chain, story.alone))
        figure.supxlabel("|γ| of a channel (BatchNorm scale, no unit)", fontsize=11)
        figure.supylabel("channels", fontsize=11)
        legend(figure, axes)
    return Drawn(figure, left_out(_flat(chain) for chain in able[PANELS:]))


def _by_lambda(chains: Sequence[Chain]) -> list[list[Chain]]:
    """The first seed's chains, those of one lambda together."""
    found: dict[tuple, list[Chain]] = {}
    for chain in chains:
        key = (network(chain[0]), chain[0]["dataset"], chain[0].get("recipe"), strength(chain))
        found.setdefault(key, []).append(chain)
    seeds = {key: min(chain[0]["seed"] for chain in several) for key, several in found.items()}
    return [[c for c in found[key] if c[0]["seed"] == seed] for key, seed in seeds.items()]


def _furthest(chains: Sequence[Chain]) -> Chain:
    """The chain that goes furthest, cut by a middle share."""
    longest = max(map(len, chains))
    longest = sorted((c for c in chains if len(c) == longest), key=lambda c: ratio(c) or 0)
    return longest[len(longest) // 2]


def _histogram(axes: Axes, chain: Chain, edges: np.ndarray) -> None:
    looks = {
        "train": {"color": GREY, "alpha": 0.55, "label": "before the cut"},
        "prune": {"color": BLUE, "alpha": 0.8, "label": "kept by the cut"},
        "finetune": {"color": RED, "label": "fine-tuned", "histtype": "step", "linewidth": 1.6},
    }
    # Zeros have no place on a log axis: they get a bin of their own, one decade to the left.
    zero = (edges[0] / 10, edges[0] / 10 ** (7 / 8))
    middle = math.sqrt(zero[0] * zero[1])
    edges = np.concatenate([zero, edges])
    for run in {run["stage"]: run for run in chain}.values():  # the last run of each stage
        values = _values(run)
        values = np.where(values < ZERO, middle, values)
        axes.hist(values, bins=edges, **{"histtype": "stepfilled", **looks[run["stage"]]})
    axes.set(xscale="log", yscale="log", xlim=(zero[0] / 1.3, edges[-1]))
    axes.set_ylim(bottom=0.7)
    decades = range(round(math.log10(edges[2])), round(math.log10(edges[-1])) + 1)
    every = math.ceil(len(decades) / 5)
    decades = [d for d in decades[1:] if d % every == 0]
    axes.set_xticks([middle, *(10.0**d for d in decades)], ["0", *map(power, decades)])
    low, high = axes.get_ylim()
    ticks = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    axes.set_yticks([10.0**d for d in ticks], [f"{10**d:,}" for d in ticks])
    axes.minorticks_off()


def evolution(story: Story) -> Drawn:
    """One layer's |gamma| over the epochs, a panel per lambda (at most three, the first seed)."""
    first = [[chain[0]] for chain in story.chains if chain[0]["stage"] == "train"]
    trainings = [chains[0][0] for chains in _by_lambda(first)]
    drawn = []
    for run in trainings:
        if len(drawn) < 3 and (history := _history(run)) is not None:
            drawn.append((run, *history))
    if not drawn:
        return Drawn(
            None, "No metrics.jsonl here has gammas: copy it with the runs, or train one anew."
        )
    with style(), matplotlib.rc_context({"axes.grid": False}):
        figure, axes = panels(len(drawn), 3.2)
        for panel, (run, layer, values, counted) in zip(axes, drawn, strict=True):
            image = _layer(panel, values, counted)
            panel.set_title(f"{title([run], story.alone)}\nlayer {layer}")
            panel.set(xlabel="epoch", yticks=[])
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes[0].set_ylabel("channels, the strongest on top")
        bar = figure.colorbar(image, ax=axes, label="|γ| (no unit)", extend="both")
        bar.set_ticks([0.001, 0.01, 0.1, 1], labels=["≤ 0.001", "0.01", "0.1", "1"])
        bar.minorticks_off()
    shown = [run["run"] for run, *_ in drawn]
    missed = [run for run in trainings if run["run"] not in shown]
    return Drawn(figure, left_out(_flat([run]) for run in missed))


def _layer(axes: Axes, values: np.ndarray, counted: bool):
    """|gamma| of (channel, epoch), each epoch sorted if only counts were kept."""
    if not counted:
        values = values[np.argsort(-values[:, -1], kind="stable")]
    epochs = values.shape[1]
    return axes.imshow(
        np.maximum(values, FAINT), norm=LogNorm(FAINT, 1), cmap="cividis", aspect="auto",
        interpolation="nearest", extent=(0.5, epochs + 0.5, len(values), 0),
    )  # fmt: skip


def _history(run: dict[str, Any]) -> tuple[str, np.ndarray, bool] | None:
    """(layer, |gamma| of (channel, epoch), whether these are counts spread out), or None."""
    rows = metrics(run)
    if rows and all(row.get("gammas") for row in rows):
        values = np.abs(np.array([row["gammas"]["values"] for row in rows], dtype=float))
        return str(rows[0]["gammas"]["layer"]), values.T, False
    rows = [row for row in rows if row.get("gamma_histogram")]
    if not rows:
        return None
    layers = list(rows[0]["gamma_histogram"])
    layer = layers[min(len(layers) - 1, len(layers) * 11 // 16)]  # the paper's: VGG-19's 11th
    # The middle of each bin; the first and the last one have none.
    inner = [math.sqrt(low * high) for low, high in zip(EDGES[1:], EDGES[2:-1])]
    middles = np.array([EDGES[1], *inner, EDGES[-2]])
    counts = [row["gamma_histogram"][layer] for row in rows]
    return layer, np.array([np.repeat(middles, row)[::-1] for row in counts]).T, True


def _values(run: dict[str, Any]) -> np.ndarray:
    return np.abs(np.array([g for layer in (run.get("gammas") or {}).values() for g in layer]))


def title(chain: Sequence[dict[str, Any]], alone: bool = False) -> str:
    """ "λ 0.01, cut 50 %", under the network's name unless it is alone."""
    share, limit = ratio(chain), target(chain)
    parts = [f"λ {strength(chain):g}"]
    parts += [f"cut {100 * share:g} %"] if share is not None else [f"{limit}"] if limit else []
    parts += [method(chain)] if method(chain) != "slimming" else []
    before = "" if alone else f"{network(chain[0])}, {chain[0]['dataset']}\n"
    return before + ", ".join(parts)


def _flat(chain: Chain) -> str:
    return title(chain).replace("\n", ", ")


def power(exponent: int) -> str:
    """10⁻³"""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
