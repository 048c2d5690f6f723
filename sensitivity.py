"""Which layers of a network can be cut without loss: each alone, by 10 to 90 %; nothing is trained.

    python sensitivity.py                               # the newest sparse training
    python sensitivity.py ckpt=runs/<name> shares=[0.3,0.5,0.7]
    python sensitivity.py only=[layer4.*] method=l1_norm

Accuracy is that on validation images, after BatchNorm statistics are estimated anew; the test set
is never looked at. The last column answers. What is measured is kept in a folder beside the runs:
killed in the middle, the same command goes on.
"""

from utils.cli.script import begin, script, typed

if __name__ == "__main__":  # --help doesn't wait for what is imported next
    begin("sensitivity")

import json
import time
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from torch import Tensor, nn

from prune import judge, score, streams, trained_for
from slimming import ChannelGraph, sensitivity
from slimming.graph.trace import check_streams
from slimming.planning.names import patterns
from slimming.planning.planner import check_options
from slimming.planning.sensitivity import Point, channels, check_shares
from utils.cli import configured
from utils.data import Data
from utils.networks.show import brief, show_sensitivity
from utils.report.plots.marks import save
from utils.report.plots.sensitivity import heat_map
from utils.runs.folder import Run
from utils.runs.kinds import SENSITIVITY, parse
from utils.runs.parent import Parent, find_parent
from utils.runs.units import duration
from utils.training.hardware import Hardware
from utils.training.method import check_needs, name_of, scoring_identity

FILE, PICTURE = "sensitivity.json", "sensitivity.svg"


@dataclass(frozen=True)
class Asked:
    """What is measured, of which network: named, not begun."""

    run: Run
    parent: Parent
    data: Data
    hardware: Hardware
    seed: int
    options: dict[str, Any]  # of `slimming.sensitivity`
    images: int  # to estimate BatchNorm statistics on


def measure(cfg) -> Path:
    """Measure what is missing; print and draw what is there; return its folder."""
    asked = describe(cfg)
    run, found = asked.run, _read(asked.run)
    if cfg.dry_run:
        print(f"{run.folder} {_state(cfg, asked, found)}")
        return run.folder
    if found.get("finished"):
        told = run.unlike(found)
        if told:
            run.insist(f"{run.folder} was computed with {told}")
        print(f"{run.folder} is finished" + (f" (computed with {told})" if told else ""))
    else:
        asked.parent.insist(run)
        with run.locked():
            found = _read(run)  # by the process we waited for
            found = found if found.get("finished") else _complete(cfg, asked, found)
    asked.parent.compare(found["parent_weights"], run)
    _show(asked, found, cfg.loss)
    return run.folder


def describe(cfg) -> Asked:
    """
    Raises:
        ValueError: an option is out of range, or there are no validation images.
    """
    method, allow = configured.plain(cfg.method), tuple(cfg.allow)
    options = {key: configured.plain(cfg[key]) for key in ("shares", "combine")}
    options["shares"] = check_shares(options["shares"])
    for key in ("exclude", "only"):
        globs = configured.plain(cfg[key])
        options |= {key: sorted({*patterns(key, globs)})} if globs else {}
    check_options(1, 1, combine=cfg.combine)
    check_streams(cfg.coupled, cfg.unscored)
    check_needs(method, cfg)
    if cfg.recalibrate < 0 or not cfg.loss > 0:
        raise ValueError(
            f"recalibrate is a number of training images, and loss one of points above 0; got "
            f"{cfg.recalibrate} and {cfg.loss:g}"
        )
    for option in ("scope", "cost", "cost_power"):
        if typed(option):
            print(f"note: {option} changes nothing here: each layer is cut alone")
    advice = "run `python train.py` first"
    parent = Parent.open(find_parent(cfg.ckpt, cfg.runs_dir, trained_for(method), advice))
    hardware = instantiate(cfg.hardware)
    data = parent.data(configured.plain(cfg.get("data")), hardware)
    _check_held_out(parent, data, configured.plain(cfg.get("data")) or {})
    seed = parent.facts.get("seed", 0) if cfg.seed is None else cfg.seed
    images = min(cfg.recalibrate, len(data.train))
    name = "" if name_of(method) == "slimming" else f"-{name_of(method)}"
    identity = {
        "parent": parent.identity,
        **parent.source(allow),
        "data": configured.data_identity(data),
        "method": scoring_identity(method),
        "plan": options,
        "coupled": cfg.coupled,
        **streams(cfg),
        "recalibrate": images,
        **hardware.numerics,
    }
    row = f"{parent.row}-sensitivity{name}"
    kind = {"strict": cfg.strict, "recompute": cfg.recompute}
    run = Run(cfg.runs_dir, "sensitivity", row, seed, identity, hardware.device, **kind)
    return Asked(run, parent, data, hardware, seed, options, images)


