"""What the penalty does to the BatchNorm scales: after training (Figure 4 of the paper), while
one layer is trained (Figure 6)."""

import math
from typing import Any

import altair as alt
import numpy as np

from utils.report.label import labels
from utils.report.plots import marks
from utils.report.plots.marks import Drawn, Panel
from utils.report.story import Story
from utils.report.summary import Point
from utils.runs.results import metrics
from utils.training.strength import EDGES

Run = dict[str, Any]
ZERO = 1e-8  # a gamma below this is drawn as exactly 0
FAINT = 1e-3  # ... in the picture of one layer
BINS = 8  # of a decade
FLOOR = 0.7  # where bars of a logarithmic axis stand, so that 1 can be seen
LINES, EPOCHS = 64, 50  # of the picture of one layer: more can't be seen
COUNTS = [alt.Tooltip("from:Q", format=".3g", title="|γ| from"), alt.Tooltip("count:Q")]


def gammas(story: Story) -> Drawn:
    """A panel per training, first seed, before any cut: how many |gamma| of which size."""
    found = {point: _values(run) for point, run in _trainings(story).items()}
    names = labels([point for point, values in found.items() if values.size])
    if not names:
        return Drawn([], "No run here recorded its gammas: train one with `python pipeline.py`.")
    shown, note = marks.capped([*names], "trainings")
    everything = np.concatenate([found[point] for point in shown])
    positive = everything[everything >= ZERO]
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    start, stop = math.floor(math.log10(low)), math.floor(math.log10(high)) + 1
    edges = np.logspace(start, stop, BINS * (stop - start) + 1)
    counts = {point: _counts(found[point], edges) for point in shown}
    most = max(max(own) for own in counts.values())
    panels = []
    for point in shown:
        title = f"{names[point]}: {found[point].size:,} channels, {counts[point][0]:,} of them at 0"
        row = {**marks.facts(point, names[point]), **_bars(counts[point], edges)}
        panels.append(Panel(title, _histogram(row, edges, 1.2 * most, title)))
    return Drawn(panels, note)


def _trainings(story: Story) -> dict[Point, Run]:
    """Each training and the run of its first seed."""
    points = [point for point in story.points if point["stage"] == "train"]
    first = {point: min(point.rows, key=lambda row: row["seed"]) for point in points}
    return {point: story.by_name[row["run"]] for point, row in first.items()}


def _values(run: Run) -> np.ndarray:
    layers = (run.get("gammas") or {}).values()
    return np.abs(np.array([gamma for layer in layers for gamma in layer], dtype=float))


def _counts(values: np.ndarray, edges: np.ndarray) -> list[int]:
    """[zeros, those of each bin]"""
    counted, _ = np.histogram(values[values >= ZERO], edges)
    return [int((values < ZERO).sum()), *counted.tolist()]


def _bars(counts: list[int], edges: np.ndarray) -> dict[str, list]:
    """Zeros have no place on a logarithmic axis: their bin is half a decade to the left."""
    left = [edges[0] / 10**0.6, *edges[:-1]]
    right = [edges[0] / 10**0.4, *edges[1:]]
    bars = [bar for bar in zip(left, right, counts, strict=True) if bar[2]]
    starts, ends, heights = zip(*bars, strict=True)
    known = [0.0 if start < edges[0] else start for start in starts]
    return {"left": [*starts], "right": [*ends], "count": [*heights], "from": known}


def _histogram(row: dict[str, Any], edges: np.ndarray, top: float, title: str) -> alt.LayerChart:
    zero = edges[0] / 10**0.5
    every = math.ceil(math.log10(edges[-1] / edges[0]) / 5)
    decades = [
        10.0**d for d in range(round(math.log10(edges[0])), round(math.log10(edges[-1])) + 1)
    ]
    said = f"datum.value < {edges[0] / 2:.3g} ? '0' : "
    said += "format(datum.value, datum.value < 0.001 ? '.0e' : '~g')"
    axis = alt.Axis(title="|γ| of a channel", values=[zero, *decades[every::every]], labelExpr=said)
    across = alt.Scale(type="log", domain=[edges[0] / 10**0.8, edges[-1]], nice=False)
    up = alt.Scale(type="log", domain=[FLOOR, top], nice=False)
    tens = [10**d for d in range(math.ceil(math.log10(top)))]
    chart = alt.Chart(marks.data([row])).transform_flatten(["left", "right", "count", "from"])
    bars = chart.mark_bar(color=marks.BLUE, stroke=None, binSpacing=0).encode(
        alt.X("left:Q", axis=axis, scale=across),
        alt.X2("right:Q"),
        alt.Y("count:Q", title="channels", scale=up, axis=alt.Axis(values=tens)),
        alt.Y2(datum=FLOOR),
        tooltip=[*marks.TIP, *COUNTS],
    )
    return alt.layer(bars, height=200, description=f"histogram of |γ|: {title}")


