"""A sweep from its first job to its last: announced, counted, its failures named, nothing left.

Jobs may be other processes, on other machines: what they have to say, they leave in a file of
hydra.sweep.dir, a line each.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from utils.cli import search
from utils.cli.output import say
from utils.runs.units import duration


@dataclass
class Command:
    """What this process runs, or what the process that started it does."""

    # Two sweeps may begin within one second, in the same folder.
    notes: str = field(default_factory=lambda: f".jobs-{os.getpid()}.jsonl")
    searches: bool = False  # whether the script returns what a search makes large
    folder: Path | None = None  # once a sweep has begun here
    temporary: Any = None  # the same, if it is to vanish
    kept: list[dict[str, Any]] = field(default_factory=list)  # of a command without -m


command = Command()


def is_on() -> bool:
    """Whether this is a job of a sweep, whose log has a line where one command has a table."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def note(**facts: Any) -> None:
    """Leave a line for the end of this command."""
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        command.kept.append(facts)
        return
    with open(Path(HydraConfig.get().sweep.dir) / command.notes, "a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")


def _noted(folder: str | Path) -> list[dict[str, Any]]:
    """All lines so far."""
    with contextlib.suppress(FileNotFoundError):
        text = (Path(folder) / command.notes).read_text("utf-8")
        return [json.loads(line) for line in text.splitlines()]
    return []


def announce() -> str:
    """Say which job this is, and how long the rest will take; what sets it apart."""
    hydra = HydraConfig.get()
    lines = _noted(hydra.sweep.dir)
    begun, number = (lines or [{}])[0], hydra.job.num + 1
    keys = begun.get("swept", ())
    own = [word for word in hydra.overrides.task if word.partition("=")[0].lstrip("+") in keys]
    ended, jobs, when = sum("ended" in line for line in lines), begun.get("jobs", number), ""
    if ended and not command.temporary:
        left = (time.time() - begun["time"]) / ended * (jobs - ended)
        when = f", about {duration(round(left))} left"
    kind, told = "trial" if search.is_on() else "job", " ".join(own)
    print(f"{kind} {number} of {jobs}{when}{': ' if told else ''}{told}", flush=True)
    note(job=hydra.job.num, folder=hydra.runtime.output_dir)
    return told or f"job {hydra.job.num}"


class Begin(Callback):
    """Hydra calls it before the first job of a sweep, in the process that started it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        words = [f"{k}={v}" for k, v in (config.hydra.sweeper.get("params") or {}).items()]
        words += config.hydra.overrides.task
        swept = _swept(words)
        is_search = "direction" in config.hydra.sweeper
        if is_search and not command.searches:
            sys.exit(say("a search needs a result to make large: only pipeline.py has one", 1))
        if is_search and config.get("dry_run"):
            sys.exit(say(search.NO_DRY_RUN, 1))
        if not is_search and (empty := [key for key, number in swept.items() if not number]):
            typed = next(
                word for word in reversed(words) if word.lstrip("+").startswith(f"{empty[0]}=")
            )
            sys.exit(say(f"no job: {typed} fits nothing; {_of_glob(empty[0])}", 1))
        command.folder = folder = _place(config)
        jobs = config.hydra.sweeper.n_trials if is_search else prod(swept.values())
        facts = {"jobs": jobs, "swept": list(swept), "time": time.time()}
        (folder / command.notes).write_text(json.dumps(facts) + "\n", "utf-8")
        logs = config.hydra.launcher.get("submitit_folder")
        if logs is not None:
            print(f"what the {jobs} jobs print is in {logs.replace('%j', '*')}", flush=True)


def _of_glob(key: str) -> str:
    return (
        f"glob looks among the choices of a group, such as model=glob(vgg*), not among files: "
        f"list them, {key}=a,b"
    )


def _swept(words: list[str]) -> dict[str, int]:
    """{option: how many values it takes} of all that are swept; 1 where a search chooses."""
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    swept: dict[str, int] = {}
    for override in parser.parse_overrides(words):
        key = override.get_key_element().lstrip("+")
        swept.pop(key, None)  # the last word about an option counts
        if override.is_sweep_override():
            several = override.is_discrete_sweep()
            swept[key] = len(list(override.sweep_string_iterator())) if several else 1
    return swept


def _place(config: DictConfig) -> Path:
    """hydra.sweep.dir, or a temporary folder in its stead: a dry run writes nothing, and where all
    is finished a sweep also works in a folder that can't be written."""
    folder = Path(config.hydra.sweep.dir).expanduser()
    vanishes = bool(config.get("dry_run"))
    if not vanishes:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            vanishes = True
    if vanishes:
        command.temporary = tempfile.TemporaryDirectory(prefix="sweep-")
        folder = Path(command.temporary.name)
    with open_dict(config.hydra):
        config.hydra.sweep.dir = str(folder)
        # The jobs compose their config anew, from these words.
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")
        if config.get("dry_run"):  # which no other machine has to do
            config.hydra.launcher = {"_target_": f"{BasicLauncher.__module__}.BasicLauncher"}
    return folder


def end(sum_up: Callable[[list], None] | None) -> int:
    """After the last job: what a dry run expects, which jobs failed. The exit code."""
    lines = command.kept + (_noted(command.folder) if command.folder else [])
    if sum_up is not None and any("expected" in line for line in lines):
        sum_up([entry for line in lines for entry in line.get("expected", ())])
    reasons: dict[str, list[str]] = {}
    for line in lines:
        if line.get("failed"):
            reasons.setdefault(line["failed"], []).append(line["ended"])
    if not reasons:
        return 0
    told = "; ".join(f"{', '.join(jobs)} ({reason})" for reason, jobs in reasons.items())
    return say(f"{sum(map(len, reasons.values()))} of the sweep's jobs failed: {told}", 1)


def tidy() -> None:
    """Leave no empty folders; what a job, a launcher or a search has written stays."""
    folder, command.folder = command.folder, None
    if folder is None:
        return
    jobs = [Path(line["folder"]) for line in _noted(folder) if "folder" in line]
    (folder / command.notes).unlink(missing_ok=True)
    if command.temporary is not None:
        command.temporary.cleanup()
        return
    for job in jobs:
        for path in [job, *job.parents]:
            if folder not in path.parents or not _removed(path):
                break
    if [path.name for path in folder.iterdir()] == ["multirun.yaml"]:
        (folder / "multirun.yaml").unlink()  # Hydra's; each result.json has the command
    if _removed(folder) and folder.parent.name == "sweeps":
        _removed(folder.parent)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:  # it isn't empty
        return False
    return True
