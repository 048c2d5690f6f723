"""The tables of the page. Everything from a result is escaped."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

from utils.report.compare import as_text, contests
from utils.report.origins import commit, commits, environments, letters
from utils.report.plots.marks import Story
from utils.report.plots.sweep import knees
from utils.report.summary import APART, apart, by_line, by_ratio, line
from utils.report.table import LEFT, frame, humane
from utils.runs.units import duration

WORDS = {*LEFT, "method", "then", "against", "verdict", "stage", "commit", "machine", "command"}
N = re.compile(r" \(n = (\d+)\)")
OPEN = 60  # rows: longer tables start closed


def results(story: Story) -> str:
    """One line per network and ratio for each recipe; every network by itself below."""
    marked = {line(found.point) for found in knees(story).values() if found}
    by_name = story.by_name
    parts = [
        "<p>Test accuracy in % after each step: trained, cut (nothing trained yet), and "
        "fine-tuned. ± is the standard deviation over n seeds. The suggested knee is shaded. "
        "A click on a column's head sorts by it.</p>"
    ]
    for recipe in dict.fromkeys(row["recipe"] for row in story.rows):
        rows = [row for row in story.rows if row["recipe"] == recipe]
        text = by_ratio(rows)
        lines = by_line(rows)
        names = letters(by_name[row["run"]] for row in rows)
        if names:
            text["commit"] = [
                " ".join(sorted({names[commit(by_name[row["run"]])] for row in members}))
                for members in lines.values()
            ]
        if story.alone:  # the title says it
            text = text.drop(columns=["network", "data"])
        text, n = _without_n(text)
        shaded = [number for number, key in enumerate(lines) if key in marked]
        over = f", ± over {n} seeds" if n else ""
        parts.append(f"<h3>Recipe: {escape(str(recipe))}{over}</h3>{table(text, shaded)}")
        parts += _notes(story, rows, names)
        every = table(humane(frame(rows)))
        parts.append(
            f"<details><summary>Every network by itself ({len(rows)} rows)</summary>{every}"
            "</details>"
        )
    parts.append(
        '<p class="note">Accuracy is that of the last epoch. MACs are multiply-accumulates of '
        "convolutions and matrix products for one image.</p>"
    )
    return "".join(parts)


def _notes(story: Story, rows: Sequence[Mapping], names: Mapping[str, str]) -> list[str]:
    notes = []
    if names:
        which = ", ".join(f"{letter} = {name}" for name, letter in names.items())
        notes.append(f'<p class="note">{escape(commits(rows, story.runs))} {escape(which)}.</p>')
    if refused := apart(rows, story.paths):
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in refused)
        notes.append(
            f'<details class="apart"{" open" if len(refused) < 6 else ""}><summary>{APART}'
            f'</summary><ul class="note">{items}</ul></details>'
        )
    timed_on = sorted({row["timed_on"] for row in rows if row["timed_on"]})
    if timed_on:
        several = " Times of different machines can't be compared." if len(timed_on) > 1 else ""
        where = escape("; ".join(timed_on))
        notes.append(f'<p class="note">Times are medians, measured on {where}.{several}</p>')
    return notes


def comparisons(story: Story) -> str:
    """Methods that met one target, in numbers."""
    return "".join(
        f"<h3>{escape(contest.title)}</h3>{table(as_text(contest))}"
        for contest in contests([*story.paths.values()])
    )


def origins(story: Story) -> str:
    """Environments, commands, and a line per run that names its own."""
    kinds = environments(story.runs)
    places = "".join(f"<li>{escape(text)} ({count} runs)</li>" for text, count in kinds)
    commands = Counter(str(run.get("command")) for run in story.runs)
    numbers = {command: number for number, command in enumerate(commands, start=1)}
    listed = "".join(
        f"<li><code>{escape(command)}</code> ({count} runs)</li>"
        for command, count in commands.items()
    )
    note = commits([{"run": run["run"]} for run in story.runs], story.runs)
    text = pd.DataFrame(
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
    return (
        "<p>The commands below, repeated, find these runs finished; on another machine they make "
        "them again.</p>"
        f"<h3>Commands</h3><ol class='commands'>{listed}</ol>"
        f"<h3>Machines and versions</h3><ul class='note'>{places}</ul>"
        + (f'<p class="note">{escape(note)}</p>' if note else "")
        + f"<details{' open' if len(text) <= OPEN else ''}><summary>Every run ({len(text)})"
        f"</summary>{table(text)}</details>"
    )


def table(text: pd.DataFrame, shaded: Sequence[int] = ()) -> str:
    """A sortable table of text."""
    words = [" class='word'" if column in WORDS else "" for column in text.columns]
    heads = "".join(
        f"<th scope='col'{word}><button type='button'>{_head(str(column))}</button></th>"
        for column, word in zip(text.columns, words, strict=True)
    )
    shaded = set(shaded)
    lines = []
    for number, values in enumerate(text.astype(str).values.tolist()):
        cells = "".join(
            f"<td{word}>{_seeds(escape(value))}</td>"
            for value, word in zip(values, words, strict=True)
        )
        mark = " class='knee'" if number in shaded else ""
        lines.append(f"<tr{mark}>{cells}</tr>")
    return (
        f"<div class='scroll'><table><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _without_n(text: pd.DataFrame) -> tuple[pd.DataFrame, str | None]:
    """Where every mean is over as many seeds, it is enough to say it once."""
    counts = {n for column in text for cell in text[column] for n in N.findall(str(cell))}
    if len(counts) != 1:
        return text, None
    return text.replace(N, "", regex=True), counts.pop()


def _head(column: str) -> str:
    """Short names stay on one line."""
    return escape(column.replace(" ", "\N{NO-BREAK SPACE}") if len(column) < 11 else column)


def _seeds(cell: str) -> str:
    """The number of seeds, in small print."""
    return N.sub(r" <small>(n = \1)</small>", cell)
