"""Accuracy over lambda and ratio: the grid with its knee, right after the cut, and Figure 5."""

from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from utils.knee import Knee, knee, sweeps, uncut
from utils.plots import (
    BLACK,
    GREY,
    MARKERS,
    PANELS,
    RED,
    SERIES,
    Drawn,
    Story,
    left_out,
    legend,
    panels,
    style,
)
from utils.summary import Point, goal

BELOW = 0.10  # what is further below the best gets the darkest colour: a collapse hides the rest


def knees(story: Story) -> dict[tuple, Knee | None]:
    runs = {run["run"]: run for run in story.runs}
    return {key: knee(points, runs) for key, points in sweeps(story.points).items()}


def grid(story: Story) -> Drawn:
    """Rows are lambdas, columns are cuts; validation accuracy, or test where there is no other."""
    able = {key: points for key, points in sweeps(story.points).items() if _is_grid(points)}
    if not able:
        return Drawn(
            None,
            "There is no sweep here yet. `python pipeline.py -m method.strength=0.005,0.015 "
            "ratio=0.3,0.5,0.7 data.val_size=200` makes one.",
        )
    found = knees(story)
    shown = list(able.items())[:4]
    height = max(len({p["lambda"] for p in points}) for _, points in shown)
    with style(), matplotlib.rc_context({"axes.grid": False}):
        figure, axes = panels(len(shown), 1.1 + 0.5 * height)
        for panel, (key, points) in zip(axes, shown, strict=True):
            _grid(panel, points, found[key], several=len(shown) > 2)
            panel.set_title(sweep_title(key), pad=10)
    return Drawn(figure, left_out(sweep_title(key) for key in [*able][4:]))


def _is_grid(points: Sequence[Point]) -> bool:
    return len({(p["lambda"], goal(p)) for p in points if not uncut(p)}) > 1


def _grid(axes: Axes, points: Sequence[Point], found: Knee | None, several: bool) -> None:
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
    top = np.nanmax(values)
    scale = Normalize(max(np.nanmin(values), top - BELOW), top)
    image = axes.pcolormesh(values, cmap="cividis", norm=scale, edgecolors="none")
    for (line, place), members in cells.items():
        alone = len(members) == 1
        dark = alone and scale(values[line, place]) < 0.55
        text = "\n".join(f"{100 * point.mean(column):.1f}" for point in members)
        axes.text(
            place + 0.5, line + 0.5, text, ha="center", va="center",
            fontsize=9 if several or len(goals) > 8 or not alone else 11,
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
    extend = "min" if np.nanmin(values) < top - BELOW else "neither"
    bar = axes.figure.colorbar(image, ax=axes, extend=extend, format=lambda v, _: f"{100 * v:.0f}")
    bar.set_label(f"{which} accuracy in %")
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
        cuts, trained, story.points,
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
        lines, trained, story.points,
        "Nothing was fine-tuned at a ratio here: `python pipeline.py -m ratio=0.3,0.5,0.7` does.",
    )  # fmt: skip


def _against_ratio(
    points: Sequence[Point], trained: Sequence[Point], everything: Iterable[Point], missing: str
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
        figure, axes = panels(len(shown), 2.9)
        for panel, key in zip(axes, shown, strict=True):
            _levels(panel, trained, key)
            for number, kind in enumerate(kinds):
                line(panel, [p for p in found[key] if p.what == kind], kind, number)
            name = "" if key[4] == "slimming" else f", {key[4]}"
            panel.set_title(f"{key[1]}, {key[2]}\nλ {key[3]:g}{name}")
            panel.margins(y=0.08)
        figure.supxlabel("ratio: share of channels removed", fontsize=11)
        figure.supylabel("test accuracy in %", fontsize=11)
        legend(figure, axes, columns=3)
    missed = [f"{key[1]} on {key[2]}, λ {key[3]:g}" for key in found if key not in shown]
    return Drawn(figure, left_out(missed))


def _levels(axes: Axes, trained: Sequence[Point], key: tuple) -> None:
    for point in trained:
        if tuple(point[c] for c in ("recipe", "network", "data", "pass")) != (*key[:3], key[5]):
            continue
        value = 100 * point.mean("test")
        if not point["lambda"]:
            axes.axhline(value, color=GREY, linestyle="--", linewidth=1.5, label="baseline (λ 0)")
        elif point["lambda"] == key[3]:
            axes.axhline(value, color=GREY, linestyle=":", linewidth=2, label="sparse, uncut")


def line(axes: Axes, points: Sequence[Point], label: str, number: int) -> None:
    """Means with their standard deviations; groups that can't be averaged have a marker each."""
    if not points:
        return
    points = sorted(points, key=lambda point: point["ratio"])
    x = [point["ratio"] for point in points]
    looks = {
        "color": SERIES[number % len(SERIES)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": "-" if len(set(x)) == len(x) else "none",
    }
    errors = [100 * (point.spread("test") or 0) for point in points]
    axes.errorbar(
        x, [100 * point.mean("test") for point in points], errors if any(errors) else None,
        capsize=3, elinewidth=1.2, label=label, **looks,
    )  # fmt: skip


def sweep_title(key: tuple) -> str:
    recipe, network, data, method, number = key
    more = [] if method == "slimming" else [method]
    more += [] if number == 1 else [f"pass {number}"]
    return ", ".join([network, str(data), f"{recipe} recipe", *more])
