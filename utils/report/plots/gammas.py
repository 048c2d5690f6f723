"""What the penalty does to the BatchNorm scales: after training (Figure 4 of the paper), while
one layer is trained (Figure 6)."""

import math
from typing import Any

import altair as alt
import numpy as np

from utils.report.label import labels, uncut
from utils.report.plots import marks
from utils.report.plots.marks import Drawn, Panel
from utils.report.plots.networks import facts
from utils.report.story import Story
from utils.report.summary import Point
from utils.runs.results import metrics

Run = dict[str, Any]
ZERO = 1e-8  # a gamma below this is drawn as exactly 0
FAINT = 1e-3  # ... in the picture of one layer
BINS = 8  # of a decade
FLOOR = 0.7  # where bars of a logarithmic axis stand, so that 1 can be seen
LINES, EPOCHS = 64, 50  # of the picture of one layer: more can't be seen


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
    bars = {point: _bars(found[point], start, stop) for point in shown}
    top = 1.2 * max(max(own["count"]) for own in bars.values())
    panels = []
    for point in shown:
        values, row = found[point], {**facts(point, names[point]), **bars[point]}
        title = f"{names[point]}: {values.size:,} channels, {(values < ZERO).sum():,} of them at 0"
        panels.append(Panel(title, _histogram(row, start, stop, top, title)))
    return Drawn(panels, note)


def _trainings(story: Story) -> dict[Point, Run]:
    """Each training and the run of its first seed."""
    points = [point for point in story.points if point["stage"] == "train" and uncut(point)]
    first = {point: min(point.rows, key=lambda row: row["seed"]) for point in points}
    return {point: story.by_name[row["run"]] for point, row in first.items()}


def _values(run: Run) -> np.ndarray:
    layers = (run.get("gammas") or {}).values()
    return np.abs(np.array([gamma for layer in layers for gamma in layer], dtype=float))


def _bars(values: np.ndarray, start: int, stop: int) -> dict[str, list]:
    """Zeros have no place on a logarithmic axis: they get the decade before the first one."""
    placed = np.where(values < ZERO, _zero(start), values)
    edges = np.logspace(start - 1, stop, BINS * (stop - start + 1) + 1)
    counts, _ = np.histogram(placed, edges)
    bars = [bar for bar in zip(edges[:-1], edges[1:], counts.tolist(), strict=True) if bar[2]]
    left, right, count = map(list, zip(*bars, strict=True))
    known = [0.0 if edge < 0.9 * 10**start else edge for edge in left]
    return {"left": left, "right": right, "count": count, "from": known}


def _zero(start: int) -> float:
    return 10 ** (start - 1 + 4.5 / BINS)


def _histogram(row: Run, start: int, stop: int, top: float, title: str) -> alt.LayerChart:
    every = math.ceil((stop - start) / 5)
    ticks = [_zero(start), *(10.0**d for d in range(start + every, stop + 1, every))]
    number = "format(datum.value, datum.value < 0.001 ? '.0e' : '~g')"
    said = f"datum.value < 1e{start} ? '0' : {number}"
    axis = alt.Axis(title="|γ| of a channel", values=ticks, labelExpr=said)
    across = alt.Scale(type="log", domain=[10.0 ** (start - 1), 10.0**stop], nice=False)
    up = alt.Scale(type="log", domain=[FLOOR, top], nice=False)
    tens = alt.Axis(values=[10**d for d in range(math.ceil(math.log10(top)))])
    chart = alt.Chart(marks.data([row])).transform_flatten(["left", "right", "count", "from"])
    bars = chart.mark_bar(color=marks.BLUE, stroke=None, binSpacing=0).encode(
        alt.X("left:Q", axis=axis, scale=across), alt.X2("right:Q"),
        alt.Y("count:Q", title="channels", scale=up, axis=tens), alt.Y2(datum=FLOOR),
        tooltip=[*marks.TIP, alt.Tooltip("from:Q", format=".3g", title="|γ| from"), "count:Q"],
    )  # fmt: skip
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
        panels.append(Panel(title, _layer(facts(point, names[point]), epochs, values, title)))
    left = len(known) - len(drawn)
    note = f"The first trainings that recorded it; {left} of {len(known)} aren't shown."
    return Drawn(panels, note if left else "")


def _layer(fact: Run, epochs: list[int], values: np.ndarray, title: str) -> alt.LayerChart:
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
    along = alt.Axis(labelOverlap=True, labelAngle=0)
    down = alt.Axis(title="channels, by |γ| at the end", labels=False, ticks=False)
    chart = alt.Chart(marks.data(rows), name="dense").transform_flatten(["epoch", "gamma"])
    boxes = chart.mark_rect(stroke=None).encode(
        alt.X("epoch:O", axis=along), alt.Y("channel:O", axis=down),
        alt.Color("gamma:Q", scale=scale, legend=legend), tooltip=[*marks.TIP,
        "channel:O", "epoch:O", alt.Tooltip("gamma:Q", title="|γ|", format=".3g")],
    )  # fmt: skip
    alive = float((values[:, -1] >= 0.01).mean())
    said = f"|γ| over the epochs, {title}, {100 * alive:.0f} % of them 0.01 or more at the end"
    return alt.layer(boxes, height=230, description=said)


def _history(run: Run) -> tuple[str, list[int], np.ndarray] | None:
    """(layer, epochs, |gamma| of (channel, epoch)), or None."""
    rows = metrics(run)
    if not rows or not all(row.get("gammas") for row in rows):
        return None
    values = np.abs(np.array([row["gammas"]["values"] for row in rows], dtype=float))
    return str(rows[0]["gammas"]["layer"]), [row["epoch"] for row in rows], values.T
