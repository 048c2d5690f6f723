"""What charts say of networks: their names, their facts, and the axes along which they stand."""

from typing import Any

from utils.report.label import UNITS, goal, limited, penalty, uncut
from utils.report.story import Story
from utils.report.summary import Point
from utils.runs.units import si

Row = dict[str, Any]


def facts(point: Point, name: str) -> Row:
    """What a mark says of its network.

    Args:
        name: of `labels`, among what is shown.
    """
    seeds = f" ({point.n} seed{'s' if point.n > 1 else ''})"
    return {
        "name": name, "method": method(point), "penalty": penalty(point), "run": point["run"],
        "accuracy": f"{point.percent()} %{seeds}", "params": si(point.mean("params")),
        "val": "-" if point.mean("val") is None else f"{point.percent('val')} %",
        "macs": si(point.mean("macs")),
    }  # fmt: skip


def scored(point: Point, name: str) -> Row:
    """The same, with the test accuracy in % and the ends of its error bar."""
    test, error = 100 * point.mean("test"), 100 * (point.spread("test") or 0)
    return {**facts(point, name), "test": test, "low": test - error, "high": test + error}


def method(point: Point) -> str:
    return "uncut" if uncut(point) else point["method"]


def choices(story: Story) -> dict[str, list[str]]:
    """What the page's filter offers: {"method": [...], "penalty": [...]}."""
    ends = [line.end for line in story.lines]
    ordered = sorted(ends, key=lambda point: point["lambda"])
    methods = sorted({method(point) for point in ends})
    return {"method": methods, "penalty": [*dict.fromkeys(map(penalty, ordered))]}


def but_goal(name: str, point: Point) -> str:
    """A label without what the cut was asked for, where an axis says it."""
    return ", ".join(part for part in name.split(", ") if part != goal(point))


def share(point: Point) -> float | None:
    """The share of channels removed, or of one cost that may stay; None for anything else."""
    if point["target"] is None:
        return point["ratio"]
    limit = float(point["target"].rpartition(" ")[2])
    return limit if limit <= 1 and "," not in point["target"] else None


def shares(point: Point) -> str:
    """What an axis of `share` is called."""
    what = limited(point)
    return (
        f"share of {what} removed"
        if what == "channels"
        else f"share of {UNITS.get(what, what)} kept"
    )
