"""The published numbers, and what finished runs have to say to each: tables 1 to 4, 7, Rethinking.

A run belongs to a row when everything in its config that can change its result, and in those it
stands on, is what the row's experiment says; folder names and recipe names are not trusted.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from utils.report import groups
from utils.report.table import paths
from utils.runs.results import STAGES
from utils.runs.units import si

Run = dict[str, Any]
NEAR = 4  # settings that differ: beyond it, a run was never meant to be the row
PUBLISHED = Path(__file__).resolve().parents[3] / "results" / "paper.yaml"


@lru_cache
def published() -> dict[str, Any]:
    """results/paper.yaml as it is."""
    return yaml.safe_load(PUBLISHED.read_text("utf-8"))


def rows(table: str) -> list[dict[str, Any]]:
    """The published rows of a table, each with what its table says of all of them.

    Raises:
        ValueError: there is no such table.
    """
    tables = published()["tables"]
    if table not in tables:
        raise ValueError(f"there is no table={table}; there are: {', '.join(tables)}")
    whole = {key: value for key, value in tables[table].items() if key not in ("rows", "note")}
    return [{**whole, **row} for row in tables[table]["rows"]]


def head(experiment: str) -> list[str]:
    """What the yaml of an experiment says of its row: where it is published, and the numbers."""
    said: dict[str, list[str]] = {}
    for row in (row for table in published()["tables"] for row in rows(table)):
        if row.get("experiment") == experiment:
            said.setdefault(row["source"], []).append(f"{row['row']}: {numbers(row)}")
    for figure in published()["figures"].values():
        if experiment in figure["experiments"]:
            said[figure["source"]] = figure["shows"].splitlines()
    return [
        line
        for source, texts in said.items()
        for line in (f"# {source}", *(f"#   {t}" for t in texts))
    ]


def numbers(row: Mapping[str, Any]) -> str:
    """ "6.20 % error, 2.30 M params (-88.5 %), 391 M FLOPs (-51.0 %)"."""
    measure = measure_of(row)
    spread = f" ± {row['std']:.2f}" if "std" in row else ""
    recalled = " (recalled, not read in the source)" if row["confidence"] == "recalled" else ""
    costs = [
        cost(row.get(key), row.get(f"{key}_pruned"), word)
        for key, word in (("params", " params"), ("flops", " FLOPs"))
    ]
    parts = [f"{row[measure]:.2f}{spread} % {measure}", *costs]
    return ", ".join(part for part in parts if part != "-") + recalled


def measure_of(row: Mapping[str, Any]) -> str:
    return "error" if "error" in row else "accuracy"


def cost(count: float | None, pruned: float | None, word: str = "") -> str:
    """ "2.30 M params (-88.5 %)", or what is known of it."""
    share = None if pruned is None else f"-{pruned:.1f} %"
    if count is None:
        return f"{share}{word}" if share else "-"
    return f"{si(count)}{word}" + (f" ({share})" if share else "")


def lines(
    table: str, runs: Sequence[Run], compose: Callable[[str], dict[str, Any]], command: str
) -> list[dict[str, Any]]:
    """A table's rows with our numbers beside the published ones, as raw numbers.

    Args:
        table: a name of `published()["tables"]`.
        runs: finished runs (see `utils.runs.results.find_runs`).
        compose: experiment -> its whole config, as `pipeline.py` would have it.
        command: what fills an empty row, with {} for the experiment.
    """
    whole = [path for path in paths(runs).values() if path[0].get("parent") is None]
    result = []
    for row in rows(table):
        line = {**row, "measure": measure_of(row), "port": _of_the_port(row), "command": None}
        experiment = row.get("experiment")
        candidates = [path for path in whole if path[0]["dataset"] == row["data"]]
        if experiment:
            config = compose(experiment)
            ours, near = of_row(row, config, candidates)
            where = _where(config["data"], candidates)
            line |= summary(ours, row) if ours else {"command": command.format(experiment) + where}
            line |= {"near": near} if near and not ours else {}
        result.append(line)
    return result


def of_row(
    row: Mapping[str, Any], config: Mapping[str, Any], paths: Sequence
) -> tuple[list[list[Run]], str]:
    """Those of `paths` (a first training and what was made of it) that are this very row; and what
    keeps the nearest of the others from it: "finetune: epochs (12 / 1)", "" if none is near."""
    stages = [*STAGES] * config["passes"] or [STAGES[0]]
    if "pass" in row:
        stages = stages[: 3 * row["pass"] - (2 if row["stage"] == "train" else 0)]
    wanted, others = [], []
    for path in paths:
        if [run["stage"] for run in path] != stages or path[0]["model"] != _class(config):
            continue
        if found := _differences(_expected(config, path), path):
            others.append(found)
        else:
            wanted.append(path)
    nearest = min(others, key=len, default={})
    return wanted, groups.say(nearest) if len(nearest) <= NEAR else ""


def _where(data: Mapping[str, Any], paths: Sequence[Sequence[Run]]) -> str:
    """What a command says of where images are: as finished runs had them, else to be fetched."""
    roots = [(path[0].get("config") or {}).get("data", {}).get("root") for path in paths]
    if known := [root for root in roots if root]:
        return "" if known[-1] == data.get("root") else f" data.root={shlex.quote(str(known[-1]))}"
    return " data.download=true" if "download" in data else ""


def summary(paths: Sequence[Sequence[Run]], row: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and deviation over seeds, difference, band and costs; or why there is no mean."""
    if differing := groups.differences(paths):
        return {"refused": f"{len(paths)} runs, not averaged: {groups.say(differing)}"}
    ends, dense = [path[-1] for path in paths], [path[0] for path in paths]
    measure = measure_of(row)
    values = [_in_percent(run["accuracy"]["test"], measure) for run in ends]
    difference = mean(values) - row[measure]
    band = published()["band"].get(row["data"])
    found = {
        "ours": mean(values),
        "ours_std": stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "difference": difference,
        "inside": None if band is None else abs(difference) <= band,
        "ours_params": mean(run["params"] for run in ends),
        "ours_flops": row.get("flops_per_mac", 2) * mean(run["macs"] for run in ends),
    }
    if len(paths[0]) > 1:
        for key, count in (("ours_params_pruned", "params"), ("ours_flops_pruned", "macs")):
            left = mean(end[count] / whole[count] for end, whole in zip(ends, dense, strict=True))
            found[key] = 100 * (1 - left)
    return found


