"""Run folders: what a stage is called, whether it is done, how it goes on, what it leaves.

A folder is named by a hash of everything that can change the result; what can't (device, logger,
paths) is left out. `result.json` is written last: where it is, the stage is done.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from slimming.checkpoint import write_atomically
from utils.runs.identity import digest

SCHEMA = 1  # of result.json


class Run:
    """One stage's folder: config.yaml, metrics.jsonl, resume.pt, model.pt, result.json."""

    def __init__(
        self,
        runs_dir: str | Path,
        stage: str,
        row: str,
        seed: int,
        identity: Mapping[str, Any],
    ):
        self.stage, self.row, self.label = stage, row, f"{row}-s{seed}"
        identity = {"stage": stage, "seed": seed, **identity}
        label = self.label
        self.name = f"{re.sub(r'[^A-Za-z0-9_.+-]+', '_', label)}-{digest(identity)}"
        self.folder = Path(runs_dir) / self.name
        self.commit = commit()
        self._started, self._before = time.monotonic(), 0.0

    @property
    def result(self) -> dict[str, Any] | None:
        """What the finished stage left, or None while it isn't finished."""
        return read_result(self.folder)

    def status(self) -> str:
        """What asking for this run would do, in words; nothing is written."""
        if (done := self.result) is not None:
            return f"is finished{self.of_other_code(done)}"
        if held(self.folder):
            return "is being computed by another process"
        epoch, step = self.progress()
        if epoch or step:
            return f"would go on at epoch {epoch + 1}" + (f", step {step + 1}" if step else "")
        return "would be computed"

    def of_other_code(self, result: Mapping[str, Any]) -> str:
        """ " (computed at commit X, this is Y)", or nothing where they are the same."""
        theirs = result.get("commit")
        if theirs == self.commit:
            return ""
        return f" (computed at commit {theirs}, this is {self.commit})"

    def progress(self) -> tuple[int, int]:
        """Epochs, and steps of the next one, after which resuming would go on."""
        saved = _load_resume(self.folder / "resume.pt", mmap=True) or {}  # mmap: only the numbers
        return saved.get("epoch", 0), saved.get("step", 0)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; a second process waits. The lock of a dead process is free."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                print(f"{self.name} is being computed by another process: waiting for it")
                lock.acquire()
            self._started = time.monotonic()  # waiting for another process doesn't count
            self.folder.mkdir(exist_ok=True)  # the other process may have failed and tidied up
        except OSError as error:
            raise OSError(
                f"can't write to the run folder {self.folder} ({error.strerror or error}); "
                f"choose another place with runs_dir=..."
            ) from error
        try:
            yield
        finally:
            if not any((self.folder / name).exists() for name in ("resume.pt", "model.pt")):
                shutil.rmtree(self.folder)  # it failed before anything was worth keeping
            lock.release()

    @property
    def seconds(self) -> float:
        """Time spent on this run, over all its interruptions."""
        return self._before + time.monotonic() - self._started

    def save_resume(self, state: dict[str, Any]) -> None:
        state = {**state, "seconds": self.seconds}
        with self.writing("resume.pt") as path:
            write_atomically(path, lambda file: torch.save(state, file))

    def load_resume(self) -> dict[str, Any] | None:
        """What was saved last, or None.

        Raises:
            ValueError: the file is broken (not by us: it is replaced in one step).
        """
        saved = _load_resume(self.folder / "resume.pt")
        if saved is not None:
            self._before = saved["seconds"]
        return saved

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """metrics.jsonl, one row per epoch; no clock in it, so that it repeats bit for bit."""
        self.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def write(self, name: str, text: str) -> None:
        with self.writing(name) as path:
            write_atomically(path, lambda file: file.write(text.encode()))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """The path of one of the run's files, and a sentence where it can't be written."""
        path = self.folder / name
        try:
            yield path
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):  # torch.save hides it behind an error of its own
                raise
            raise OSError(
                f"can't write {path} ({cause.strerror or cause}): what was there is intact; make "
                f"room, and the same command goes on"
            ) from error

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write result.json, which makes the stage done, and drop what only resuming needed."""
        whole = {
            "schema": SCHEMA,
            "name": self.name,
            "label": self.label,
            **result,
            "bytes": (self.folder / "model.pt").stat().st_size,
            "command": command(),
            "commit": self.commit,
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "machine": machine(result.get("device", "cpu")),
            "seconds": round(self.seconds, 2),
        }
        self.write("result.json", json.dumps(whole, indent=1, allow_nan=False) + "\n")
        (self.folder / "resume.pt").unlink(missing_ok=True)
        return whole


def _load_resume(path: Path, mmap: bool = False) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        saved = torch.load(path, weights_only=True, mmap=mmap)
        saved["seconds"], saved["epoch"], saved["step"]
        return saved
    except Exception as error:  # pickle's own errors have no common type
        raise ValueError(f"{path} is broken: delete it to start this run over") from error


def held(folder: Path) -> bool:
    """Whether a living process computes in this folder; the lock of a dead one is free."""
    lock = folder / ".lock"
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a place that can't be written to: nobody computes there
        return False


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a finished run says, or None.

    Raises:
        ValueError: the file is broken, or of another version.
    """
    path = folder / "result.json"
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is broken: delete it to compute this run again") from error
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        schema = result.get("schema") if isinstance(result, dict) else None
        raise ValueError(
            f"{path} has schema {schema}; this version reads {SCHEMA}: use the version that wrote "
            f"it, another runs_dir=..., or delete it to compute this run again"
        )
    return result


def newest(runs_dir: str | Path, fits: Any, advice: str) -> Path:
    """The run folder finished last whose result `fits`.

    Raises:
        FileNotFoundError: there is none; the message is `advice`.
    """
    found = []
    for path in Path(runs_dir).glob("*/result.json"):
        try:
            if fits(read_result(path.parent)):
                found.append((path.stat().st_mtime, path.parent))
        except (ValueError, KeyError, TypeError):
            print(f"{path} is not a result of this version: passed over", file=sys.stderr)
    if not found:
        raise FileNotFoundError(advice)
    return max(found)[1]


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the numbers were measured on; the GPU only where one was used."""
    info = Path("/proc/cpuinfo")
    names = (
        re.findall(r"model name\s*: (.+)", info.read_text(encoding="utf-8"))
        if info.exists()
        else []
    )
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "hydra-core", "thop")},
    }


@lru_cache  # of the code this process loaded, whatever happens to the files
def commit() -> str:
    """The commit of the code, with a + when files that git knows were changed."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        # Asking writes nothing: killed, or on a full disk, git would leave its index locked.
        asked = ["git", "--no-optional-locks", *words]
        done = subprocess.run(asked, cwd=root, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "--short=10", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:
        return "unknown"
    return (head or "unknown") + ("+" if changed else "")


def command() -> str:
    """As a person would type it again."""
    script, *arguments = sys.argv
    return shlex.join(["python", Path(script).name, *arguments])
