"""How the trainings went, epoch by epoch: a line per row of the table, a band over its seeds."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from utils.report.plots.marks import MARKERS, SERIES, Drawn, left_out, legend, spread, style
from utils.report.story import Story
from utils.report.summary import Point, goal
from utils.runs.results import metrics

Lines = dict[str, list[list[dict]]]  # {name: the rows of each seed}
COLUMNS = {"train/loss", "train/accuracy"}
LINES = 6  # more can't be told apart, and each has to be read


def curves(story: Story) -> Drawn:
    """Loss on the training images and accuracy: trainings above, fine-tunings below."""
    shown: dict[str, Lines] = {}
    missed: list[str] = []
    for stage in ("train", "finetune"):
        able = {_name(p, story.alone): p for p in story.points if p["stage"] == stage}
        lines: Lines = {}
        for name in spread([*able], LINES):
            seeds = [metrics(story.by_name[row["run"]]) for row in able[name].rows]
            if all(seeds) and all(row.keys() >= COLUMNS for rows in seeds for row in rows):
                lines[name] = seeds
        missed += [name for name in able if name not in lines]
        shown |= {stage: lines} if lines else {}
    if not shown:
        return Drawn(None, "There is no metrics.jsonl beside these results: copy it with the runs.")
    with style():
        figure = Figure(figsize=(8, 3.6 * len(shown)))
        parts = figure.subfigures(len(shown), 1, squeeze=False)[:, 0]
        for part, (stage, lines) in zip(parts, shown.items(), strict=True):
            panels = part.subplots(1, 2)
            _row(panels, "training" if stage == "train" else "fine-tuning", lines)
            legend(part, panels[:1], columns=3)
    return Drawn(figure, left_out(missed))


def _row(panels: Sequence[Axes], kind: str, lines: Lines) -> None:
    every = [row for seeds in lines.values() for rows in seeds for row in rows]
    which = "val" if all(row.get("val/accuracy") is not None for row in every) else "train"
    loss, accuracy = panels
    _panel(loss, lines, "train/loss", 1)
    _panel(accuracy, lines, f"{which}/accuracy", 100)
    loss.set(ylabel="loss on training images", xlabel=f"epoch of {kind}", yscale="log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_locator(NullLocator())
    of = "validation" if which == "val" else "training"
    accuracy.set(ylabel=f"{of} accuracy in %", xlabel=f"epoch of {kind}")


def _name(point: Point, alone: bool) -> str:
    cut = "" if goal(point) == "-" else f", cut {goal(point)}"
    step = "" if point["stage"] == "train" or point.what == "fine-tuned" else f", {point.what}"
    before = "" if alone else f"{point['network']}, "
    return f"{before}λ {point['lambda']:g}{cut}{step}"


def _panel(axes: Axes, lines: Lines, column: str, times: float) -> None:
    for number, (name, seeds) in enumerate(lines.items()):
        epochs = min(map(len, seeds))
        values = np.array([[row.get(column, np.nan) for row in rows[:epochs]] for rows in seeds])
        values = times * values.astype(float)
        x = [row["epoch"] for row in seeds[0][:epochs]]
        color = SERIES[number % len(SERIES)]
        axes.plot(
            x, values.mean(0), color=color, label=name, marker=MARKERS[number % len(MARKERS)],
            markevery=max(1, epochs // 8), markersize=4.5, linewidth=1.6,
        )  # fmt: skip
        if len(values) > 1:
            axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.18, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
