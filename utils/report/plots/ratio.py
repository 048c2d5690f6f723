"""How much can go: right after a cut, repaired, and fine-tuned (Figure 5 of the paper)."""

from collections.abc import Mapping, Sequence

import altair as alt

from utils.report.label import goal, labels, limited, titles, uncut
from utils.report.plots import marks
from utils.report.plots.marks import Drawn, Panel
from utils.report.plots.networks import but_goal, scored, share, shares
from utils.report.story import Story
from utils.report.summary import Point
from utils.report.together import TRAINING, family, regime, together

MISSING = "Nothing was cut by a share here: `python pipeline.py -m ratio=0.3,0.5,0.7` does."
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
LEVEL = (marks.INK, "stroke", [2, 3])  # of the network without a penalty


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
    shown, note = marks.capped(able, "ways to cut, those of most goals first", 3)
    panels = []
    for title, points in zip(titles(shown), shown, strict=True):
        levels = _levels(story, points[0])
        panels.append(Panel(title, _panel(points, levels, title)))
        tuned = [point for point in points if point["stage"] == "finetune"]
        if tuned and len(tuned) < len(points):
            near = f"{title}: fine-tuned"
            panels.append(Panel(near, _panel(points, levels, near, tuned)))
    return Drawn(panels, note)


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
    points: Sequence[Point], levels: Sequence[Point], title: str, shown: Sequence[Point] = ()
) -> alt.LayerChart:
    """
    Args:
        shown: some of the points: their lines look as among all of them.
    """
    names, below = labels(points), labels(levels)
    lines = _lines(points, names)
    rows = [
        {**scored(point, names[point]), "line": line, "x": 100 * share(point)}
        for line, own in lines.items()
        for point in own
        if point in (shown or points)
    ]
    x = marks.within(*(row["x"] for row in rows), least=4)
    series = {line: _look(i) for i, line in enumerate(lines)}
    for point, name in below.items():
        line = name if name.endswith("uncut") else f"{name}, uncut"
        series[line] = (marks.GREY, "stroke", [6, 4]) if point["lambda"] else LEVEL
        rows += [{**scored(point, name), "line": line, "level": True, "x": end} for end in x]
    kept = {row["line"] for row in rows}
    colour, shape, dash = marks.looks({line: own for line, own in series.items() if line in kept})
    thinner = {"reverse": points[0]["target"] is not None}  # to the right
    across = alt.X("x:Q", title=f"{shares(points[0])} in %", axis=alt.Axis(tickCount=6))
    chart = alt.Chart().encode(
        across.scale(domain=x, nice=False, **thinner), marks.accuracy(rows),
        alt.Color("line:N", scale=colour, title=None), tooltip=marks.TIP,
    )  # fmt: skip
    through = chart.mark_line(strokeWidth=2)
    through = through.encode(alt.StrokeDash("line:N", scale=dash, title=None))
    cuts = chart.transform_filter("!datum.level")
    bars = cuts.mark_rule().encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    dots = cuts.mark_point(filled=True, size=55, opacity=1)
    dots = dots.encode(alt.Shape("line:N", scale=shape, title=None))
    ends = {line: min(row["test"] for row in rows if row["line"] == line) for line in kept}
    told = ", ".join(f"{line} {end:.1f} %" for line, end in sorted(ends.items()))
    return alt.layer(
        through, bars, dots, data=marks.data(rows), height=250,
        description=f"{title}: lowest test accuracy of each line: {told}",
    )  # fmt: skip


def _look(number: int) -> tuple[str, str, list[int]]:
    """No two alike: the second half dozen has other shapes, and is dashed."""
    turn, place = divmod(number, len(SHAPES))
    return marks.SERIES[place], SHAPES[(place + turn) % len(SHAPES)], [5, 3 * (turn % 2)]


def _lines(points: Sequence[Point], names: Mapping[Point, str]) -> dict[str, list[Point]]:
    """What differs in its goal only, by what it is called without it."""
    found: dict[str, list[Point]] = {}
    for own in family(points, "goal").values():
        name = but_goal(names[own[0]], own[0]) or own[0].what
        found[f"{name}, {own[0]['run']}" if name in found else name] = own
    return found
