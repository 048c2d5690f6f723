"""Accuracy against what a network costs, with the networks that no other one beats."""

from collections import Counter
from collections.abc import Sequence

import altair as alt

from utils.report.label import regime, uncut
from utils.report.plots.marks import (
    GREY,
    INK,
    PANELS,
    RED,
    STAR,
    TIP,
    Drawn,
    Panel,
    Row,
    data,
    facts,
    look,
    titles,
    within,
)
from utils.report.story import Story
from utils.report.summary import Point

COSTS = {"macs": "MACs per image", "params": "parameters", "latency_64_ms": "ms for a batch of 64"}
BELOW = 10  # points; what lies further below the best would squeeze all others together
FEW = 3  # seeds; of less the best may be luck
MISSING = "One network alone has no rival: `python pipeline.py` makes three."


def cost(story: Story) -> Drawn:
    """A panel per way of training and kind of cost, those of most networks first."""
    found: dict[str, list[Point]] = {}
    for line in story.lines:
        found.setdefault(regime(line.end), []).append(line.end)
    regimes = sorted((p for p in found.values() if len(p) > 1), key=len, reverse=True)
    if not regimes:
        return Drawn([], MISSING)
    panels, notes, left = [], [], []
    for title, points in zip(titles(regimes), regimes, strict=True):
        able = {column: own for column in COSTS if len(own := _known(points, column)) > 1}
        if len(panels) + len(able) > PANELS:
            left.append(title)
            continue
        for column, own in able.items():
            on = f" on {own[0]['timed_on']}" if "latency" in column else ""
            words = f"{title}: {COSTS[column]}{on}"
            panels.append(Panel(words, _panel(own, column, story.names, words)))
        notes += _notes(title, points)
    if left:
        notes.append(f"{len(left)} ways of training with fewer networks: {'; '.join(left)}")
    return Drawn(panels, ". ".join(notes))


def _known(points: Sequence[Point], column: str) -> list[Point]:
    """Those whose cost is known; times of one machine only, the one that timed most."""
    known = [point for point in points if point.mean(column) is not None]
    if "latency" not in column:
        return known
    on = {point: {row["timed_on"] for row in point.rows} for point in known}
    counted = Counter(next(iter(own)) for own in on.values() if len(own) == 1)
    first = counted.most_common(1)[0][0] if counted else None
    return [point for point in known if on[point] == {first}]


def _notes(title: str, points: Sequence[Point]) -> list[str]:
    best = max(point.mean("test") for point in points)
    far = sum(point.mean("test") < best - BELOW / 100 for point in points)
    on = front(points, "macs")
    few = sum(point.n < FEW for point in on)
    notes = []
    if far:
        few_words = "1 network lies" if far == 1 else f"{far} networks lie"
        notes.append(f"{title}: {few_words} more than {BELOW} points below the best: drag down")
    if few:
        notes.append(
            f"{title}: {few} of {len(on)} networks on the front of MACs have fewer than {FEW} "
            "seeds (hollow): the best of many single seeds is partly luck, a winner's curse"
        )
    return notes


def front(points: Sequence[Point], column: str) -> list[Point]:
    """The Pareto front: nothing else is both as cheap and as accurate."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.mean(column), -p.mean("test"))):
        if not best or point.mean("test") > best[-1].mean("test"):
            best.append(point)
    return best


def kind(point: Point) -> tuple[str, str, str]:
    """(what the legend calls it, colour, shape)"""
    if uncut(point):
        return ("uncut", GREY, "square") if point["lambda"] else ("uncut, no penalty", INK, STAR)
    colour, shape = look(point["method"])
    if point["stage"] == "prune":
        return f"{point['method']}, not fine-tuned", colour, "triangle-down"
    shape = "diamond" if point.what.startswith("scratch") else shape
    return f"{point['method']}, {point.what}", colour, shape


def _panel(points: Sequence[Point], column: str, names: dict[Point, str], title: str):
    rows = [_row(point, column, names[point]) for point in points]
    top = max(row["test"] for row in rows)
    near = [row for row in rows if row["test"] >= top - BELOW]
    y = within(*(row[end] for row in near for end in ("low", "high")))
    costs = [row["cost"] for row in rows]
    x = [min(costs) / 1.15, max(costs) * 1.15]
    best = front(points, column)
    step = [{"cost": point.mean(column), "test": 100 * point.mean("test")} for point in best]
    across = alt.X("cost:Q", title=COSTS[column], axis=alt.Axis(format="~s", tickCount=5))
    across = across.scale(type="log", domain=x, nice=False)
    up = alt.Y("test:Q", title="test accuracy in %", scale=alt.Scale(domain=y, nice=False))
    chart = alt.Chart(data(rows)).encode(across, up)
    line = alt.Chart(data(step)).mark_line(
        interpolate="step-after", color=RED, strokeWidth=1.5, strokeDash=[5, 3], clip=True
    )
    kinds = {said: (colour, shape) for said, colour, shape in sorted(map(kind, points))}
    looks, shapes = ([own[i] for own in kinds.values()] for i in (0, 1))
    colours = alt.Scale(domain=[*kinds], range=looks)
    marks = chart.mark_point(size=65, strokeWidth=1.8, opacity=1, clip=True).encode(
        alt.Stroke("kind:N", scale=colours, title=None),
        alt.Fill("kind:N", scale=colours, legend=None),
        alt.Shape("kind:N", scale=alt.Scale(domain=[*kinds], range=shapes), title=None),
        fillOpacity=alt.FillOpacity("solid:Q", scale=None),
        tooltip=[*TIP, alt.Tooltip("cost:Q", title=COSTS[column], format=".4s")],
    )
    bars = chart.mark_rule(clip=True, strokeOpacity=0.7).encode(
        alt.Y("low:Q"), alt.Y2("high:Q"), alt.Stroke("kind:N", scale=colours, title=None)
    )
    view = alt.selection_interval(bind="scales", zoom="wheel![event.shiftKey]")
    said = f"{title}: {len(rows)} networks, {len(best)} on the front, best {top:.2f} %"
    whole = alt.layer(line.encode(across, up), bars, marks, height=270, description=said)
    return whole.add_params(view)


def _row(point: Point, column: str, name: str) -> Row:
    test, error = 100 * point.mean("test"), 100 * (point.spread("test") or 0)
    hollow = point.n < FEW or (point["stage"] == "prune" and not uncut(point))
    return {
        **facts(point, name), "cost": point.mean(column), "test": test, "low": test - error,
        "high": test + error, "kind": kind(point)[0], "solid": 0 if hollow else 1,
    }  # fmt: skip
