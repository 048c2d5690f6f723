"""What the page says before its plots: what is here, and what came out of it."""

from collections import Counter
from html import escape

from utils.report.knee import Knee, final, uncut
from utils.report.plots.marks import Story
from utils.report.plots.sweep import knees, sweep_title
from utils.report.summary import Point, goal
from utils.runs.units import duration, si

STAGES = {"train": "training", "prune": "cut", "finetune": "fine-tuning"}


def summary(story: Story) -> str:
    """ "18 trainings, 54 cuts and 54 fine-tunings of vgg11 on digits, seeds 0 to 2, ..." """
    counts = Counter(run["stage"] for run in story.runs)
    said = [
        f"{counts[stage]} {name}{'s' if counts[stage] > 1 else ''}"
        for stage, name in STAGES.items()
        if counts[stage]
    ]
    what = list(dict.fromkeys((row["network"], row["data"]) for row in story.rows))
    names = [f"{network} on {data}" for network, data in what[:4]]
    names += [f"{len(what) - 4} more"] if len(what) > 4 else []
    seeds = len({run["seed"] for run in story.runs})
    seconds = sum(run.get("seconds") or 0 for run in story.runs)
    return escape(
        f"{_list(said)} of {_list(names)}, with {seeds} seed{'s' if seeds > 1 else ''}; "
        f"{duration(seconds)} of computing in all."
    )


def _list(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def cards(story: Story) -> str:
    """Of the first comparison: the network as it was, and the suggested thin one or the best."""
    ends = final(story.points)
    found = [(key, found) for key, found in knees(story).items() if found]
    if found:
        thin, why = found[0][1].point, "the suggestion"
    else:
        thin = max((p for p in ends if not uncut(p)), key=lambda p: p.mean("test"), default=None)
        why = "the most accurate thin network here by the test set, so no choice"
    if thin is None:
        return ""
    same = [p for p in ends if uncut(p) and _alike(p, thin)]
    before = next((p for p in same if not p["lambda"]), same[0] if same else None)
    parts = [] if before is None else [_card(_percent(before), _uncut_words(before))]
    parts.append(_card(_percent(thin), f"{_cut_words(thin)}: {why}"))
    if before is not None:
        for column, words in (("params", "parameters"), ("macs", "multiply-accumulates")):
            share = thin.mean(column) / before.mean(column)
            numbers = f"{si(thin.mean(column))} of {si(before.mean(column))}"
            parts.append(_card(f"{100 * share:.1f} %", f"of the {words} are left: {numbers}"))
    return f'<div class="cards">{"".join(parts)}</div>'


def _alike(point: Point, other: Point) -> bool:
    return all(point[column] == other[column] for column in ("recipe", "network", "data"))


def _uncut_words(point: Point) -> str:
    trained = f"λ {point['lambda']:g}" if point["lambda"] else "no penalty"
    return f"test accuracy of {point['network']} on {point['data']}, uncut, {trained}"


def _cut_words(point: Point) -> str:
    share = f"{100 * point['ratio']:g} % of the channels" if point["ratio"] else goal(point)
    step = "cut" if point["stage"] == "prune" else f"cut and {point.what}"
    return f"test accuracy with λ {point['lambda']:g}, {share} {step}"


def _percent(point: Point) -> str:
    number, _, seeds = point.percent().partition(" (")
    return f"{number} %" + (f" ({seeds}" if seeds else "")


def _card(number: str, words: str) -> str:
    number, _, seeds = escape(number).partition(" (")
    small = f" <small>({seeds}</small>" if seeds else ""
    return f'<div class="card"><b>{number}{small}</b><span>{escape(words)}</span></div>'


def knee_lead(story: Story) -> str:
    """How to read the grid, and the suggestion with its rule."""
    found = knees(story)
    said = [
        "Each cell is a network trained with one penalty λ and cut by one ratio, after its last "
        "step. Along a line the network gets thinner; a stronger penalty lets more go."
    ]
    for key, knee in found.items():
        if knee:
            before = "" if story.alone and len(found) == 1 else f"{escape(sweep_title(key))}: "
            suggestion = _suggestion(knee)
            said.append(before + suggestion if before else suggestion[0].upper() + suggestion[1:])
    if any(knee is None for knee in found.values()):
        said.append(
            "Where only the test accuracy is known, no knee is marked: choosing by the test set "
            "would spoil it. <code>data.val_size=5000</code> sets images aside to choose on."
        )
    return "</p><p>".join(said)


def _suggestion(knee: Knee) -> str:
    point, best, dense = knee.point, knee.best, knee.dense
    said = (
        f"the suggested knee is <b>{_which(point)}</b> (red frame): {_val(point)} of the "
        f"validation images with {si(point.mean('macs'))} MACs. It is the cut with the fewest MACs "
        f"within one standard error ({100 * knee.error:.2f} points, {knee.why}) of the best cut"
    )
    said += "." if point is best else f", {_which(best)} ({_val(best)}, {si(best.mean('macs'))})."
    if dense is not None:
        share = point.mean("macs") / dense.mean("macs")
        said += (
            f" The best uncut network ({_which(dense)}) has {_val(dense)} with "
            f"{1 / share:.3g} times as many."
        )
    return said


def _which(point: Point) -> str:
    what = "uncut" if uncut(point) else f"ratio {escape(goal(point))}"
    return f"λ {point['lambda']:g}, {what}"


def _val(point: Point) -> str:
    return f"{100 * point.mean('val'):.2f} %"