def _check_held_out(parent: Parent, data: Data, asked: dict) -> None:
    if not len(data.val):
        raise ValueError(
            f"sensitivity is measured on validation images, never on the test set, and {data.name} "
            f"has none here: train with data.val_size=N, which holds N images out"
        )
    known = [entry["data"] for entry in parent.checkpoint.history if "data" in entry]
    trained = known[-1] if known else {}
    if any(key in asked and asked[key] != trained.get(key) for key in ("val_size", "split_seed")):
        print("note: the network was trained on some of these validation images: losses look small")


def _complete(cfg, asked: Asked, before: dict[str, Any]) -> dict[str, Any]:
    """Measure what isn't there yet, and keep each point as soon as it is."""
    run, parent = asked.run, asked.parent
    found = {
        **{"schema": 1, "stage": run.stage, "name": run.name, "parent": parent.folder},
        **{"parent_weights": parent.weights, "config": configured.plain(cfg)},
        **run.environment,
        "begun_with": _begun(run, before),
    }
    model, graph, scores = _scored(cfg, asked)
    accuracy = judge(model, graph, asked.data, asked.hardware, asked.images, asked.seed)
    known = {(layer, removed): reached for layer, _, removed, reached in before.get("points", [])}
    total = len(_points(asked, graph, scores))
    start, points = time.monotonic(), []
    for point in sensitivity(graph, scores, accuracy, known=known, **asked.options):
        points.append(astuple(point))
        if (point.layer, point.removed) in known:
            continue
        done = {"finished": datetime.now(UTC).isoformat(timespec="seconds")}
        whole = {**found, "points": points, **(done if len(points) == total else {})}
        run.write(FILE, json.dumps(whole) + "\n")
        pace = (time.monotonic() - start) / (len(points) - len(known))
        if point.removed in (0, channels(asked.options["shares"][-1], point.size)):
            gone = f"{brief(point.layer)} without {point.removed} of {point.size} channels"
            left = duration(pace * (total - len(points)))
            reached = f"{100 * point.accuracy:.2f} %"
            print(f"{gone if point.removed else 'uncut'}: {reached}; {left} left", flush=True)
    return whole


def _state(cfg, asked: Asked, found: dict[str, Any]) -> str:
    if found.get("finished"):
        return "is finished"
    _, graph, scores = _scored(cfg, asked)
    left = len(_points(asked, graph, scores)) - len(found.get("points", []))
    return f"would {'go on' if found else 'be computed'}: {left} networks to evaluate"


def _scored(cfg, asked: Asked) -> tuple[nn.Module, ChannelGraph, dict[str, Tensor]]:
    model = asked.parent.opened().model(tuple(cfg.allow), asked.data, asked.hardware)
    return model, *score(cfg, model, asked.data, asked.seed)


def _points(asked: Asked, graph: ChannelGraph, scores: dict[str, Tensor]) -> list[Point]:
    """All that there is to measure."""
    return list(sensitivity(graph, scores, lambda keep: 0.0, **asked.options))


def _begun(run: Run, before: dict[str, Any]) -> list[dict[str, Any]]:
    """The environments in which it was begun, where something has changed since."""
    if not before or not (other := run.unlike(before)):
        return before.get("begun_with", [])
    run.insist(f"{run.folder} was begun with {other}", "delete the folder to begin anew")
    print(f"{run.name} was begun with {other}: {FILE} will say so")
    return [*before["begun_with"], {key: before.get(key) for key in run.environment}]


def _read(run: Run) -> dict[str, Any]:
    """What is there, {} if nothing is.

    Raises:
        ValueError: the file is broken.
    """
    path = run.folder / FILE
    if not path.is_file() or run.recompute:
        return {}
    try:
        found = parse(path.read_text("utf-8"))
        problem = SENSITIVITY(found, "")
    except ValueError as error:
        problem = str(error)
    if problem:
        raise ValueError(f"{path} is broken ({problem}): delete it to measure anew")
    return found


def _show(asked: Asked, found: dict[str, Any], loss: float) -> None:
    run, shares = asked.run, asked.options["shares"]
    points = [Point(*point) for point in found["points"]]
    show_sensitivity(points, shares, loss)
    if not (run.folder / PICTURE).exists():  # else the folder may be read-only
        with run.writing(PICTURE) as path:
            save(heat_map(points, shares, run.label), path)
    print(f"{run.folder / PICTURE} shows it")


@script("sensitivity")
def main(cfg) -> None:
    measure(cfg)


if __name__ == "__main__":
    main()
