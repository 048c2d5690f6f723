"""Finished runs -> tables, plots, and one page that explains them.

    python report.py                        # runs/
    python report.py results/ only=cifar10
    python report.py figures=pdf            # the plots as files, for a paper
    python report.py table=1a               # a table of the paper, ours beside it

Writes report/ beside the runs, or to=FOLDER: index.html, report.md, table.csv, report.json,
gammas.png, widths.png. Only result.json and metrics.jsonl are read (and model.pt, to time it):
nothing is computed anew.
"""

from utils.cli.script import begin, script

if __name__ == "__main__":  # --help doesn't wait for what is imported next
    begin("report")

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from slimming import checkpoint as artifact
from utils.networks.cost import latency
from utils.report import render, table
from utils.report.page import page
from utils.report.paper.report import paper_table
from utils.report.plots.marks import Drawn, save
from utils.report.story import Story
from utils.report.summary import by_ratio
from utils.runs import housekeeping
from utils.runs.environment import machine
from utils.runs.results import find_runs, writable, write_text

ROWS = 100  # in the terminal
FIGURES = ("pdf", "svg", "png")


def report(cfg) -> Path:
    """Report the finished runs below `runs_dir`; return the path of report.md."""
    if cfg.figures not in (None, *FIGURES):
        raise ValueError(f"figures is one of {', '.join(FIGURES)}; got {cfg.figures!r}")
    runs = table.choose(find_runs(Path(cfg.runs_dir)), cfg.only)
    folder = writable(_folder(cfg))
    if cfg.latency:
        _time(runs, tuple(cfg.allow))
    story = Story(runs)
    data = table.frame(story.rows)
    drawn = page.draw(story)
    pictures = _pictures(drawn, folder)
    if cfg.figures:
        _figures(drawn, folder / "figures", cfg.figures)
    write_text(folder / "table.csv", render.csv(data))
    # Not by pandas, whose JSON has ten digits.
    write_text(folder / "report.json", json.dumps(story.rows, indent=1) + "\n")
    write_text(folder / "report.md", page.markdown(story, pictures))
    write_text(folder / "index.html", page.page(story, drawn, _title(story)))
    console = render.console()
    for shown in _terminal(story.rows, data, narrow=console.width < 100):
        console.print(shown)
    print(f"{folder / 'index.html'} explains it: open it in a browser; {folder / 'report.md'} too")
    return folder / "report.md"


def _folder(cfg) -> Path:
    return Path(cfg.to) if cfg.to else Path(cfg.runs_dir) / "report"


def _title(story: Story) -> str:
    """What all runs are about, as far as they agree."""
    networks = {row["network"] for row in story.rows}
    data = {row["data"] for row in story.rows}
    network = networks.pop() if len(networks) == 1 else f"{len(networks)} networks"
    return f"{network} on {data.pop() if len(data) == 1 else f'{len(data)} data sets'}"


def _pictures(drawn: Mapping[str, Drawn], folder: Path) -> dict[str, str]:
    """Those of report.md: {file name: a note on what is not in it}."""
    notes = {}
    for name in ("gammas", "widths"):
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)  # an older picture would be of other runs
        if drawn[name].figure is not None:
            save(drawn[name].figure, path)
            notes[path.name] = drawn[name].note
    return notes


def _figures(drawn: Mapping[str, Drawn], folder: Path, kind: str) -> None:
    folder.mkdir(exist_ok=True)
    made = {name: plot.figure for name, plot in drawn.items() if plot.figure is not None}
    for name, figure in made.items():
        save(figure, folder / f"{name}.{kind}")
    print(f"{len(made)} figures as {kind} in {folder}")


def _terminal(rows: Sequence[dict[str, Any]], data: pd.DataFrame, narrow: bool) -> list[Table]:
    """Every network in a rich table; too many to read become a line per network and ratio."""
    recipes = dict.fromkeys(row["recipe"] for row in rows)
    if len(rows) > ROWS:
        parts = ((of, [row for row in rows if row["recipe"] == of]) for of in recipes)
        return [render.terminal(by_ratio(part), f"{of} recipe") for of, part in parts]
    text = table.humane(data)
    same = [column for column in text.columns if text[column].nunique() == 1]
    said = [data[column].iloc[0] for column in ("network", "data") if column in same]
    said += [f"{recipe} recipe" for recipe in recipes if len(recipes) == 1]
    hidden = {"run", "ratio", *same} - {"step", "test %"}  # a cut's step tells its ratio
    if narrow:
        hidden |= {"epochs"}
        text["channels"] = text["channels"].str.replace(r" \(.*\)", "", regex=True)
    shown = [column for column in text.columns if column not in hidden]
    return [render.terminal(text[shown], ", ".join(said) or None)]


def _time(runs: list[dict], allow: tuple[str, ...]) -> None:
    """Measure every distinct network, side by side in this process; keep it beside each run."""
    by_shape: dict[tuple, dict] = {}
    owners: dict[str, list[dict]] = {}
    here = [run for run in runs if (Path(run["folder"]) / "model.pt").exists()]
    for run in here:
        checkpoint = artifact.read(run["folder"])
        # A sparse network takes as long as its baseline: only shapes count.
        shapes = [(name, tuple(tensor.shape)) for name, tensor in checkpoint.weights.items()]
        key = repr((checkpoint.target, checkpoint.arguments, checkpoint.input_shape, shapes))
        if key not in owners:
            networks = by_shape.setdefault(checkpoint.input_shape, {})
            networks[key] = artifact.restore(checkpoint, allow)
        owners.setdefault(key, []).append(run)
    print(f"timing {len(owners)} distinct networks of {len(here)} runs, side by side")
    for shape, networks in by_shape.items():
        for key, times in latency(networks, shape).items():
            for run in owners[key]:
                run["latency"] = {"machine": machine(), "batch": times}
                text = json.dumps(run["latency"], indent=1) + "\n"
                path = Path(run["folder"]) / "latency.json"
                try:
                    write_text(path, text)
                except OSError as error:  # somebody else's runs: this report has the times
                    print(f"{path} is not kept ({error.strerror or error})")


@script("report")
def main(cfg) -> None:
    if cfg.to and (cfg.list or cfg.delete is not None):
        raise ValueError("to= is where a report is written: list= and delete= write none")
    if cfg.list:
        housekeeping.show(Path(cfg.runs_dir))
    elif cfg.delete is not None:
        housekeeping.clean(Path(cfg.runs_dir), cfg.delete, cfg.unfinished, cfg.yes)
    elif cfg.unfinished or cfg.yes:
        raise ValueError("unfinished= and yes= belong to delete=TEXT")
    elif cfg.table is not None:
        paper_table(cfg.table, Path(cfg.runs_dir), _folder(cfg), cfg.only, cfg.fast)
    elif cfg.fast:
        raise ValueError("fast= belongs to table=NAME")
    else:
        report(cfg)


if __name__ == "__main__":
    main()