def _expected(config: Mapping[str, Any], path: Sequence[Run]) -> list[Run]:
    """The runs that an experiment makes; what only a run knows is taken from `path`."""
    result = []
    for number, found in enumerate(path):
        stage = found["stage"]
        own = {**config, **(config["finetune"] if stage == "finetune" else {})}
        result.append(
            {
                **{key: own.get(key) for key in ("epochs", "ratio", "target", "recalibrate")},
                "config": own,
                "stage": stage,
                "scratch": own.get("scratch", "none"),
                "dataset": config["data"]["_target_"].rpartition(".")[2],
                "model": _class(config),
                "strength": _strength(config, path[0]),
                "precision": found.get("precision"),
                "parent": "its parent" if number else None,
                "seed": None,
            }
        )
    return result


def _strength(config: Mapping[str, Any], found: Run) -> float | None:
    """lambda; where it follows from a reach, what came of the same reach."""
    strength = config["method"].get("strength", 0.0)
    theirs = found.get("config") or {}
    open_too = "strength" in theirs.get("method", {}) and theirs["method"]["strength"] is None
    if strength is None and open_too and theirs["recipe"]["reach"] == config["recipe"]["reach"]:
        return found["strength"]
    return strength


def _differences(expected: Sequence[Run], path: Sequence[Run]) -> dict[str, Any]:
    return groups.differences([expected, path])


def _class(config: Mapping[str, Any]) -> str:
    return config["model"]["_target_"].rpartition(".")[2]


def _of_the_port(row: Mapping[str, Any]) -> float | None:
    port = published()["port"]["rows"].get(row.get("experiment"), {})
    if "pass" in row or "accuracy" not in port:
        return None
    return round(_in_percent(port["accuracy"] / 100, measure_of(row)), 2)


def _in_percent(accuracy: float, measure: str) -> float:
    return 100 * (1 - accuracy if measure == "error" else accuracy)
