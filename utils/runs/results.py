"""Reading finished runs back."""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimming.checkpoint import write_atomically
from utils.runs.kinds import LATENCY, RESULT, ROW, parse

SCHEMA = 1  # of result.json
STAGES = ("train", "prune", "finetune")


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
    for name in _circles(runs):
        folder = runs.pop(name)["folder"]
        print(f"{folder}/result.json stands on itself: passed over", file=sys.stderr)
    if not runs:
        raise FileNotFoundError(f"no finished run in {root}/: run `python pipeline.py` first")
    return list(runs.values())


def _circles(runs: Mapping[str, dict[str, Any]]) -> list[str]:
    """Runs that are their own parent, or that of their parent, and so on."""
    found = []
    for name in runs:
        above, seen = runs[name].get("parent"), set()
        while above in runs and above not in {name, *seen}:
            seen.add(above)
            above = runs[above].get("parent")
        if above == name:
            found.append(name)
    return found


def readable(path: Path) -> dict[str, Any] | None:
    """A result.json; None, and a word on stderr, where it is broken, foreign or of other schema."""
    problem, run = _read(path)
    if problem:
        print(f"{path} {problem}: passed over", file=sys.stderr)
    return None if problem else run


def check(run: Any) -> str | None:
    """What keeps the content of a result.json from being a result of ours, or None."""
    if not isinstance(run, dict) or "schema" not in run:
        return f"is not a result of this project (this version reads {SCHEMA})"
    if type(run["schema"]) is not int:
        return f"has the schema {json.dumps(run['schema'])}, which is no whole number"
    if run["schema"] != SCHEMA:
        return f"has schema {run['schema']}, this version reads {SCHEMA}"
    if problem := RESULT(run, ""):
        return problem if problem.startswith("lacks ") else f"is not sound: {problem}"
    return None if run["stage"] in STAGES else "is of no stage known"


def _read(path: Path) -> tuple[str | None, dict[str, Any]]:
    try:
        run = parse(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        return f"is broken ({error})", {}
    return check(run), run


def _latency(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        latency = parse(path.read_text("utf-8"))
        problem = LATENCY(latency, "")
    except (ValueError, OSError) as error:
        problem = str(error)
    if problem:
        print(f"{path} is broken ({problem}): passed over", file=sys.stderr)
        return None
    return latency


def metrics(run: dict[str, Any]) -> list[dict[str, Any]]:
    """A run's rows, one per epoch; [] without metrics.jsonl. What isn't a row of ours is named."""
    path = Path(run["folder"]) / "metrics.jsonl"
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
    except (OSError, ValueError):
        print(f"{path} can't be read: passed over", file=sys.stderr)
        return []
    for number, text in enumerate(lines, start=1):
        try:
            row = parse(text)
            problem = ROW(row, "")
        except ValueError as error:
            problem = str(error)
        if problem:
            print(
                f"{path} is broken from line {number} on ({problem}): passed over", file=sys.stderr
            )
            break
        rows.append(row)
    return rows


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def writable(folder: Path) -> Path:
    """The folder, made where there is none; to be asked before something is computed for it.

    Raises:
        OSError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"can't write to the folder {folder} ({error.strerror or error}); choose another place "
            f"with to=..."
        ) from error
    return folder
