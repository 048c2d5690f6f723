"""Accuracy over lambda and ratio: the grid with its knee, right after the cut, and Figure 5."""

from collections.abc import Sequence
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from utils.report.knee import Knee, title, uncut
from utils.report.plots.marks import (
    BLACK,
    GAP,
    GREY,
    MARKERS,
    PANELS,
    RED,
    SERIES,
    Drawn,
    left_out,
    legend,
    panels,
    style,
)
from utils.report.story import Story
from utils.report.summary import Point, goal

BELOW = 0.10  # what is further below the best gets the darkest colour: a collapse hides the rest


def grid(story: Story) -> Drawn:
    """Rows are lambdas, columns are cuts; validation accuracy, or test where there is no other."""
    able = story.sweeps
    if not able:
        return Drawn(
            None,
            "There is no sweep here yet. `python pipeline.py -m method.strength=0.005,0.015 "
            "ratio=0.3,0.5,0.7 data.val_size=200` makes one.",
        )
    shown = list(able.items())[:4]
    heights = [1.3 + 0.5 * len({p["lambda"] for p in points}) for _, points in shown]
    with style(), matplotlib.rc_context({"axes.grid": False}):
        figure = Figure(figsize=(8, sum(heights)))
        axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
        for panel, (key, points) in zip(axes, shown, strict=True):
            _grid(panel, points, story.knees[key])
            if not story.alone or len(shown) > 1:
                panel.set_title(title(key), pad=10)
    return Drawn(figure, left_out(title(key) for key in [*able][4:]))


def _grid(axes: Axes, points: Sequence[Point], found: Knee | None) -> None:
    column = "val" if all(point.mean("val") is not None for point in points) else "test"
    lambdas = sorted({point["lambda"] for point in points})
    goals = sorted({goal(point) for point in points}, key=_in_order)
    cells: dict[tuple[int, int], list[Point]] = {}
    for point in points:
        place = (lambdas.index(point["lambda"]), goals.index(goal(point)))
        cells.setdefault(place, []).append(point)
    values = np.full((len(lambdas), len(goals)), np.nan)
    for place, members in cells.items():
        values[place] = members[0].mean(column) if len(members) == 1 else np.nan
    means = [point.mean(column) for point in points]
    low, top = min(means), max(means)
    scale = Normalize(max(low, top - BELOW), top)
    image = axes.pcolormesh(values, cmap="cividis", norm=scale, edgecolors=GAP, linewidth=3)
    for (line, place), members in cells.items():
        alone = len(members) == 1
        dark = alone and scale(values[line, place]) < 0.55
        said = [f"{100 * value:.1f}" for value in sorted(point.mean(column) for point in members)]
        axes.text(
            place + 0.5, line + 0.5, said[0] if alone else f"{said[0]} to\n{said[-1]}",
            ha="center", va="center", fontsize=11 if alone and len(goals) < 9 else 9,
            color="#FFFFFF" if dark else "#000000" if alone else BLACK,
        )  # fmt: skip
    if found:
        place = (goals.index(goal(found.point)), lambdas.index(found.point["lambda"]))
        frame = {"fill": False, "edgecolor": RED, "linewidth": 3.5, "clip_on": False}
        axes.add_patch(Rectangle(place, 1, 1, zorder=5, **frame))
    axes.set_xticks(np.arange(len(goals)) + 0.5, ["uncut" if g == "-" else g for g in goals])
    axes.set_yticks(np.arange(len(lambdas)) + 0.5, [f"{value:g}" for value in lambdas])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="ratio: share of channels removed", ylabel="λ")
    which = "validation" if column == "val" else "test"
    extend = "min" if low < top - BELOW else "neither"
    bar = axes.figure.colorbar(image, ax=axes, extend=extend, format=lambda v, _: f"{100 * v:.0f}")
    bar.set_label(f"{which} accuracy in %", fontsize=9)
    bar.outline.set_visible(False)


def _in_order(name: str) -> tuple:
    """Uncut, then ratios upward, then targets downward."""
    if name == "-":
        return (0, 0, "")
    try:
        return (1, float(name), "")
    except ValueError:
        return (2, 0, name)


def after_cut(story: Story) -> Drawn:
    """Test accuracy right after the cut against the ratio, a line per kind of repair."""
    cuts = [p for p in story.points if p.what.startswith("cut") and p["ratio"] is not None]
    trained = [p for p in story.points if uncut(p) and p.what == "trained"]
    return _against_ratio(
        cuts, trained, story,
        "No cut by ratio here: `python prune.py -m ratio=0.3,0.5,0.7` makes some.",
    )  # fmt: skip


