"""Which layers can be cut: a row per layer, a column per share of it that went."""

from collections.abc import Sequence

import altair as alt

from slimming.planning.sensitivity import Point, channels
from utils.networks.show import brief
from utils.report.plots import marks
from utils.report.plots.marks import Drawn, Panel

MOST = 10  # points; what costs more is as dark


def heat_map(points: Sequence[Point], shares: Sequence[float], name: str) -> Drawn:
    """
    Args:
        points: of `sensitivity` with these `shares`.
        name: of the network.
    """
    start, *cuts = points
    title = f"{name}: points from {100 * start.accuracy:.2f} % on, each layer cut alone"
    layers = dict.fromkeys(brief(point.layer) for point in cuts)
    rows = [
        {
            "layer": brief(point.layer),
            "share": 100 * share,
            "lost": 100 * (start.accuracy - point.accuracy),
            "said": f"{100 * (point.accuracy - start.accuracy):+.1f}",
        }
        for point in cuts
        for share in shares
        if channels(share, point.size) == point.removed
    ]
    axis = alt.Axis(labelAngle=0, format="d")
    chart = alt.Chart(marks.data(rows)).encode(
        alt.X("share:O", title="share of the layer's channels removed, in %", axis=axis),
        alt.Y("layer:N", sort=[*layers], title=None),
    )
    ends = [marks.PAPER, marks.RED]
    scale = alt.Scale(domain=[0, MOST], range=ends, clamp=True, interpolate="rgb")
    boxes = chart.mark_rect(stroke=marks.RULE).encode(alt.Color("lost:Q", scale=scale, legend=None))
    told = chart.mark_text(fontSize=10, color=marks.INK).encode(text="said:N")
    whole = alt.layer(boxes, told, height=alt.Step(18), description=title)
    return Drawn([Panel(title, whole, wide=True)])
