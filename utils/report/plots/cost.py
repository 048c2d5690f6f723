"""Accuracy against what a network costs, with the networks that no other one beats."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

from utils.report.knee import last_steps, uncut
from utils.report.plots.marks import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    Drawn,
    left_out,
    legend,
    style,
)
from utils.report.story import Story
from utils.report.summary import Point

COSTS = {
    "macs": "MACs per image",
    "params": "parameters",
    "latency_64_ms": "ms for a batch of 64",
}
BELOW = 0.10  # networks this far below the best would squeeze all others together
LOOKS = {
    "baseline": (BLACK, "*", "baseline (λ 0)"),
    "sparse": (GREY, "s", "sparse, uncut"),
    "cut": (SKY, "v", "cut, not fine-tuned"),
    "tuned": (BLUE, "o", "cut and fine-tuned"),
    "scratch": (ORANGE, "D", "same shape from new weights"),
}
METHODS = (BLUE, RED, GREEN, PINK)


def cost(story: Story) -> Drawn:
    """One line of panels per network and data set: test accuracy against MACs, parameters, time."""
    subjects: dict[tuple, list[Point]] = {}
    for point in last_steps(story.points):
        subjects.setdefault((point["network"], point["data"]), []).append(point)
    subjects = {key: points for key, points in subjects.items() if len(points) > 1}
    if not subjects:
        return Drawn(None, "One network alone has no rival: `python pipeline.py` makes three.")
    machines, notes = _machines(story), []
    shown = [*subjects][:3]
    missed = [f"{network} on {data}" for network, data in [*subjects][3:]]
    columns = list(COSTS) if machines else list(COSTS)[:2]
    with style():
        figure, axes = _table_of_panels(len(shown), len(columns))
        for line, key in zip(axes, shown, strict=True):
            best = max(point.mean("test") for point in subjects[key])
            near = [p for p in subjects[key] if p.mean("test") >= best - BELOW]
            if far := len(subjects[key]) - len(near):
                few = "1 network" if far == 1 else f"{far} networks"
                notes.append(f"{few} more than {100 * BELOW:g} points below the best")
            for panel, column in zip(line, columns, strict=True):
                _panel(panel, _timed(near, machines[0]) if "latency" in column else near, column)
            before = "" if story.alone else f"{key[0]}, {key[1]}\n"
            line[0].set_ylabel(f"{before}test accuracy in %")
            low = min(point.mean("test") for point in near)
            pad = max(0.08 * (best - low), 0.002)
            line[0].set_ylim(100 * (low - pad), 100 * min(best + 1.5 * pad, 1 + pad / 2))
        for panel, column in zip(axes[-1], columns, strict=True):
            panel.set_xlabel(COSTS[column])
        legend(figure, [panel for line in axes for panel in line], columns=3)
    if len(machines) > 1:
        notes.append(f"times measured elsewhere than on {machines[0]}")
    return Drawn(figure, left_out([*notes, *missed]))


def _table_of_panels(lines: int, columns: int) -> tuple:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.1 * lines + 0.8))
    return figure, figure.subplots(lines, columns, squeeze=False, sharey="row")


def _panel(axes: Axes, points: Sequence[Point], column: str) -> None:
    methods = list(dict.fromkeys(p["method"] for p in points if not uncut(p)))
    found: dict[tuple, list[Point]] = {}
    for point in points:
        color, marker, label = LOOKS[_kind(point)]
        if len(methods) > 1 and _kind(point) == "tuned":
            color = METHODS[methods.index(point["method"]) % len(METHODS)]
            label = f"{point['method']}, fine-tuned"
        if point.mean(column) is not None:
            found.setdefault((color, marker, label), []).append(point)
    for (color, marker, label), several in found.items():
        x, y = ([scale * p.mean(of) for p in several] for of, scale in ((column, 1), ("test", 100)))
        errors = [100 * (point.spread("test") or 0) for point in several]
        axes.errorbar(
            x, y, errors if any(errors) else None, color=color, marker=marker, linestyle="none",
            capsize=2, elinewidth=1, markersize=9 if marker == "*" else 5.5, label=label,
        )  # fmt: skip
    best = front([(p.mean(column), p.mean("test")) for p in points if p.mean(column) is not None])
    if best:
        x, y = zip(*best, strict=True)
        looks = {"color": RED, "linewidth": 1.5, "zorder": 1.5}
        axes.step(
            x, [100 * v for v in y], where="post", label="best at its cost (Pareto front)", **looks
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks(*axes.get_xlim())))
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.xaxis.set_minor_locator(NullLocator())


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers between two positive ones, for a logarithmic axis: two at least."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = ([step / parts for step in range(parts, 10 * parts)] for parts in (10, 100, 1000))
    found: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), *fine):
        every = [step * 10.0**decade for decade in decades for step in steps]
        found = [tick for tick in every if low <= tick <= high]
        if len(found) >= 2:
            break
    return found[:: max(1, math.ceil(len(found) / most))]


def front(costs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(cost, accuracy) of the Pareto front: nothing else is both as cheap and more accurate."""
    best: list[tuple[float, float]] = []
    for cost, accuracy in sorted(costs, key=lambda pair: (pair[0], -pair[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def _kind(point: Point) -> str:
    if uncut(point):
        return "sparse" if point["lambda"] else "baseline"
    if point.what.startswith("scratch"):
        return "scratch"
    return "tuned" if point["stage"] == "finetune" else "cut"


def _machines(story: Story) -> list[str]:
    """Where networks were timed, most of them first: different machines can't be compared."""
    names = [row["timed_on"] for row in story.rows if row["timed_on"]]
    return sorted(set(names), key=lambda name: -names.count(name))


def _timed(points: Sequence[Point], machine: str) -> list[Point]:
    return [p for p in points if {row["timed_on"] for row in p.rows} == {machine}]
