"""What lies in a runs folder: listed, and deleted without breaking what others stand on.

A run stands on its parent: without the parent's folder, asking for it again computes both anew.
"""

import json
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from utils.runs.lock import failure, held, lock_of
from utils.runs.results import STAGES, metrics, readable
from utils.runs.units import duration, si

NAME = re.compile(r".+-[0-9a-f]{8}")
OURS = {
    ".lock",
    "error.txt",
    "config.yaml",
    "metrics.jsonl",
    "result.json",
    "latency.json",
    "sensitivity.json",
    "sensitivity.svg",
    "wandb",
}
OURS |= {".lock", "model.pt", "resume.pt"}


@dataclass(frozen=True)
class Folder:
    """A run's folder, finished or not."""

    path: Path
    run: str  # its name, which the folder was given at first
    stage: str  # "?" where it was killed before it could say
    state: str  # finished, running, interrupted after 3 epochs, failed: why, unreadable
    parent: str | None  # the run it stands on
    modified: float
    size: int  # bytes
    strange: str | None  # a file that no run of ours writes

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def finished(self) -> bool:
        return self.state.startswith("finished")


def folders(runs_dir: Path) -> list[Folder]:
    """Every run in a runs folder, parents first.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not runs_dir.is_dir():
        raise FileNotFoundError(f"there is no folder {runs_dir}/: say runs_dir=...")
    paths = [path for path in sorted(runs_dir.iterdir()) if path.is_dir()]
    found = [_look(path) for path in paths if _is_run(path) and not path.is_symlink()]
    parents = {folder.run: folder.parent for folder in found}
    return sorted(found, key=lambda folder: (_generation(folder.run, parents), folder.name))


def _is_run(path: Path) -> bool:
    """By its name, or, where somebody renamed it, by the result that lies in it."""
    if NAME.fullmatch(path.name):
        return True
    try:
        return "schema" in json.loads((path / "result.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _generation(name: str, parents: Mapping[str, str | None]) -> int:
    """How many of the runs in the folder it stands on."""
    ancestors: list[str] = []
    while (name := parents.get(name)) in parents and name not in ancestors:
        ancestors.append(name)
    return len(ancestors)


def standing_on(every: Sequence[Folder]) -> dict[str, list[str]]:
    """{folder: those that stand on it directly}."""
    names: dict[str, list[str]] = {folder.name: [] for folder in every}
    folder_of = {folder.run: folder.name for folder in every}
    for folder in every:
        if folder.parent in folder_of:
            names[folder_of[folder.parent]].append(folder.name)
    return names


def listing(every: Sequence[Folder]) -> list[tuple[str, ...]]:
    """Rows of (name, stage, state, age, size, what stands on it), as text."""
    above = standing_on(every)
    return [
        (
            folder.name,
            folder.stage,
            folder.state,
            duration(max(0, round(time.time() - folder.modified))),
            si(folder.size, "B"),
            str(len(above[folder.name]) or "-"),
        )
        for folder in every
    ]


def select(every: Sequence[Folder], text: str, unfinished: bool) -> list[Folder]:
    """Runs with `text` in their name, or whose whole name fits a pattern such as "*-s3-*".

    Raises:
        ValueError: the text is empty, or nothing fits.
    """
    if not text.strip():
        raise ValueError("delete= needs a part of a name, or a pattern such as delete='*'")
    pattern = text if "*" in text else f"*{text}*"
    chosen = [folder for folder in every if fnmatchcase(folder.name, pattern)]
    if unfinished:
        chosen = [folder for folder in chosen if not folder.finished]
    if not chosen:
        kind = "unfinished run" if unfinished else "run"
        raise ValueError(f"delete={text}: no {kind} has this in its name; list=true lists them")
    return chosen


def what_must_stay(every: Sequence[Folder], chosen: Sequence[Folder]) -> dict[str, str]:
    """{run: why} of those `chosen` that can't go: in use, or something that stays stands on it."""
    stay = {}
    for folder in chosen:
        if folder.state == "running":
            stay[folder.name] = "it is being computed"
        elif folder.strange is not None:
            stay[folder.name] = f"it holds '{folder.strange}', which no run writes"
    above, names = standing_on(every), {folder.name for folder in chosen}
    while True:  # what stands on something that stays, stays, and so keeps its own parent
        kept = {
            name: [child for child in above[name] if child not in names or child in stay]
            for name in names - stay.keys()
        }
        new = {name: children for name, children in kept.items() if children}
        if not new:
            return stay
        for name, children in new.items():
            more = f" and {len(children) - 1} more" if len(children) > 1 else ""
            stay[name] = f"{children[0]}{more} stands on it"


