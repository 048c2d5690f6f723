"""How long a stage will take, by finished runs like it in the same folder; never a guess.

Like it: same network, data, batch size, precision, device and machine. What else may differ, such
as lambda, seed or schedule, costs no time.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from utils.runs.environment import machine
from utils.runs.results import readable
from utils.runs.units import duration

Run = Mapping[str, Any]
CUTTING = ("compensate", "images", "recalibrate", "target")  # what a cut's time depends on
PLACES = ("root", "download", "split_seed")  # of a data set: don't change its size

NEEDED = {"config", "device", "machine", "parent", "precision", "row", "seconds"}


@dataclass(frozen=True)
class Forecast:
    """`seconds` until a stage is finished; `at_most`: only a larger network's time is known."""

    seconds: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'at most' if self.at_most else 'about'} {duration(round(self.seconds))}"


def forecast(stage: Any, config: Run) -> Forecast | None:
    """The time that is left of a `stages.Stage`, or None where no finished run tells.

    Args:
        stage: what isn't finished.
        config: what it was asked for, as plain Python.
    """
    device, precision = str(stage.hardware.device), stage.hardware.precision
    place = {"device": device, "precision": precision, "machine": machine(device)}
    known = [
        run
        for run in finished(stage.run.folder.parent)
        if all(run.get(key) == value for key, value in place.items()) and _alike(run, stage, config)
    ]
    if stage.epochs is None:
        alike = [run["seconds"] for run in known if _cutting(run["config"]) == _cutting(config)]
        return Forecast(median(alike)) if alike else None
    trained = [run for run in known if run.get("epochs")]
    pace = _pace_of_thin(stage, trained) if stage.parent else _pace_of_whole(trained)
    if pace is None:
        return None
    left = stage.epochs - stage.run.progress()[0]
    return Forecast(left * pace.seconds, pace.at_most)


def total(expected: Iterable[Forecast | None]) -> str:
    """ "12 stages to compute: about 3 h, and 2 of which no finished run tells the time"."""
    expected = list(expected)
    known = [time for time in expected if time is not None]
    if not expected:
        return "nothing to compute"
    said = f"{len(expected)} stage{'s' * (len(expected) > 1)} to compute: "
    if not known:
        return said + "time unknown, there is no finished run like them"
    time = Forecast(sum(t.seconds for t in known), any(t.at_most for t in known))
    rest = len(expected) - len(known)
    return f"{said}{time} in a row" + (f", and {rest} whose time is unknown" if rest else "")


@lru_cache(maxsize=1)  # the jobs of a sweep read the folder once
def finished(runs_dir: Path) -> list[Run]:
    """The results in a runs folder; what is none of ours is named and passed over."""
    runs = [readable(path) for path in sorted(runs_dir.glob("*/result.json"))]
    return [run for run in runs if run is not None and run.keys() >= NEEDED]


def _alike(run: Run, stage: Any, config: Run) -> bool:
    """Whether a finished run is of the same network and data, and trained in the same batches."""
    theirs = run["config"]
    if _network(run["row"]) != _network(stage.run.row):
        return False
    if stage.epochs is None:  # cuts go with cuts, trainings with trainings
        return run["stage"] == stage.run.stage and _agree(theirs, config, "model", "data")
    same_batches = (theirs.get("recipe") or {}).get("batch_size") == config["recipe"]["batch_size"]
    return same_batches and _agree(theirs, config, "model", "data")


def _agree(one: Run, other: Run, *names: str) -> bool:
    """Whether what both say is the same, wherever it lies."""

    def said(config: Run, name: str) -> dict[str, Any] | None:
        node = config.get(name)
        return node and {key: value for key, value in node.items() if key not in PLACES}

    pairs = [(said(one, name), said(other, name)) for name in names]
    return all(a == b for a, b in pairs if a and b)


def _network(row: str) -> str:
    """ "vgg11-w0.5-cifar10": what stands before lambda in a row's label."""
    return re.split(r"-l\d", row)[0]


def _cutting(config: Run) -> list[Any]:
    return [config.get(name) for name in CUTTING]


def _pace(run: Run) -> float:
    """Seconds per epoch, with what comes before and after."""
    return run["seconds"] / run["epochs"]


def _pace_of_whole(trained: list[Run]) -> Forecast | None:
    whole = [_pace(run) for run in trained if not run["parent"]]
    return Forecast(median(whole)) if whole else None


def _pace_of_thin(stage: Any, trained: list[Run]) -> Forecast | None:
    """That of networks cut to the same goal; else of the smallest that is known to be larger."""
    goal = _goal(stage.leaves.history)
    if like := [_pace(run) for run in trained if run["parent"] and _goal([run]) == goal]:
        return Forecast(median(like))
    macs = stage.parent.facts.get("macs")  # unknown before the cut
    larger = [run for run in trained if run["macs"] >= macs] if macs else []
    nearest = min(larger, key=lambda run: run["macs"], default=None)
    whole = _pace_of_whole(trained)
    pace = Forecast(_pace(nearest)) if nearest else whole
    return pace and Forecast(pace.seconds, at_most=True)


def _goal(entries: Iterable[Run]) -> Any:
    """What the last cut was asked for: {"macs": 0.5}, or a ratio."""
    cuts = [entry for entry in entries if entry.get("ratio") or entry.get("target")]
    return (cuts[-1].get("target") or cuts[-1]["ratio"]) if cuts else None
