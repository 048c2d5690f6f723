"""Finished runs -> tables, plots, and one page that explains them.

    python report.py                        # runs/
    python report.py results/ only=cifar10
    python report.py figures=pdf            # the plots as files, for a paper
    python report.py table=1a               # a table of the paper, ours beside it

Writes report/ beside the runs, or to=FOLDER: index.html, report.md, summary.csv and .tex (means
over seeds), contests.csv and .tex, table.csv and report.json (every run and step). Only
result.json and metrics.jsonl are read (and model.pt, to time it): nothing is computed anew.
"""

from utils.cli.script import begin, script

if __name__ == "__main__":  # --help doesn't wait for what is imported next
    begin("report")

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from slimming import checkpoint as artifact
from utils.networks.cost import latency
from utils.report import render, table, tables
from utils.report.page import page
from utils.report.paper.report import paper_table
from utils.report.plots.marks import Drawn, save
from utils.report.render import Table
from utils.report.story import Story
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
    drawn = page.draw(story)
    pictures = _pictures(drawn, folder / "figures", cfg.figures)
    made = {
        "table.csv": tables.every_accuracy(story.rows).csv(),
        "report.json": json.dumps(story.rows, indent=1) + "\n",
        "summary.csv": tables.means(story).csv(),
        "summary.tex": _latex(tables.results(story), "networks"),
        "contests.csv": tables.differences(story).csv(),
        "contests.tex": _latex(tables.contests(story), "contest"),
        "report.md": page.markdown(story, pictures),
        "index.html": page.page(story, drawn),
    }
    for name, text in made.items():
        write_text(folder / name, text)
    _print(story)
    print(f"{folder / 'index.html'} explains it: open it in a browser; {folder / 'report.md'} too")
    return folder / "report.md"


def _folder(cfg) -> Path:
    """Part of the runs has a place of its own: the report of all of them stays."""
    if cfg.to:
        return Path(cfg.to)
    part = re.sub(r"[^\w.-]+", "-", str(cfg.only)) if cfg.only else None
    return Path(cfg.runs_dir) / "report" / (f"only-{part}" if part else "")


def _latex(made: Iterable[Table], label: str) -> str:
    return "\n".join(one.latex(f"{label}-{n}") for n, one in enumerate(made, start=1))


def _pictures(drawn: Mapping[str, Drawn], folder: Path, kind: str | None) -> dict[str, str]:
    """The plots as files, where they are asked for: {name in report.md: what it shows}."""
    if kind is None:
        return {}
    folder.mkdir(exist_ok=True)
    made = {name: plot for name, plot in drawn.items() if plot.panels}
    for name, plot in made.items():
        save(plot, folder / f"{name}.{kind}")
    print(f"{len(made)} figures as {kind} in {folder}")
    titles = {plot.name: plot.title for plot in page.PLOTS}
    return {f"figures/{name}.{kind}": titles[name] for name in made if kind != "pdf"}


def _print(story: Story) -> None:
    """Means over seeds, and what became of each contest; long ones are in the files."""
    console = render.console()
    made = [*tables.results(story), *tables.contests(story)]
    lines = 0
    for one in made:
        lines += len(one.body)
        if lines > ROWS and one is not made[0]:
            console.print(f"{len(made) - made.index(one)} more tables are in report.md")
            break
        console.print(one.head(ROWS).terminal(console.width))
    for sweep in story.sweeps:
        if found := sweep.knee:
            said = f"{sweep.names[found.point]} of {sweep.title}"
            console.print(f"suggested, by validation images alone: {said}")


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
