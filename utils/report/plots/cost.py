"""Accuracy against what a network costs, with the networks that no other one beats."""

from collections import Counter
from collections.abc import Mapping, Sequence
from zlib import crc32

import altair as alt

from utils.report.label import titles, uncut
from utils.report.plots import marks
from utils.report.plots.marks import Drawn, Panel, Row
from utils.report.plots.networks import scored
from utils.report.story import Story
from utils.report.summary import Point
from utils.report.together import regime

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
    panels, shown, left = [], {}, []
    for title, points in zip(titles(regimes), regimes, strict=True):
        able = {column: own for column in COSTS if len(own := _known(points, column)) > 1}
        if len(panels) + len(able) > marks.PANELS:
            left.append(title)
            continue
        shown[title] = points
        for column, own in able.items():
            on = f" on {own[0]['timed_on']}" if "latency" in column else ""
            words = f"{title}: {COSTS[column]}{on}"
            panels.append(Panel(words, _panel(own, column, story.names, words)))
    return Drawn(panels, _note(shown, left))


def _known(points: Sequence[Point], column: str) -> list[Point]:
    """Those whose cost is known; times of one machine only, the one that timed most."""
    known = [point for point in points if point.mean(column) is not None]
    if "latency" not in column:
        return known
    on = {point: {row["timed_on"] for row in point.rows} for point in known}
    counted = Counter(next(iter(own)) for own in on.values() if len(own) == 1)
    first = counted.most_common(1)[0][0] if counted else None
    return [point for point in known if on[point] == {first}]


def _note(shown: Mapping[str, Sequence[Point]], left: Sequence[str]) -> str:
    """How many are below the view, of whose front luck is part, and which aren't shown at all."""
    below, lucky = [], []
    for title, points in shown.items():
        of = f" of {title}" if len(shown) > 1 else f" of {len(points)} networks"
        on, best = front(points, "macs"), max(point.mean("test") for point in points)
        far = sum(point.mean("test") < best - BELOW / 100 for point in points)
        few = sum(point.n < FEW for point in on)
        front_of = of if len(shown) > 1 else ""
        below += [f"{far}{of}"] if far else []
        lucky += [f"{few} of {len(on)}{front_of}"] if few else []
    said = {
        f"More than {BELOW} points below the best (drag a chart to see them): {{}}.": below,
        f"On the front of MACs with fewer than {FEW} seeds (hollow): {{}}. The best of many single "
        "seeds is partly luck, a winner's curse.": lucky,
        "Not shown, as others have more networks: {}.": left,
    }
    return " ".join(text.format("; ".join(them)) for text, them in said.items() if them)


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
        sparse = ("uncut, with a penalty", marks.GREY, "square")
        return sparse if point["lambda"] else ("uncut, no penalty", marks.INK, marks.STAR)
    colour, shape = marks.look(point["method"])
    if point["stage"] == "prune":
        return f"{point['method']}, not fine-tuned", colour, "triangle-down"
    shape = "diamond" if point.what.startswith("scratch") else shape
    return f"{point['method']}, {point.what}", colour, shape


def _panel(points: Sequence[Point], column: str, names: dict[Point, str], title: str):
    rows = [_row(point, column, names[point]) for point in points]
    top = max(row["test"] for row in rows)
    costs, timed = [row["cost"] for row in rows], "latency" in column
    x = alt.Scale(type="log", domain=[min(costs) / 1.15, max(costs) * 1.15], nice=False)
    across = alt.X("cost:Q", title=COSTS[column], scale=x, axis=alt.Axis(format="~s", tickCount=5))
    up = marks.accuracy(row for row in rows if row["test"] >= top - BELOW)
    kinds = {said: own for said, *own in sorted(map(kind, points))}
    colours, shapes = marks.looks(kinds)
    legend = alt.Legend(title=None, columns=2, labelLimit=170)
    chart = alt.Chart().encode(
        across, up, alt.Color("kind:N", scale=colours, legend=legend),
        tooltip=[*marks.TIP, *([alt.Tooltip("cost:Q", title=COSTS[column])] if timed else [])],
    )  # fmt: skip
    bars = chart.mark_rule(clip=True, opacity=0.7).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    shape = alt.Shape("kind:N", scale=shapes, legend=legend)
    points_of = {"size": 60, "opacity": 1, "clip": True}
    solid = chart.transform_filter("datum.solid").mark_point(filled=True, **points_of)
    hollow = chart.transform_filter("!datum.solid").mark_point(strokeWidth=1.8, **points_of)
    best = front(points, column)
    # Of all networks, whatever the page's filter leaves.
    step = [{"cost": point.mean(column), "test": 100 * point.mean("test")} for point in best]
    looks = {"color": marks.INK, "strokeWidth": 1.5, "strokeDash": [5, 3], "clip": True}
    line = alt.Chart(marks.data(step)).mark_line(interpolate="step-after", **looks)
    view = alt.selection_interval(
        f"view{crc32(title.encode())}", bind="scales", zoom="wheel![event.shiftKey]"
    )
    said = f"{title}: {len(rows)} networks, {len(best)} on the front, best {top:.2f} %"
    layers = (line.encode(across, up), bars, solid.encode(shape), hollow.encode(shape))
    whole = alt.layer(*layers, data=marks.data(rows), height=270, description=said)
    return whole.add_params(view)


def _row(point: Point, column: str, name: str) -> Row:
    solid = point.n >= FEW and (point["stage"] != "prune" or uncut(point))
    row = scored(point, name)
    return {**row, "cost": point.mean(column), "kind": kind(point)[0], "solid": solid}
