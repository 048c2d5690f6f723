"""Finished runs -> chains -> rows -> DataFrame -> what people read. Pure functions, no files.

A run is the content of a result.json plus "run" (its folder's name) and "latency" (or None).
A chain is a training and what was made of it: train -> prune -> finetune.
Rows hold raw numbers: accuracy as a fraction, bytes, ms.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from utils.report import groups
from utils.runs.results import STAGES

Run = dict[str, Any]
# What a cut's settings say of the time after an accuracy was measured.
AFTER = {
    "cut": frozenset({"compensate", "growth", "images", "recalibrate"}),
    "compensated": frozenset({"recalibrate"}),
    "recalibrated": frozenset(),
}
COSTS = ("params", "macs", "macs_thop", "flops_paper", "bytes")


def chains(runs: Sequence[Run]) -> list[list[Run]]:
    """Every path from a first run to a last one, in the order of the table.

    Recipes, data sets and networks stay together; baselines (strength 0) precede sparse trainings.
    A run whose parent is not among `runs` starts a chain of its own.
    """
    known = {run["run"] for run in runs}
    children: dict[str | None, list[Run]] = {}
    for run in sorted(runs, key=_order):
        parent = run.get("parent")
        children.setdefault(parent if parent in known else None, []).append(run)

    def paths(run: Run) -> list[list[Run]]:
        below = [path for child in children.get(run["run"], []) for path in paths(child)]
        return [[run, *path] for path in below or [[]]]

    return [path for root in children.get(None, []) for path in paths(root)]


def _order(run: Run) -> tuple:
    group = (str(run.get("recipe")), run["dataset"], network(run))
    stage = STAGES.index(run["stage"])
    return (*group, stage, run.get("strength") or 0, run.get("ratio") or 0, run["seed"], run["run"])


def choose(runs: Sequence[Run], only: str | None) -> list[Run]:
    """The runs of those chains in which some run's name contains `only` (None: all runs).

    Raises ValueError when no name contains it.
    """
    if only is None:
        return list(runs)
    chosen = [path for path in chains(runs) if any(only in run["run"] for run in path)]
    if not chosen:
        raise ValueError(f"only={only}: no finished run has this in its name; try a shorter text")
    names = {run["run"] for path in chosen for run in path}
    return [run for run in runs if run["run"] in names]


def network(run: Run) -> str:
    """ "vgg11-w0.25", as the row is called; the class where the row is named after a file."""
    name, found, _ = str(run.get("row")).partition(f"-{run['dataset']}-l")
    return name if found else run["model"]


def strength(path: Iterable[Run]) -> float:
    """The lambda a chain was trained with: fine-tuning has none of its own."""
    return next((run["strength"] for run in reversed([*path]) if run.get("strength")), 0)


def ratio(path: Iterable[Run]) -> float | None:
    """The share of channels the last cut of a chain asked for; None before any, or by target."""
    cut = _last_cut(path)
    return None if cut.get("target") else cut.get("ratio")


def target(path: Iterable[Run]) -> str | None:
    """ "macs 0.5": what the last cut of a chain asked to stay, or None."""
    limits = _last_cut(path).get("target") or {}
    return (
        ", ".join(
            f"{name} {limits[name]:.10g}" for name in sorted(limits) if limits[name] is not None
        )
        or None
    )


def method(path: Iterable[Run]) -> str:
    """How the channels of the last cut of a chain were chosen: "slimming", "l1_norm"..."""
    return next((run["method"] for run in reversed([*path]) if run.get("method")), "slimming")


def _last_cut(path: Iterable[Run]) -> Run:
    """The cut that a chain ends in or was fine-tuned after; {} after a (further) training."""
    for run in reversed([*path]):
        if run["stage"] == "train":
            break
        if run.get("ratio") is not None:
            return run
    return {}


def rows(
    paths: Mapping[str, Sequence[Run]], known: Mapping[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """One row per network and accuracy worth comparing, chain after chain, each run once.

    Rows of one "group" differ in their seed only; those of one "shape" had the same training and
    the same cut asked for.

    Args:
        paths: of `paths`.
        known: {run: its `groups.settings`}.
    """
    return [row for path in paths.values() for row in _rows(path, known)]


def paths(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """{run: the chain that ends in it}, in the order of the table."""
    found: dict[str, list[Run]] = {}
    for path in chains(runs):
        for end, run in enumerate(path, start=1):
            found.setdefault(run["run"], path[:end])
    return found


def _rows(path: Sequence[Run], known: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    run = path[-1]
    channels, latency = run["channels"], (run.get("latency") or {}).get("batch", {})
    cut = path[:-1] if run["stage"] == "finetune" and len(path) > 1 else path
    shape = _digest(groups.key(cut, AFTER["cut"], known))
    common = {
        "network": network(path[0]),
        "data": run["dataset"],
        # A chain belongs to the recipe it was started with, so that no table mixes two.
        "recipe": path[0].get("recipe"),
        "lambda": strength(path),
        "ratio": ratio(path),
        "target": target(path),
        "method": method(path),
        "repair": _repair(path),
        "pass": run.get("pass") or 1,
        "seed": run["seed"],
        "row": run.get("row"),
    }
    costs = {
        "kept": channels["kept"],
        "total": channels["total"],
        **{key: run.get(key) for key in COSTS},
        "latency_1_ms": latency.get("1", {}).get("median_ms"),
        "latency_64_ms": latency.get("64", {}).get("median_ms"),
        "timed_on": machine(run["latency"]["machine"]) if run.get("latency") else None,
        "epochs": run.get("epochs"),
        "stage": run["stage"],
        "shape": shape,
        "run": run["run"],
    }
    return [
        {
            "step": step,
            **common,
            **({"repair": _after_cut(step)} if run["stage"] == "prune" else {}),
            "test": accuracy["test"],
            "val": accuracy.get("val"),
            "group": _digest(groups.key(path, after, known)),
            **costs,
        }
        for step, accuracy, after in _steps(path)
    ]


def _repair(path: Sequence[Run]) -> str:
    """What was done between the last cut of a chain and what came of it: "refit + recalibrated"."""
    for run in reversed(path):
        if run["stage"] == "train":
            break
        if run["stage"] == "prune":
            return _after_cut(_steps([run])[-1][0])
    return ""


def _after_cut(step: str) -> str:
    return step.partition(" + ")[2]


def machine(facts: Mapping[str, Any]) -> str:
    """ "NVIDIA H100, AMD EPYC (2 threads)" """
    gpu = f"{facts['gpu']}, " if facts.get("gpu") else ""
    threads = facts.get("threads")
    return f"{gpu}{facts.get('cpu')} ({threads} thread{'' if threads == 1 else 's'})"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _steps(path: Sequence[Run]) -> list[tuple[str, dict[str, float], frozenset[str]]]:
    """What a run is called in the table, its accuracies, and the settings that came later."""
    run = path[-1]
    if run["stage"] == "train":
        step = "sparse" if run.get("strength") else "baseline"
        return [(step, run["accuracy"], frozenset())]
    if run["stage"] == "finetune":
        name, told = run.get("finetune_recipe"), changed(run.get("finetune_recipe_changes"))
        first = (path[0].get("recipe"), changed(path[0].get("recipe_changes")))
        other = f" ({name} recipe{': ' * bool(told)}{told})" if name else ""
        other = other if (name, told) != first else ""
        return [(tuning(run) + other, run["accuracy"], frozenset())]
    share, limit = ratio([run]), target([run])
    step = f"cut {100 * share:g} %" if share is not None else f"cut to {limit}" if limit else "cut"
    variants = run.get("variants") or {}
    steps = [(step, variants.get("cut", run["accuracy"]), AFTER["cut"])]
    # Each is applied on top of the one before, so the names add up.
    for variant in ("compensated", "recalibrated"):
        if variant in variants:
            mode = (run.get("config") or {}).get("compensate") if variant == "compensated" else None
            step = f"{step} + {mode or variant}"
            steps.append((step, variants[variant], AFTER[variant]))
    return steps


def changed(changes: Mapping[str, Any] | None) -> str:
    """What was changed of a recipe by hand: "batch_size 32, optimizer.lr 0.1"; or ""."""
    said = [groups.told(key, value) for key, value in (changes or {}).items()]
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def tuning(run: Run) -> str:
    """What a finetune run is: the paper's third stage, or a control that begins anew; by which
    method, where it isn't the usual one."""
    scratch, method = run.get("scratch", "none"), run.get("finetune_method")
    said = "fine-tuned" if scratch == "none" else f"scratch-{scratch}"
    return f"{said} by {method}" if method else said
