"""What all charts share: their looks, and how they become the JSON of a page, or files.

Each plot is a function `(story) -> Drawn`. A colour is a name of `page/charts.css`, as a CSS
variable: the page's themes choose it, files have the light one.
"""

import json
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import altair as alt
import vl_convert
from markupsafe import Markup

Row = dict[str, Any]
PANELS = 6
NAMES = ("ink", "rule", "paper", "grey", "blue", "red", "green", "pink", "sky", "orange")
INK, RULE, PAPER, GREY, BLUE, RED, GREEN, PINK, SKY, ORANGE = (f"var(--{name})" for name in NAMES)
SERIES = (BLUE, RED, GREEN, PINK, ORANGE, SKY, GREY, INK)
CSS = Path(__file__).parents[1] / "page" / "charts.css"
STAR = "M0,-1.35L.33,-.45L1.28,-.42L.53,.17L.79,1.09L0,.55L-.79,1.09L-.53,.17L-1.28,-.42L-.33,-.45Z"
SAIL = "M-0.8,-1.1L1.2,0L-0.8,1.1Z"
HOUSE = "M0,-1.1L1.1,-.36L.68,.93L-.68,.93L-1.1,-.36Z"
# One look for a method on every page; one's own methods get one by their name.
LOOKS = {"slimming": (BLUE, "circle"), "l1_norm": (RED, "cross"), "random": (PINK, HOUSE)}
LOOKS |= {"gamma_local": (GREEN, SAIL), "uniform": (INK, "cross")}
OWN = [(colour, shape) for shape in (SAIL, HOUSE, "cross") for colour in (ORANGE, SKY)]
TIP = [
    alt.Tooltip("name:N", title="network"),
    alt.Tooltip("accuracy:N", title="test accuracy"),
    alt.Tooltip("val:N", title="validation"),
    alt.Tooltip("params:N", title="parameters"),
    alt.Tooltip("macs:N", title="MACs"),
]
AXIS = {"labelColor": INK, "titleColor": INK, "gridColor": RULE, "domainColor": GREY}
AXIS |= {"tickColor": GREY, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
LEGEND = {"labelColor": INK, "titleColor": INK, "orient": "bottom", "columns": 1}
LEGEND |= {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
THEME = {
    "background": "transparent", "font": "sans-serif", "view": {"stroke": None}, "axis": AXIS,
    "legend": {**LEGEND, "labelLimit": 320, "symbolOpacity": 1}, "lineBreak": "\n",
    "text": {"color": INK},
}  # fmt: skip
# What the page's controls (charts.js) set, and which marks are shown then.
FILTER = [{"name": "text", "value": ""}, *({"name": n, "value": []} for n in ("method", "penalty"))]
SHOWN = "(!text || indexof(lower(datum.name + ' ' + datum.run), text) >= 0)" + "".join(
    f" && (!length({name}) || indexof({name}, datum.{name}) >= 0)" for name in ("method", "penalty")
)


class Panel(NamedTuple):
    title: str
    chart: alt.Chart | alt.LayerChart
    wide: bool = False  # as wide as the page


class Drawn(NamedTuple):
    """A plot; or no panel, and what would make one. The note also says what isn't shown."""

    panels: list[Panel]
    note: str = ""


def look(name: str) -> tuple[str, str]:
    """(colour, shape) of a method."""
    return LOOKS.get(name) or OWN[crc32(name.encode()) % len(OWN)]


def capped(found: Sequence, what: str, most: int = PANELS) -> tuple[list, str]:
    """The first of them, and a note on the others."""
    if len(found) <= most:
        return [*found], ""
    return [*found[:most]], (
        f"The first {most} of {len(found)} {what}: `python report.py only=TEXT` shows others."
    )


def spread(found: Sequence, most: int) -> list:
    """At most so many of them, evenly from the first to the last."""
    if len(found) <= most:
        return [*found]
    return [found[round(i * (len(found) - 1) / max(1, most - 1))] for i in range(most)]


def data(rows: Iterable[Row]) -> alt.Data:
    """Rows for a chart: six digits, and nothing that JSON doesn't know."""
    return alt.Data(values=[_plain(row) for row in rows])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(own) for own in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def within(*values: float, pad: float = 0.06, least: float = 0.2) -> list[float]:
    """The domain of an axis on which all of these lie."""
    low, high = min(values), max(values)
    room = max(pad * (high - low), least)
    return [low - room, high + room]


def accuracy(rows: Iterable[Row]) -> alt.Y:
    """The axis on which all these error bars lie (of `scored`)."""
    domain = within(*(row[end] for row in rows for end in ("low", "high")))
    return alt.Y("test:Q", title="test accuracy in %", scale=alt.Scale(domain=domain, nice=False))


def looks(series: Mapping[str, Sequence]) -> list[alt.Scale]:
    """{name in the legend: (colour, shape, ...)} -> the scale of colours, that of shapes, ..."""
    return [alt.Scale(domain=[*series], range=[*own]) for own in zip(*series.values())]


def spec(chart: alt.Chart | alt.LayerChart) -> Row:
    """Vega-Lite for the page: as wide as its place, and with the page's filter."""
    made = chart.properties(width="container").to_dict(validate=False)
    return {
        **made,
        "config": THEME,
        "params": [*made.get("params", []), *FILTER],
        "transform": [{"filter": SHOWN}, *made.get("transform", [])],
    }


def charts_json(drawn: Mapping[str, Drawn]) -> Markup:
    """{"cost-0": its spec, ...}, for the middle of a <script>."""
    specs = {
        f"{name}-{number}": spec(panel.chart)
        for name, plot in drawn.items()
        for number, panel in enumerate(plot.panels)
    }
    text = json.dumps(specs, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def save(drawn: Drawn, path: Path) -> None:
    """All panels as one picture, as the suffix says: .png, .svg or .pdf."""
    wide = any(panel.wide for panel in drawn.panels)
    columns = 1 if wide else 2 if len(drawn.panels) in (2, 4) else 3
    views = [
        panel.chart.properties(
            width=640 if wide else 330,
            title=alt.TitleParams(textwrap.wrap(panel.title, 90 if wide else 48), anchor="start"),
        )
        for panel in drawn.panels
    ]
    own = dict.fromkeys(("color", "shape", "strokeDash"), "independent")
    made = alt.concat(*views, columns=columns).resolve_scale(**own)
    whole = {**made.to_dict(validate=False), "config": {**THEME, "background": "white"}}
    light = colours()
    text = re.sub(r"var\(--(\w+)\)", lambda found: light[found[1]], json.dumps(whole))
    convert = getattr(vl_convert, f"vegalite_to_{path.suffix[1:]}")
    more = {"scale": 2} if path.suffix == ".png" else {}
    picture = convert(text, allowed_base_urls=[], **more)
    path.write_bytes(picture.encode() if isinstance(picture, str) else picture)


@cache
def colours() -> dict[str, str]:
    """{"blue": "#0072b2", ...} on white."""
    light, _, _ = CSS.read_text("utf-8").partition("@media")
    return dict(re.findall(r"--(\w+): (#\w{6})", light))


@cache
def bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script, for a page that loads nothing."""
    return vl_convert.javascript_bundle().replace("</script", "<\\/script")