def evolution(story: Story) -> Drawn:
    """One layer's |gamma| over the epochs, a panel per training, of its first seed."""
    known = _trainings(story)
    names = labels([*known])
    drawn = []
    for point, run in known.items():
        if len(drawn) < marks.PANELS // 2 and (history := _history(run)) is not None:
            drawn.append((point, *history))
    if not drawn:
        return Drawn(
            [], "No metrics.jsonl here has gammas: copy it with the runs, or train one anew."
        )
    panels = []
    for point, layer, epochs, values in drawn:
        title = f"{names[point]}: {layer}, {len(values)} channels"
        panels.append(Panel(title, _layer(marks.facts(point, names[point]), epochs, values, title)))
    left = len(known) - len(drawn)
    note = f"The first trainings that recorded it; {left} of {len(known)} aren't shown."
    return Drawn(panels, note if left else "")


def _layer(fact: dict[str, Any], epochs: list[int], values: np.ndarray, title: str):
    """A line per channel, those with the largest |gamma| at the end first."""
    ordered = values[np.argsort(-values[:, -1], kind="stable")]
    columns = marks.spread(range(len(epochs)), EPOCHS)
    rows = [
        {
            **fact, "channel": line + 1, "epoch": [epochs[c] for c in columns],
            "gamma": [float(ordered[line][c]) for c in columns],
        }
        for line in marks.spread(range(len(ordered)), LINES)
    ]  # fmt: skip
    scale = alt.Scale(type="log", domain=[FAINT, 1], clamp=True, scheme="cividis")
    legend = alt.Legend(title="|γ|", values=[0.001, 0.01, 0.1, 1], format="~g", gradientLength=180)
    chart = alt.Chart(marks.data(rows)).transform_flatten(["epoch", "gamma"])
    boxes = chart.mark_rect(stroke=None).encode(
        alt.X("epoch:O", title="epoch", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
        alt.Y(
            "channel:O",
            title="channels, by |γ| at the end",
            axis=alt.Axis(labels=False, ticks=False),
        ),
        alt.Color("gamma:Q", scale=scale, legend=legend),
        tooltip=[
            *marks.TIP,
            "channel:O",
            "epoch:O",
            alt.Tooltip("gamma:Q", title="|γ|", format=".3g"),
        ],
    )
    alive = float((values[:, -1] >= 0.01).mean())
    said = f"|γ| over the epochs, {title}, {100 * alive:.0f} % of them 0.01 or more at the end"
    return alt.layer(boxes.properties(name="dense"), height=230, description=said)


def _history(run: Run) -> tuple[str, list[int], np.ndarray] | None:
    """(layer, epochs, |gamma| of (channel, epoch)); older runs counted them, None: neither."""
    rows = metrics(run)
    if rows and all(row.get("gammas") for row in rows):
        values = np.abs(np.array([row["gammas"]["values"] for row in rows], dtype=float))
        return str(rows[0]["gammas"]["layer"]), [row["epoch"] for row in rows], values.T
    rows = [row for row in rows if row.get("gamma_histogram")]
    if not rows:
        return None
    layers = list(rows[0]["gamma_histogram"])
    layer = layers[min(len(layers) - 1, len(layers) * 11 // 16)]  # the paper's: VGG-19's 11th
    # The middle of each bin; the first and the last one have none.
    inner = [math.sqrt(low * high) for low, high in zip(EDGES[1:], EDGES[2:-1])]
    middles = np.array([EDGES[1], *inner, EDGES[-2]])
    counts = [row["gamma_histogram"][layer] for row in rows]
    values = np.array([np.repeat(middles, row)[::-1] for row in counts])
    return layer, [row["epoch"] for row in rows], values.T
