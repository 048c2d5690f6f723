"""How the trainings went, epoch by epoch: a line per row of the table, a band over its seeds."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from utils.plots import MARKERS, SERIES, Drawn, Story, left_out, style
from utils.results import metrics
from utils.summary import Point, goal

LINES = 6  # more can't be told apart, and each has to be read


def curves(story: Story) -> Drawn:
    """Loss on the training images and accuracy: trainings above, fine-tunings below."""
    paths = {run["run"]: run for run in story.runs}
    found: dict[str, dict[str, list[list[dict]]]] = {"train": {}, "finetune": {}}
    missed: list[str] = []
    for point in story.points:
        if (lines := found.get(point["stage"])) is None:
            continue
        name = _name(point)
        if len(lines) >= LINES or name in lines:
            missed.append(name)
        elif all(rows := [metrics(paths[row["run"]]) for row in point.rows]):
            lines[name] = rows
    shown = {stage: lines for stage, lines in found.items() if lines}
    if not shown:
        return Drawn(None, "There is no metrics.jsonl beside these results: copy it with the runs.")
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(8, 3 * len(shown) + 0.4))
        grid = figure.subplots(len(shown), 2, squeeze=False)
        for line, (stage, lines) in zip(grid, shown.items(), strict=True):
            val = all("val/accuracy" in row for seeds in lines.values() for s in seeds for row in s)
            accuracy = "val/accuracy" if val and _some(lines) else "train/accuracy"
            _panel(line[0], lines, "train/loss", 1)
            _panel(line[1], lines, accuracy, 100)
            kind = "training" if stage == "train" else "fine-tuning"
            line[0].set(ylabel="loss on training images", xlabel=f"epoch of {kind}", yscale="log")
            which = "validation" if accuracy.startswith("val") else "training"
            line[1].set(ylabel=f"{which} accuracy in %", xlabel=f"epoch of {kind}")
            line[1].legend(fontsize=8.5, loc="lower right")
    return Drawn(figure, left_out(missed))


def _some(lines) -> bool:
    return all(
        row["val/accuracy"] is not None for seeds in lines.values() for s in seeds for row in s
    )


def _name(point: Point) -> str:
    cut = "" if goal(point) == "-" else f", cut {goal(point)}"
    step = "" if point["stage"] == "train" or point.what == "fine-tuned" else f", {point.what}"
    return f"λ {point['lambda']:g}{cut}{step} ({point['network']})"


def _panel(axes: Axes, lines: dict[str, Sequence[list[dict]]], column: str, times: float) -> None:
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