def against_ratio(story: Story) -> Drawn:
    """Figure 5: before and after fine-tuning against the ratio, beside the uncut networks."""
    able = [p for p in story.points if p["ratio"] is not None]
    lines = [p for p in able if not p.what.startswith("cut +")]
    tuned = [p for p in lines if not p.what.startswith("cut")]
    trained = [p for p in story.points if uncut(p) and p.what == "trained"]
    if not tuned:
        lines = []
    return _against_ratio(
        lines, trained, story,
        "Nothing was fine-tuned at a ratio here: `python pipeline.py -m ratio=0.3,0.5,0.7` does.",
    )  # fmt: skip


def _against_ratio(
    points: Sequence[Point], trained: Sequence[Point], story: Story, missing: str
) -> Drawn:
    """A panel per network and lambda; lines through what was done, uncut networks as levels."""
    columns = ("recipe", "network", "data", "lambda", "method", "pass")
    found: dict[tuple, list[Point]] = {}
    for point in points:
        found.setdefault(tuple(point[column] for column in columns), []).append(point)
    # A panel of one ratio says less than one of several.
    order = sorted(found, key=lambda key: -len({p["ratio"] for p in found[key]}))
    shown = [key for key in found if key in order[:PANELS]]
    if not shown:
        return Drawn(None, missing)
    kinds = list(dict.fromkeys(point.what for point in points))
    with style():
        figure, axes = panels(len(shown), 2.7, share=True)
        for panel, key in zip(axes, shown, strict=True):
            _levels(panel, trained, key)
            for kind in kinds:
                line(panel, [p for p in found[key] if p.what == kind], kind, kinds)
            name = "" if key[4] == "slimming" else f", {key[4]}"
            before = "" if story.alone else f"{key[1]}, {key[2]}\n"
            panel.set_title(f"{before}λ {key[3]:g}{name}")
            panel.margins(y=0.08)
            _ticks(panel, sorted({point["ratio"] for point in found[key]}))
        figure.supxlabel("ratio: share of channels removed", fontsize=11)
        figure.supylabel("test accuracy in %", fontsize=11)
        legend(figure, axes, columns=3)
    missed = [f"{key[1]} on {key[2]}, λ {key[3]:g}" for key in found if key not in shown]
    return Drawn(figure, left_out(missed))


def _ticks(axes: Axes, ratios: Sequence[float]) -> None:
    """The ratios themselves, while they don't stand in each other's way."""
    axes.set_xlim(min(ratios) - 0.05, max(ratios) + 0.05)
    if len(ratios) <= 5 and all(b - a > 0.08 for a, b in pairwise(ratios)):
        axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])


def _levels(axes: Axes, trained: Sequence[Point], key: tuple) -> None:
    for point in trained:
        if tuple(point[c] for c in ("recipe", "network", "data", "pass")) != (*key[:3], key[5]):
            continue
        value = 100 * point.mean("test")
        if not point["lambda"]:
            axes.axhline(value, color=GREY, linestyle="--", linewidth=1.5, label="baseline (λ 0)")
        elif point["lambda"] == key[3]:
            axes.axhline(value, color=GREY, linestyle=":", linewidth=2, label="sparse, uncut")


def line(axes: Axes, points: Sequence[Point], kind: str, kinds: Sequence[str]) -> None:
    """Means with their standard deviations. Of groups that can't be averaged the first are joined.

    What was recalibrated as well has the colour of what it was before, and is dashed.
    """
    if not points:
        return
    bases = list(dict.fromkeys(map(_base, kinds)))
    number = bases.index(_base(kind))
    looks = {
        "color": SERIES[number % len(SERIES)],
        "marker": MARKERS[(number + 3 * (kind != _base(kind))) % len(MARKERS)],
    }
    lines: list[dict[float, Point]] = []
    for point in sorted(points, key=lambda point: point["ratio"]):
        free = next((line for line in lines if point["ratio"] not in line), None)
        if free is None:
            lines.append(free := {})
        free[point["ratio"]] = point
    for first, line in zip([True, *[False] * len(lines)], lines):
        errors = [100 * (point.spread("test") or 0) for point in line.values()]
        axes.errorbar(
            [*line], [100 * point.mean("test") for point in line.values()],
            errors if any(errors) else None, capsize=3, elinewidth=1.2,
            label=kind if first else None,
            linestyle="none" if not first else "-" if kind == _base(kind) else "--", **looks,
        )  # fmt: skip


def _base(kind: str) -> str:
    return kind.removesuffix(" + recalibrated")
