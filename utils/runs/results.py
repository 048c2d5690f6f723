"""Reading finished runs back."""

import json
import sys
from pathlib import Path
from typing import Any

from slimming.checkpoint import write_atomically
from utils.runs.folder import SCHEMA

STAGES = ("train", "prune", "finetune")
NEEDED = {"stage", "name", "accuracy", "channels", "params", "macs", "seed", "dataset", "model"}


def find_runs(root: Path) -> list[dict[str, Any]]:
    """Every finished run below `root`, at any depth, with its folder and latency.

    What isn't a result of ours is named and passed over. A run that lies in two places is one run.

    Raises:
        FileNotFoundError: nothing is finished.
    """
    runs: dict[str, dict[str, Any]] = {}
    for path in sorted(root.rglob("result.json")):
        problem, run = _read(path)
        if problem:
            print(f"{path} {problem}: passed over", file=sys.stderr)
            continue
        latency = _latency(path.with_name("latency.json"))
        folder = str(path.parent)
        whole = {**run, "run": run["name"], "folder": folder, "latency": latency}
        first = runs.setdefault(run["name"], whole)
        if first["accuracy"] != run["accuracy"]:
            print(f"{path} differs from {first['folder']}: passed over", file=sys.stderr)
    unfinished = sorted(
        path.parent.name
        for path in root.rglob("config.yaml")
        if not path.with_name("result.json").exists()
    )
    if unfinished:
        names = ", ".join(unfinished)
        print(f"{len(unfinished)} not finished (running, or interrupted): {names}", file=sys.stderr)
    if not runs:
        raise FileNotFoundError(f"no finished run in {root}/: run `python pipeline.py` first")
    return list(runs.values())


def readable(path: Path) -> dict[str, Any] | None:
    """A result.json; None, and a word on stderr, where it is broken, foreign or of other schema."""
    problem, run = _read(path)
    if problem:
        print(f"{path} {problem}: passed over", file=sys.stderr)
    return None if problem else run


def _read(path: Path) -> tuple[str | None, dict[str, Any]]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return "is broken", {}
    if not isinstance(run, dict) or not run.keys() >= {"schema"}:
        return "is not a result of this project", {}
    if run["schema"] != SCHEMA:
        return f"has schema {run['schema']}, this version reads {SCHEMA}", {}
    if missing := NEEDED - run.keys():
        return f"lacks {', '.join(sorted(missing))}", {}
    if run["stage"] not in STAGES:
        return "is of no stage known", {}
    if not isinstance(run["channels"], dict) or not run["channels"].keys() >= {"kept", "total"}:
        return "lacks the number of channels", {}
    if not isinstance(run["accuracy"], dict) or "test" not in run["accuracy"]:
        return "lacks accuracy on the test set", {}
    return None, run


def _latency(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError:
        print(f"{path} is broken: passed over", file=sys.stderr)
        return None


def metrics(run: dict[str, Any]) -> list[dict[str, Any]]:
    """A run's rows, one per epoch; [] without metrics.jsonl. What isn't a row of ours is named."""
    path = Path(run["folder"]) / "metrics.jsonl"
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_text().splitlines() if path.exists() else []
    except (OSError, ValueError):
        print(f"{path} can't be read: passed over", file=sys.stderr)
        return []
    for number, text in enumerate(lines, start=1):
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
            print(f"{path} is broken from line {number} on: passed over", file=sys.stderr)
            break
        rows.append(row)
    return rows


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
