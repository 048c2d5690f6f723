"""Accuracy of a sweep: a row per way to make networks small, a column per goal, the knee framed."""

import altair as alt

from utils.report.knee import Sweep
from utils.report.label import goal, penalty, uncut
from utils.report.plots import marks
from utils.report.plots.marks import Drawn, Panel
from utils.report.plots.networks import but_goal, facts, share, shares
from utils.report.story import Story
from utils.report.summary import Point
from utils.report.together import family, together

BELOW = 10  # points; what is further below the best gets the darkest colour
MISSING = (
    "There is no sweep here yet. `python pipeline.py -m method.strength=0.005,0.015 "
    "ratio=0.3,0.5,0.7 data.val_size=200` makes one."
)
CUTS = ("cut", "after", "stages")  # what differs among networks of one training
Cell = tuple[str, str, Point]  # row, column, the one network in it


def grid(story: Story) -> Drawn:
    if not story.sweeps:
        return Drawn([], MISSING)
    shown, note = marks.capped(story.sweeps, "sweeps")
    return Drawn([Panel(sweep.title, _grid(sweep), wide=True) for sweep in shown], note)


def cells(sweep: Sweep) -> list[Cell]:
    """Each network by all but its goal, and by its goal; an uncut one in each row it became."""
    rows: dict[str, dict[str, Point]] = {}
    became: dict[str, list[dict[str, Point]]] = {}  # rows of a training
    for members in family(sweep.cuts, "goal").values():
        lines: list[dict[str, Point]] = []
        for point in members:  # two of one goal don't fit into one row
            line = next((line for line in lines if goal(point) not in line), None)
            if line is None:
                lines.append(line := {})
            line[goal(point)] = point
        became.setdefault(together(members[0], *CUTS), []).extend(lines)
        for line in lines:
            rows[_row_name(next(iter(line.values())), sweep, rows)] = line
    for point in sweep.uncut:
        own = became.get(together(point, *CUTS))
        for line in own or [rows.setdefault(_row_name(point, sweep, rows), {})]:
            line["uncut"] = point
    return [(row, column, point) for row, line in rows.items() for column, point in line.items()]


def _row_name(point: Point, sweep: Sweep, taken: dict) -> str:
    name = but_goal(sweep.names[point], point) or penalty(point)
    return f"{name}, {point['run']}" if name in taken else name


def _in_order(point: Point) -> tuple:
    """Uncut, then more and more cut: shares removed upward, what stays downward."""
    if uncut(point):
        return (0,)
    if point["target"] is None:
        return (1, point["ratio"])
    return (1, *(-float(limit.rpartition(" ")[2]) for limit in point["target"].split(", ")))


def ticks(sweep: Sweep) -> tuple[dict[str, str], str]:
    """({goal: what its column is called}, what the columns are)."""
    ordered = sorted([*sweep.uncut, *sweep.cuts], key=_in_order)
    known = {goal(point): share(point) for point in ordered}
    if any(known[goal(cut)] is None for cut in sweep.cuts):  # amounts, or limits of several kinds
        return {name: name for name in known}, "goal of the cut"
    called = {name: "uncut" if own is None else f"{100 * own:.4g} %" for name, own in known.items()}
    return called, shares(sweep.cuts[0])


def _grid(sweep: Sweep) -> alt.LayerChart:
    found = cells(sweep)
    known = all(point.mean("val") is not None for _, _, point in found)
    which, called = ("val", "validation") if known else ("test", "test")
    values = [100 * point.mean(which) for _, _, point in found]
    top = max(values)
    low = max(min(values), top - BELOW)
    names, title = ticks(sweep)
    knee = sweep.knee.point if sweep.knee else None
    rows = [
        {
            **facts(point, sweep.names[point]), "row": row, "column": names[column],
            "value": value, "text": f"{value:.1f}", "knee": point is knee,
            "dark": value < low + 0.55 * (top - low),
        }
        for (row, column, point), value in zip(found, values, strict=True)
    ]  # fmt: skip
    lines = {row: row.count(", ") + 1 for row, _, _ in found}
    across = alt.Axis(title=title, labelAngle=0, labelLimit=90, domain=False, ticks=False)
    # A label of several lines hangs from its first one.
    hangs = [
        {"test": f"length(split(datum.label, ', ')) == {n}", "value": 7 - 7 * n}
        for n in range(2, max(lines.values()) + 1)
    ]
    down = alt.Axis(
        title=None, labelExpr="split(datum.label, ', ')", labelLimit=150, domain=False,
        ticks=False, labelOffset={"condition": hangs, "value": 0},
    )  # fmt: skip
    gaps = alt.Scale(paddingInner=0.05, paddingOuter=0.03)
    chart = alt.Chart().encode(
        alt.X("column:N", sort=[*names.values()], axis=across, scale=gaps),
        alt.Y("row:N", sort=[*lines], axis=down, scale=gaps),
        tooltip=marks.TIP,
    )
    scale = alt.Scale(
        scheme="cividis", clamp=True, domain=[low, top] if low < top else [low - 1, top]
    )
    below = f", {low:.0f} and below alike" if min(values) < low else ""
    bar = alt.Legend(
        title=f"{called} accuracy in %{below}", gradientLength=180, direction="horizontal"
    )
    boxes = chart.mark_rect(cornerRadius=3).encode(alt.Color("value:Q", scale=scale, legend=bar))
    frame = chart.mark_rect(fillOpacity=0, stroke=marks.RED, strokeWidth=4, cornerRadius=3)
    words = chart.mark_text(fontSize=13).encode(
        text="text:N",
        color=alt.when("datum.dark").then(alt.value("white")).otherwise(alt.value("black")),
    )
    said = f"{called} accuracy from {min(values):.1f} to {top:.1f} %"
    said += f"; suggested: {sweep.names[knee]}" if knee else "; no suggestion"
    return alt.layer(
        boxes, frame.transform_filter("datum.knee"), words, data=marks.data(rows),
        height=sum(max(34, 15 * own + 6) for own in lines.values()),
        description=f"{sweep.title}: {len(rows)} networks, {said}",
    )  # fmt: skip
