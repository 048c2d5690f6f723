"""What the page and report.md have to say, as plain data; their templates make sentences of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from utils.report.knee import final, uncut
from utils.report.origins import commit, commits, letters
from utils.report.story import Story
from utils.report.summary import Point, apart, by_line, by_ratio, goal, line
from utils.report.table import frame, humane
from utils.runs.results import STAGES
from utils.runs.units import duration, si

CALLED = dict(zip(STAGES, ("training", "cut", "fine-tuning"), strict=True))


@dataclass(frozen=True)
class Part:
    """All networks of one recipe."""

    recipe: str | None
    rows: Sequence[Mapping[str, Any]]
    means: pd.DataFrame  # a line per network and ratio
    every: pd.DataFrame  # a line per network
    mixed: str  # a warning where several commits made them, or ""
    letters: Mapping[str, str]  # {commit: its letter}, where there are several
    commits: Sequence[str]  # letters of each line of `means`
    refused: Sequence[str]  # why some cells hold several values
    shaded: Sequence[int]  # lines of `means` with a suggested knee


def parts(story: Story) -> list[Part]:
    """One for each recipe: no table mixes two."""
    marked = {line(knee.point) for knee in story.knees.values() if knee}
    made = []
    for recipe in dict.fromkeys(row["recipe"] for row in story.rows):
        rows = [row for row in story.rows if row["recipe"] == recipe]
        lines = by_line(rows)
        runs = {row["run"]: story.by_name[row["run"]] for row in rows}
        names = letters(story.by_name[row["run"]] for row in rows)
        made.append(
            Part(
                recipe,
                rows,
                by_ratio(rows),
                humane(frame(rows)),
                commits(runs.values()),
                names,
                [
                    " ".join(sorted({names[commit(runs[row["run"]])] for row in members}))
                    for members in lines.values()
                    if names
                ],
                apart(rows, story.paths),
                [number for number, key in enumerate(lines) if key in marked],
            )
        )
    return made


def timed_on(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({row["timed_on"] for row in rows if row["timed_on"]})


def summary(story: Story) -> str:
    """ "18 trainings, 54 cuts and 54 fine-tunings of vgg11 on digits, seeds 0 to 2, ..." """
    counts = Counter(run["stage"] for run in story.runs)
    said = [
        f"{counts[stage]} {name}{'s' if counts[stage] > 1 else ''}"
        for stage, name in CALLED.items()
        if counts[stage]
    ]
    what = list(dict.fromkeys((row["network"], row["data"]) for row in story.rows))
    names = [f"{network} on {data}" for network, data in what[:4]]
    names += [f"{len(what) - 4} more"] if len(what) > 4 else []
    seeds = len({run["seed"] for run in story.runs})
    seconds = sum(run.get("seconds") or 0 for run in story.runs)
    return (
        f"{_list(said)} of {_list(names)}, with {seeds} seed{'s' if seeds > 1 else ''}; "
        f"{duration(seconds)} of computing in all."
    )


def _list(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def cards(story: Story) -> list[tuple[str, str]]:
    """(number, words) of the first comparison: the network as it was, and the suggested thin one
    or the best."""
    ends = final(story.points)
    if thin := next((knee.point for knee in story.knees.values() if knee), None):
        why = "the suggestion"
    else:
        thin = max((p for p in ends if not uncut(p)), key=lambda p: p.mean("test"), default=None)
        why = "the most accurate thin network here by the test set, so no choice"
    if thin is None:
        return []
    same = [p for p in ends if uncut(p) and _alike(p, thin)]
    before = next((p for p in same if not p["lambda"]), same[0] if same else None)
    told = [(_percent(thin), f"{_cut_words(thin)}: {why}")]
    if before is None:
        return told
    trained = f"λ {before['lambda']:g}" if before["lambda"] else "no penalty"
    words = f"test accuracy of {before['network']} on {before['data']}, uncut, {trained}"
    told.insert(0, (_percent(before), words))
    for column, words in (("params", "parameters"), ("macs", "multiply-accumulates")):
        share = thin.mean(column) / before.mean(column)
        numbers = f"{si(thin.mean(column))} of {si(before.mean(column))}"
        told.append((f"{100 * share:.1f} %", f"of the {words} are left: {numbers}"))
    return told


def _alike(point: Point, other: Point) -> bool:
    return all(point[column] == other[column] for column in ("recipe", "network", "data"))


def _cut_words(point: Point) -> str:
    share = f"{100 * point['ratio']:g} % of the channels" if point["ratio"] else goal(point)
    step = "cut" if point["stage"] == "prune" else f"cut and {point.what}"
    return f"test accuracy with λ {point['lambda']:g}, {share} {step}"


def _percent(point: Point) -> str:
    number, bracket, seeds = point.percent().partition(" (")
    return f"{number} %{bracket}{seeds}"


def commands(story: Story) -> dict[str, int]:
    """{command: how many runs it made}"""
    return Counter(str(run.get("command")) for run in story.runs)


def every_run(story: Story) -> pd.DataFrame:
    """A line per run, with the number of its command."""
    numbers = {command: number for number, command in enumerate(commands(story), start=1)}
    return pd.DataFrame(
        {
            "run": run["run"],
            "stage": run["stage"],
            "recipe": run.get("finetune_recipe") or run.get("recipe"),
            "seed": run["seed"],
            "test %": f"{100 * run['accuracy']['test']:.2f}",
            "commit": commit(run),
            "time": duration(run["seconds"]) if run.get("seconds") else "-",
            "command": f"{numbers[str(run.get('command'))]}",
        }
        for run in story.runs
    )
