"""What a cut left of each layer: channels, and where runs recorded them parameters and MACs."""

import altair as alt

from utils.report.label import labels
from utils.report.plots import marks
from utils.report.plots.marks import Drawn, Panel, Row
from utils.report.plots.networks import facts
from utils.report.story import Story
from utils.report.summary import Point

COSTS = {"params": "parameters", "macs": "MACs"}
Counts = dict[str, tuple[float, float]]  # {layer: (before, after)}


def layers(story: Story) -> Drawn:
    """Of each kind of cut the first seed: what was there (outline), what is left (filled)."""
    cuts: dict[str, Point] = {}
    for point in story.points:
        if point["stage"] == "prune":
            cuts.setdefault(_first(point), point)
    cuts = {run: point for run, point in cuts.items() if story.by_name[run].get("widths")}
    if not cuts:
        return Drawn([], "Nothing was cut here: `python prune.py` does.")
    names = labels([*cuts.values()])
    found = {run: _measured(story, run) for run in cuts}
    shown = marks.spread([*cuts], marks.PANELS // max(map(len, found.values())))
    panels = [
        panel
        for run in shown
        for panel in _panels(cuts[run], names[cuts[run]], found[run], story.by_name[run])
    ]
    few = len(shown) < len(cuts)
    notes = [f"{len(shown)} of {len(cuts)} kinds of cut, evenly chosen"] if few else []
    free = [run for run in shown if cuts[run].settings.get("prune: scope", "global") == "global"]
    if free:
        every = "" if len(free) == len(shown) else "where channels were ranked globally, "
        notes.append(f"{every}how much each layer keeps came out of training: nobody set it")
    return Drawn(panels, ". ".join(note[0].upper() + note[1:] for note in notes))


def _first(point: Point) -> str:
    return min(point.rows, key=lambda row: row["seed"])["run"]


def _measured(story: Story, run: str) -> dict[str, Counts]:
    """{"channels": ..., "parameters": ..., "MACs": ...}, as far as they were recorded."""
    cut, before = story.by_name[run], story.paths[run][0]
    found = {"channels": {name: (total, kept) for name, (kept, total) in cut["widths"].items()}}
    was, now = before.get("layers") or {}, cut.get("layers") or {}
    for key, called in COSTS.items():
        both = {name: (own[key], now.get(name, {}).get(key, 0)) for name, own in was.items()}
        if both and now:
            found[called] = {name: own for name, own in both.items() if own[0]}
    return found


def _panels(point: Point, name: str, found: dict[str, Counts], run: Row) -> list[Panel]:
    totals = {what: [sum(own) for own in zip(*counts.values())] for what, counts in found.items()}
    # Where BatchNorms are cut together, channels would add up to more.
    totals["channels"] = [run["channels"]["total"], run["channels"]["kept"]]
    panels = []
    for called, counts in found.items():
        before, after = totals[called]
        title = f"{name}: {after:,} of {before:,} {called} stay"
        panels.append(Panel(title, _bars(facts(point, name), called, counts, title)))
    return panels


def _bars(fact: Row, called: str, counts: Counts, title: str) -> alt.LayerChart:
    before, after = zip(*counts.values(), strict=True)
    row = {
        **fact, "place": [*range(1, len(counts) + 1)], "layer": [*counts], "before": [*before],
        "after": [*after],
    }  # fmt: skip
    chart = alt.Chart().transform_flatten(["place", "layer", "before", "after"])
    axis = alt.Axis(labelOverlap=True, labelAngle=0)
    across = alt.X("place:O", title="layer, from input to output", axis=axis)
    chart = chart.encode(across, tooltip=[*marks.TIP, "layer:N", "before:Q", "after:Q"])
    up = alt.Y("before:Q", title=called, axis=alt.Axis(format="~s", tickCount=5), stack=None)
    up = up.scale(domain=[0, max(before)])
    outline = chart.mark_bar(fillOpacity=0, stroke=marks.GREY, strokeWidth=1.2).encode(up)
    filled = chart.mark_bar(color=marks.BLUE).encode(alt.Y("after:Q", stack=None))
    return alt.layer(outline, filled, data=marks.data([row]), height=200, description=title)
