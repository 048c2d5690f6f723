"""How much can go: right after a cut, repaired, and fine-tuned (Figure 5 of the paper)."""

from collections.abc import Sequence

import altair as alt

from utils.report.knee import limited
from utils.report.label import TRAINING, family, goal, labels, regime, together, uncut
from utils.report.plots.marks import (
    GREY,
    INK,
    SERIES,
    TIP,
    Drawn,
    Panel,
    Row,
    but_goal,
    capped,
    data,
    facts,
    titles,
    within,
)
from utils.report.story import Story
from utils.report.summary import Point

MISSING = "Nothing was cut by a share here: `python pipeline.py -m ratio=0.3,0.5,0.7` does."
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")


def ratio(story: Story) -> Drawn:
    """A panel per training and choice of channels, and beside it what is lost in its scale.

    Lines go through what was done after the cut; the uncut networks are levels.
    """
    found: dict[tuple, list[Point]] = {}
    for point in story.points:
        if share(point) is not None and not point.what.startswith("scratch"):
            key = (limited(point), together(point, "goal", "repair", "after", "stages"))
            found.setdefault(key, []).append(point)
    if not found:
        return Drawn([], MISSING)
    able = sorted(found.values(), key=lambda own: -len({goal(point) for point in own}))
    shown, note = capped(able, "ways to cut, those of most goals first", 3)
    panels = []
    for title, points in zip(titles(shown), shown, strict=True):
        levels = _levels(story, points[0])
        panels.append(Panel(title, _panel(points, levels, title)))
        tuned = [point for point in points if point["stage"] == "finetune"]
        if tuned and len(tuned) < len(points):
            near = f"{title}: fine-tuned"
            panels.append(Panel(near, _panel(points, levels, near, tuned)))
    return Drawn(panels, note)


def share(point: Point) -> float | None:
    """The share of channels removed, or of a cost that may stay; None for anything else."""
    if point["target"] is None:
        return point["ratio"]
    limits = point["target"].split(", ")
    number = float(limits[0].rpartition(" ")[2])
    return number if len(limits) == 1 and number <= 1 else None


def _levels(story: Story, cut: Point) -> list[Point]:
    """The network before the cut, and what it is without a penalty."""
    trained = together(cut, *TRAINING[1:])
    before = [
        point for point in story.points
        if uncut(point) and point["stage"] == "train" and together(point, *TRAINING[1:]) == trained
    ]  # fmt: skip
    dense = story.dense.get(regime(cut))
    return [*before, *([dense] if dense and dense not in before else [])]


def _panel(
    points: Sequence[Point],
    levels: Sequence[Point],
    title: str,
    shown: Sequence[Point] | None = None,
) -> alt.LayerChart:
    """
    Args:
        shown: a part of the points, whose lines look as among all of them.
    """
    lines = [*family(points, "goal").values()]
    names = labels(points)
    called = [but_goal(names[line[0]], line[0]) or line[0].what for line in lines]
    called = [f"{n}, {p[0]['run']}" if called.count(n) > 1 else n for n, p in zip(called, lines)]
    rows = [
        {**_row(point, names[point]), "line": name}
        for name, line in zip(called, lines, strict=True)
        for point in line
        if point in (shown or points)
    ]
    x = within(*(row["x"] for row in rows), least=4)
    below = {
        point: f"{name}, uncut".replace("uncut, uncut", "uncut")
        for point, name in labels(levels).items()
    }
    for point, name in below.items():
        rows += [{**_row(point, name), "line": name, "level": True, "x": end} for end in x]
    kinds = [*dict.fromkeys(row["line"] for row in rows)]
    series = {name: (SERIES[i % 6], SHAPES[i % 6], [1, 0]) for i, name in enumerate(called)}
    series |= {
        name: (
            INK if not point["lambda"] else GREY,
            "stroke",
            [6, 4] if point["lambda"] else [2, 3],
        )
        for point, name in below.items()
    }
    looks, shapes, dashes = ([series[name][i] for name in kinds] for i in range(3))
    y = within(*(row[end] for row in rows for end in ("low", "high")))
    what = limited(points[0])
    said = "share of channels removed in %" if what == "channels" else f"share of {what} kept in %"
    scales = (alt.Scale(domain=kinds, range=own) for own in (looks, shapes, dashes))
    colour, shape, dash = scales
    turned = {} if what == "channels" else {"reverse": True}  # thinner is further right
    chart = alt.Chart().encode(
        alt.X("x:Q", title=said, scale=alt.Scale(domain=x, nice=False, **turned)),
        alt.Y("test:Q", title="test accuracy in %", scale=alt.Scale(domain=y, nice=False)),
        alt.Color("line:N", scale=colour, title=None),
        tooltip=TIP,
    )
    through = chart.mark_line(strokeWidth=2).encode(
        alt.StrokeDash("line:N", scale=dash, title=None), tooltip=alt.value(None)
    )
    bars = chart.transform_filter("!datum.level").mark_rule().encode(alt.Y("low:Q"), y2="high:Q")
    marks = chart.transform_filter("!datum.level").mark_point(filled=True, size=55, opacity=1)
    marks = marks.encode(alt.Shape("line:N", scale=shape, title=None))
    ends = ", ".join(
        f"{name} {min(r['test'] for r in rows if r['line'] == name):.1f} %" for name in kinds
    )
    return alt.layer(
        through, bars, marks, data=data(rows), height=250,
        description=f"{title}: lowest test accuracy of each line: {ends}",
    )  # fmt: skip


def _row(point: Point, name: str) -> Row:
    test, error = 100 * point.mean("test"), 100 * (point.spread("test") or 0)
    x = share(point)
    return {
        **facts(point, name), "x": None if x is None else 100 * x, "test": test,
        "low": test - error, "high": test + error, "level": False,
    }  # fmt: skip