def show(runs_dir: Path) -> None:
    """Print what lies in a runs folder, a line per run; where there is none yet, that."""
    if not runs_dir.exists():
        print(f"0 runs: there is no folder {runs_dir}/ yet")
        return
    every = folders(runs_dir)
    rows = [("run", "stage", "state", "age", "size", "stand on it"), *listing(every)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip())
    print(f"{len(every)} runs, {si(sum(folder.size for folder in every), 'B')}")


def clean(runs_dir: Path, text: str, unfinished: bool, sure: bool) -> None:
    """Say what deleting the runs called `text` would do; do it if the user is `sure`."""
    every = folders(runs_dir)
    chosen = select(every, text, unfinished)
    stay = what_must_stay(every, chosen)
    freed, gone = 0, 0
    for folder in reversed(chosen):  # children first: killed in between, nothing stands on nothing
        reason = stay.get(folder.name) or (delete(folder) if sure else None)
        if reason:
            print(f"kept: {folder.name}: {reason}")
            continue
        print(f"{'deleted' if sure else 'would delete'}: {folder.name} ({folder.state})")
        freed, gone = freed + folder.size, gone + 1
    if sure:
        print(f"{gone} runs deleted, {si(freed, 'B')} freed")
    else:
        print(f"{gone} runs of {si(freed, 'B')} would go: yes=true deletes them")


def delete(folder: Folder) -> str | None:
    """Delete a run, or say why not. Killed in between, it is an unfinished run, never a broken one.

    Returns:
        None, or why it stays.
    """
    lock = lock_of(folder.path)
    try:
        lock.parent.mkdir(exist_ok=True)
        with FileLock(lock, timeout=0):
            (folder.path / "result.json").unlink(missing_ok=True)
            shutil.rmtree(folder.path)
    except Timeout:
        return "it is being computed"
    except OSError as error:
        return f"it can't be deleted ({error.strerror or error})"
    return None


def _look(path: Path) -> Folder:
    strange = sorted(f.name for f in path.iterdir() if f.name not in OURS and f.suffix != ".tmp")
    facts = [file.lstat() for file in path.rglob("*") if not file.is_dir()]
    modified = max((fact.st_mtime for fact in facts), default=path.stat().st_mtime)
    size, first = sum(fact.st_size for fact in facts), strange[0] if strange else None
    result = path / "result.json"
    if result.exists() and (run := readable(result)):
        date = run.get("finished")
        modified = datetime.fromisoformat(date).timestamp() if date else modified
        state = "finished" if (path / "model.pt").is_file() else "finished, its weights are deleted"
        said = (run["name"], run["stage"], state, run.get("parent"))
    elif (path / "sensitivity.json").exists():
        said = (path.name, "sensitivity", *_measured(path))
    else:
        said = (path.name, *_unfinished(path))
    return Folder(path, *said, modified, size, first)


def _measured(path: Path) -> tuple[str, str | None]:
    """(state, parent) of what `sensitivity.py` leaves."""
    try:
        found = json.loads((path / "sensitivity.json").read_text("utf-8"))
        count = len(found["points"])
        state = "finished" if "finished" in found else f"interrupted after {count} points"
        parent = found.get("parent")
    except (OSError, ValueError, TypeError, KeyError):
        return "unreadable", None
    return "running" if held(path) else state, parent


def _unfinished(path: Path) -> tuple[str, str, str | None]:
    """(stage, state, parent)"""
    config = _config(path / "config.yaml")
    stage = config.get("stage") if config.get("stage") in STAGES else "?"
    start = Path(str(config.get("ckpt") or ""))  # a run's folder, or its model.pt
    parent = start.parent.name if start.name == "model.pt" else start.name
    if held(path):
        return stage, "running", parent
    if (path / "result.json").exists():
        return stage, "unreadable", parent
    if (reason := failure(path)) is not None:
        return stage, f"failed: {reason[:60]}", parent
    epochs = len(metrics({"folder": path}))
    return stage, f"interrupted after {epochs} epochs" if epochs else "interrupted", parent


def _config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError):  # ValueError: not UTF-8
        print(f"{path} can't be read: passed over", file=sys.stderr)
        return {}
    return config if isinstance(config, dict) else {}
