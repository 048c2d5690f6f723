"""Finished runs -> one table and two pictures.

    python report.py                        # runs/
    python report.py results/ only=cifar10

Writes report/ beside the runs: report.md, table.csv, report.json, gammas.png, widths.png. Only
result.json is read (and model.pt, to time it): nothing is computed anew.
"""

import json
from pathlib import Path

from utils.cli import script


def report(cfg) -> Path:
    """Report the finished runs below `runs_dir`; return the path of report.md."""
    from rich.console import Console

    from utils import plots, table
    from utils.results import find_runs, write_text

    root = Path(cfg.runs_dir)
    runs = table.choose(find_runs(root), cfg.only)
    if cfg.latency:
        _time(runs, tuple(cfg.allow))
    chains, rows = table.chains(runs), table.rows(runs)
    data = table.frame(rows)
    folder = root / "report"
    folder.mkdir(exist_ok=True)
    left_out = {
        "gammas.png": plots.gammas(chains, folder / "gammas.png"),
        "widths.png": plots.widths(chains, folder / "widths.png"),
    }
    drawn = {name: left for name, left in left_out.items() if (folder / name).exists()}
    data.to_csv(folder / "table.csv", index=False)
    # Not by pandas, whose JSON has ten digits.
    write_text(folder / "report.json", json.dumps(rows, indent=1) + "\n")
    write_text(folder / "report.md", page(data, runs, drawn))
    console = Console(width=None if Console().is_terminal else 200)
    console.print(_terminal(data, narrow=console.width < 100))
    print(f"{folder / 'report.md'} has this table, the pictures and the command of every run")
    return folder / "report.md"


def page(data, runs: list[dict], pictures: dict[str, list[str]]) -> str:
    """report.md: a table per recipe, the pictures, and how each run came to be.

    Args:
        data: DataFrame of `table.frame`.
        pictures: file name -> what didn't fit into that picture.
    """
    from utils.summary import by_ratio
    from utils.table import humane, markdown, over_seeds

    lines = ["# Report", ""]
    for recipe, part in data.groupby("recipe", sort=False, dropna=False):
        lines += [f"## Recipe: {recipe}", "", "Test accuracy in %, step by step:", ""]
        lines += [markdown(by_ratio(part)), "", "Every network:", "", markdown(humane(part)), ""]
        if len(seeds := over_seeds(part)) < len(part):
            lines += ["Mean and standard deviation over seeds:", "", markdown(seeds), ""]
    lines += [
        "Test accuracy is that of the last epoch. MACs are "
        "multiply-accumulates of convolutions and matrix products for one image; `table.csv` "
        "also has thop's count and 2 x MACs.",
        "",
    ]
    timed_on = {_machine(run["latency"]["machine"]) for run in runs if run["latency"]}
    if timed_on:
        several = " Times of different machines can't be compared." if len(timed_on) > 1 else ""
        lines += [f"Median ms per batch, timed on {'; '.join(sorted(timed_on))}.{several}", ""]
    for picture, names in pictures.items():
        note = [f"Not shown: {', '.join(names)}.", ""] if names else []
        lines += [f"![{picture}]({picture})", "", *note]
    lines += ["## Where each number is from", ""]
    for run in runs:
        lines.append(
            f"- `{run['run']}`: `{run.get('command')}`, commit {run.get('commit')}, "
            f"seed {run['seed']}, {run.get('finetune_recipe') or run.get('recipe')} recipe, "
            f"{_machine(run.get('machine') or {})}, {run.get('seconds')} s"
        )
    return "\n".join(lines) + "\n"


def _machine(machine: dict) -> str:
    gpu = f"{machine['gpu']}, " if machine.get("gpu") else ""
    return f"{gpu}{machine.get('cpu')} ({machine.get('threads')} threads)"


def _terminal(data, narrow: bool):
    """A rich table; what is the same in every row stands in its title."""
    from rich import box
    from rich.table import Table

    from utils.table import LEFT, humane

    text = humane(data)
    same = [column for column in text.columns if text[column].nunique() == 1]
    said = [data[column].iloc[0] for column in ("network", "data") if column in same]
    recipes = data["recipe"].unique()
    said += [f"{recipes[0]} recipe"] if len(recipes) == 1 else []
    hidden = {"run", "ratio", *same} - {"step", "test %"}  # a cut's step tells its ratio
    if narrow:
        hidden |= {"epochs"}
        text["channels"] = text["channels"].str.replace(r" \(.*\)", "", regex=True)
    shown = [column for column in text.columns if column not in hidden]
    table = Table(title=", ".join(said) or None, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in shown:  # words may wrap in a narrow window, numbers may not
        words = column in LEFT
        justify, least = ("left", 12) if words else ("right", None)
        table.add_column(column, justify=justify, no_wrap=not words, min_width=least)
    for values in text[shown].astype(str).values.tolist():
        table.add_row(*values)
    return table


def _time(runs: list[dict], allow: tuple[str, ...]) -> None:
    """Measure every distinct network, side by side in this process; keep it beside each run."""
    from slimming import artifact
    from utils.cost import latency
    from utils.results import write_text
    from utils.runs import machine

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
                write_text(Path(run["folder"]) / "latency.json", text)


@script("report", positional="runs_dir")
def main(cfg) -> None:
    report(cfg)


if __name__ == "__main__":
    main()
