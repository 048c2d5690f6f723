"""How the trainings went, epoch by epoch: a line per network, a band over its seeds."""

import math
from collections.abc import Sequence

import altair as alt
import numpy as np

from utils.report.label import labels, titles
from utils.report.plots import marks
from utils.report.plots.marks import Drawn, Panel, Row
from utils.report.plots.networks import but_goal, facts
from utils.report.story import Story
from utils.report.summary import Point
from utils.report.together import regime
from utils.runs.results import metrics

COLUMNS = {"train/loss", "train/accuracy"}
TOLD = 8  # colours; more can't be told apart
LINES, EPOCHS = 60, 60  # of a panel: the page has to stay small
Metrics = list[list[dict]]  # the rows of each seed


def curves(story: Story) -> Drawn:
    """Loss on the training images and accuracy, of trainings and of fine-tunings."""
    found: dict[tuple[str, str], list[Point]] = {}
    for point in story.points:
        if point["stage"] != "prune":
            found.setdefault((point["stage"], regime(point)), []).append(point)
    ordered = sorted(found.values(), key=len, reverse=True)
    panels, notes, left = [], [], 0
    for title, points in zip(titles(ordered), ordered, strict=True):
        if len(panels) >= marks.PANELS:
            left += len(points)
            continue
        read = {point: _read(story, point) for point in marks.spread(points, LINES)}
        known = {point: seeds for point, seeds in read.items() if seeds}
        if points[0]["stage"] == "train":
            title = f"{but_goal(title, points[0])}: training"
        else:
            title += ": fine-tuning"
        panels += _pair(title, known) if known else []
        if known and len(known) < len(points):
            notes.append(f"{title}: {len(known)} of {len(points)} networks")
    if not panels:
        return Drawn([], "There is no metrics.jsonl beside these results: copy it with the runs.")
    notes += [f"{left} networks of smaller groups aren't shown"] if left else []
    return Drawn(panels, "; ".join(notes))


def _read(story: Story, point: Point) -> Metrics | None:
    """None unless every seed has rows with all that is drawn."""
    seeds = [metrics(story.by_name[row["run"]]) for row in point.rows]
    whole = all(seeds) and all(row.keys() >= COLUMNS for rows in seeds for row in rows)
    return seeds if whole else None


def _pair(title: str, known: dict[Point, Metrics]) -> list[Panel]:
    every = [row for seeds in known.values() for rows in seeds for row in rows]
    which = "val" if all(row.get("val/accuracy") is not None for row in every) else "train"
    of = "validation" if which == "val" else "training"
    names = labels([*known])
    shown = (
        ("loss on training images", "train/loss", 1, "log"),
        (f"{of} accuracy in %", f"{which}/accuracy", 100, "linear"),
    )
    return [
        Panel(f"{title}, {said.removesuffix(' in %')}", _panel(rows, said, scale))
        for said, column, times, scale in shown
        if (rows := [_row(point, names[point], known[point], column, times) for point in known])
    ]


def _row(point: Point, name: str, seeds: Metrics, column: str, times: float) -> Row:
    epochs = min(map(len, seeds))
    values = [[row.get(column) for row in rows[:epochs]] for rows in seeds]
    values = times * np.array(values, dtype=float)
    at = marks.spread(range(epochs), EPOCHS)
    return {
        **facts(point, name), "epoch": [seeds[0][i]["epoch"] for i in at],
        "mean": values.mean(0)[at].tolist(), "low": values.min(0)[at].tolist(),
        "high": values.max(0)[at].tolist(),
    }  # fmt: skip


def _panel(rows: Sequence[Row], said: str, scale: str) -> alt.LayerChart:
    few = len(rows) <= TOLD
    along = alt.Scale(domain=[1, max(row["epoch"][-1] for row in rows)], nice=False)
    epochs = marks.spread(sorted({epoch for row in rows for epoch in row["epoch"]}), 6)
    colour = alt.Scale(domain=[row["name"] for row in rows], range=[*marks.SERIES])
    legend = alt.Legend(title=None, symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=3)
    ends = [value for row in rows for end in ("low", "high") for value in row[end]]
    ends = [value for value in ends if math.isfinite(value) and (value > 0 or scale != "log")]
    # What the page's filter leaves stays in its place.
    up = alt.Scale(
        type=scale, nice=False, padding=6, domain=[min(ends, default=0.1), max(ends, default=1)]
    )
    chart = alt.Chart().transform_flatten(["epoch", "mean", "low", "high"]).encode(
        alt.X("epoch:Q", title="epoch", axis=alt.Axis(values=epochs), scale=along),
        alt.Y("mean:Q", title=said, scale=up, axis=alt.Axis(format=".3~g", tickCount=5)),
        color=alt.Color("name:N", scale=colour, legend=legend) if few else alt.value(marks.BLUE),
        detail="name:N",
    )  # fmt: skip
    band = chart.mark_area(opacity=0.15 if few else 1 / len(rows))
    band = band.encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    lines = chart.mark_line(strokeWidth=1.8, opacity=1 if few else max(0.25, TOLD / len(rows)))
    # Wide and unseen: what a pointer finds.
    hover = chart.mark_line(strokeWidth=9, strokeOpacity=0).encode(tooltip=marks.TIP)
    told = [f"{row['name']} {row['mean'][-1]:.4g}" for row in rows[:TOLD]]
    more = "" if few else f" and {len(rows) - TOLD} more"
    return alt.layer(
        band, lines, hover.properties(name="hover"), data=marks.data(rows), height=240,
        description=f"{said}, at the end: {', '.join(told)}{more}",
    )  # fmt: skip
