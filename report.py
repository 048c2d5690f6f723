"""Finished runs -> one table and two pictures.

    python report.py                        # runs/
    python report.py results/ only=cifar10

Writes report/ beside the runs: report.md, table.csv, report.json, gammas.png, widths.png. Only
result.json is read (and model.pt, to time it): nothing is computed anew.
"""

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
        _time(runs)
    chains, rows = table.chains(runs), table.frame(table.rows(runs))
    text = table.humane(rows)
    folder = root / "report"
    folder.mkdir(exist_ok=True)
    left_out = {
        "gammas.png": plots.gammas(chains, folder / "gammas.png"),
        "widths.png": plots.widths(chains, folder / "widths.png"),
    }
    rows.to_csv(folder / "table.csv", index=False)
    rows.to_json(folder / "report.json", orient="records", indent=1)
    write_text(folder / "report.md", table.page(text, runs, left_out))
    console = Console(width=None if Console().is_terminal else 200)
    console.print(table.terminal(text))
    print(f"{folder / 'report.md'} has this table, two pictures and the command of every run")
    return folder / "report.md"


def _time(runs: list[dict]) -> None:
    """Measure all networks side by side in this process; keep it beside each run."""
    import json

    from slimming import artifact
    from utils.cost import latency
    from utils.results import write_text
    from utils.runs import machine

    by_shape: dict[tuple, dict] = {}
    for run in runs:
        if (Path(run["folder"]) / "model.pt").exists():
            checkpoint = artifact.read(run["folder"])
            model = artifact.restore(checkpoint, (checkpoint.module,))
            by_shape.setdefault(checkpoint.input_shape, {})[run["folder"]] = model
    for shape, models in by_shape.items():
        times = latency(models, shape)
        for run in runs:
            if run["folder"] in models:
                run["latency"] = {"machine": machine(), "batch": times[run["folder"]]}
                text = json.dumps(run["latency"], indent=1) + "\n"
                write_text(Path(run["folder"]) / "latency.json", text)


@script("report", positional="runs_dir")
def main(cfg) -> None:
    report(cfg)


if __name__ == "__main__":
    main()
