"""report.md: a table per recipe, the pictures, and how each run came to be."""

from collections.abc import Mapping, Sequence
from typing import Any

from utils.report.compare import as_text, contests
from utils.report.origins import commits
from utils.report.summary import APART, apart, by_ratio
from utils.report.table import frame, humane, machine, markdown, paths

PAIRED = (
    "Differences in points of test accuracy, ± half of the 95 % confidence interval of the mean "
    "over pairs of equal seeds (Student's t); `can't tell`: the interval holds 0."
)


def text(
    rows: Sequence[Mapping[str, Any]],
    runs: Sequence[dict[str, Any]],
    pictures: Mapping[str, str],
) -> str:
    """
    Args:
        rows: of `table.rows`.
        pictures: file name -> a note on what is not in it, or "".
    """
    lines = ["# Report", ""]
    chains = paths(runs)
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        part = [row for row in rows if row["recipe"] == recipe]
        lines += [f"## Recipe: {recipe}", "", "Test accuracy in %, step by step:", ""]
        lines += [markdown(by_ratio(part)), ""]
        if note := commits(part, runs):
            lines += [note, ""]
        if refused := apart(part, chains):
            lines += [f"{APART}:", ""]
            lines += [*(f"- {sentence}" for sentence in refused), ""]
        lines += ["Every network:", "", markdown(humane(frame(part))), ""]
    lines += [
        "Test accuracy is that of the last epoch; ± is the standard deviation over n seeds. MACs "
        "are multiply-accumulates of convolutions and matrix products for one image; `table.csv` "
        "also has thop's count and 2 x MACs.",
        "",
    ]
    for contest in contests([*chains.values()]):
        lines += [f"## Methods at one cost: {contest.title}", "", markdown(as_text(contest)), ""]
        lines += [PAIRED, ""]
    timed_on = {machine(run["latency"]["machine"]) for run in runs if run["latency"]}
    if timed_on:
        several = " Times of different machines can't be compared." if len(timed_on) > 1 else ""
        lines += [f"Median ms per batch, timed on {'; '.join(sorted(timed_on))}.{several}", ""]
    for picture, note in pictures.items():
        lines += [f"![{picture}]({picture})", "", *([note, ""] if note else [])]
    lines += ["## Where each number is from", ""]
    for run in runs:
        lines.append(
            f"- `{run['run']}`: `{run.get('command')}`, commit {run.get('commit')}, "
            f"seed {run['seed']}, {run.get('finetune_recipe') or run.get('recipe')} recipe, "
            f"{machine(run.get('machine') or {})}, {run.get('seconds')} s"
        )
    return "\n".join(lines) + "\n"
