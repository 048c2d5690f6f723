"""Methods against each other: paired differences with their intervals (see `compare.py`)."""

import altair as alt

from utils.report.compare import LEAST, Contest, Difference, paired
from utils.report.plots import marks
from utils.report.plots.marks import Drawn, Panel, Row
from utils.report.plots.networks import facts
from utils.report.story import Story
from utils.report.summary import Point

MISSING = (
    "There is nothing to compare yet: several methods have to meet one target. `python pipeline.py "
    "-m target.macs=0.5 method=slimming,gamma_local,l1_norm,random seed=0,1,2` does that."
)
FOUND = {"better": marks.BLUE, "worse": marks.RED, "can't tell": marks.GREY}
Pair = tuple[Point, Point, Difference]


def compared(story: Story) -> Drawn:
    """A panel per contest, a line per pair: each seed's difference, their mean, its interval."""
    able = [contest for contest in story.contests if _pairs(contest)]
    if not able:
        return Drawn([], MISSING)
    shown, note = marks.capped(able, "comparisons")
    domain = _domain([pair for contest in shown for pair in _pairs(contest)])
    return Drawn([Panel(one.title, _panel(one, domain)) for one in shown], note)


def _pairs(contest: Contest) -> list[Pair]:
    """Those with a seed in common."""
    found = [
        (ours, other, paired(ours.by_seed(), other.by_seed())) for ours, other in contest.pairs
    ]
    return [pair for pair in found if pair[2].n]


def _domain(pairs: list[Pair]) -> list[float]:
    """Of all panels: an interval of two seeds may be of any width, so it doesn't count."""
    ends = [0.0]
    for _, _, difference in pairs:
        half = (difference.half_width or 0) if difference.n >= LEAST else 0
        ends += [difference.mean - half, difference.mean + half]
    return marks.within(*ends)


def _panel(contest: Contest, domain: list[float]) -> alt.LayerChart:
    rows = [_row(contest, pair, domain) for pair in _pairs(contest)]
    place = alt.Y("pair:N", sort=[row["pair"] for row in rows], axis=None)
    tips = [
        alt.Tooltip("difference:N", title="difference in points"),
        alt.Tooltip("seeds:Q", title="pairs of seeds"),
        alt.Tooltip("verdict:N", title="verdict"),
        alt.Tooltip("other:N", title="against"),
    ]
    axis = alt.Axis(title="difference of test accuracy in points; right is better", grid=False)
    scale = alt.Scale(domain=domain, nice=False)
    across = alt.X("mean:Q", axis=axis, scale=scale)
    hues = alt.Scale(domain=[*FOUND], range=[*FOUND.values()])
    legend = alt.Legend(title=None, columns=3, symbolType="stroke", symbolStrokeWidth=3)
    hue = alt.Color("found:N", scale=hues, legend=legend)
    chart = alt.Chart().encode(across, place, hue, tooltip=[*marks.TIP, *tips])
    zero = alt.Chart(marks.data([{"mean": 0}])).encode(across)
    zero = zero.mark_rule(color=marks.GREY, strokeDash=[5, 4])
    words = alt.Chart().mark_text(align="left", baseline="middle", dy=-30, limit=320, fontSize=12)
    words = words.encode(place, text="pair:N", x=alt.value(2), color=alt.value(marks.INK))
    bars = chart.mark_rule(strokeWidth=2.5).encode(alt.X("low:Q"), alt.X2("high:Q"))
    seeds = alt.Chart().transform_flatten(["each"])
    seeds = seeds.mark_point(fill=marks.PAPER, stroke=marks.GREY, size=16, opacity=1, clip=True)
    seeds = seeds.encode(alt.X("each:Q"), place)
    means = chart.mark_point(filled=True, shape="diamond", size=110, opacity=1)
    arrows = [
        chart.transform_filter(f"datum.{end}_cut")
        .mark_point(filled=True, shape=f"triangle-{side}", size=90, opacity=1)
        .encode(alt.X(f"{end}:Q"))
        for end, side in (("low", "left"), ("high", "right"))
    ]
    told = ", ".join(f"{sum(row['found'] == found for row in rows)} {found}" for found in FOUND)
    return alt.layer(
        zero, words, bars, seeds, *arrows, means, data=marks.data(rows), height=66 * len(rows),
        description=f"{contest.title}: {len(rows)} paired differences of test accuracy, {told}",
    )  # fmt: skip


def _row(contest: Contest, pair: Pair, domain: list[float]) -> Row:
    ours, other, difference = pair
    mine, theirs = ours.by_seed(), other.by_seed()
    half = difference.half_width or 0
    low, high = difference.mean - half, difference.mean + half
    verdict = difference.verdict
    return {
        **facts(ours, contest.names[ours]), "other": contest.names[other], "verdict": verdict,
        "pair": f"{contest.names[ours]}\nagainst {contest.names[other]}", "seeds": difference.n,
        "mean": difference.mean, "low": max(low, domain[0]), "high": min(high, domain[1]),
        "low_cut": low < domain[0], "high_cut": high > domain[1], "difference": str(difference),
        "each": [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())],
        "found": verdict if verdict in FOUND else "can't tell",
    }  # fmt: skip
