"""Methods against each other: paired differences with their intervals (see `compare.py`)."""

from matplotlib.axes import Axes

from utils.report.compare import Contest, Entrant, paired
from utils.report.plots.marks import BLUE, GREY, RED, Drawn, left_out, style
from utils.report.story import Story

MISSING = (
    "There is nothing to compare yet: several methods have to meet one target. `python pipeline.py "
    "-m target.macs=0.5 method=slimming,uniform,l1_norm,random seed=0,1,2` does that."
)


def compared(story: Story, most: int = 3) -> Drawn:
    """A panel per contest, a line per method: each seed's difference, their mean, its interval."""
    able = [contest for contest in story.contests if _pairs(contest)]
    if not able:
        return Drawn(None, MISSING)
    from matplotlib.figure import Figure

    shown = able[:most]
    sizes = [len(_pairs(contest)) for contest in shown]
    with style():
        figure = Figure(figsize=(8, 0.36 * sum(sizes) + 1.2 * len(shown)))
        grid = figure.subplots(len(shown), 1, squeeze=False, height_ratios=sizes).flatten()
        for axes, contest in zip(grid, shown, strict=True):
            _panel(axes, contest)
    return Drawn(figure, left_out(contest.title for contest in able[most:]))


def _pairs(contest: Contest) -> list[tuple[Entrant, Entrant]]:
    """Those that have a partner and a seed in common with it; fine-tunings first."""
    ordered = sorted(contest.entrants, key=lambda entrant: (entrant.epochs is None, entrant.tuning))
    pairs = [(entrant, contest.reference(entrant)) for entrant in ordered]
    return [(ours, other) for ours, other in pairs if other and ours.chains.keys() & other.chains]


def _panel(axes: Axes, contest: Contest) -> None:
    pairs = _pairs(contest)
    for line, (ours, other) in enumerate(pairs):
        color = BLUE if ours.epochs is not None else RED
        seeds = ours.accuracies.keys() & other.accuracies
        each = [ours.accuracies[seed] - other.accuracies[seed] for seed in seeds]
        difference = paired(ours.accuracies, other.accuracies)
        axes.plot(each, [line] * len(each), "o", color=GREY, markersize=4, zorder=2)
        axes.errorbar(
            difference.mean, line, xerr=difference.half_width, fmt="D", color=color, capsize=4,
            markersize=6, linewidth=1.8, zorder=3,
        )  # fmt: skip
    axes.axvline(0, color=GREY, linewidth=1.2, linestyle="--", zorder=1)
    axes.set_yticks(range(len(pairs)), [_name(ours) for ours, _ in pairs])
    references = dict.fromkeys(
        f"{other.method} (λ {other.strength:g})" for ours, other in pairs if ours.epochs is not None
    )
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_title(f"{contest.title}: against {', '.join(references)}")
    axes.set_xlabel("difference of test accuracy in points; right is better")
    axes.grid(axis="y", visible=False)


def _name(ours: Entrant) -> str:
    penalty = f", λ {ours.strength:g}" if ours.strength else ""
    control = f": {ours.tuning} − fine-tuned" if ours.epochs is None else ""
    return f"{ours.method}{penalty}{control}"
