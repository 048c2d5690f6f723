"""Run folders: what a stage is called, whether it is done, how it goes on, what it leaves.

A folder is named by a hash of everything that is asked for and can change the result; what can't
(logger, paths) is left out. `result.json` is written last: where it is, the stage is done.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from slimming.checkpoint import write_atomically
from utils.runs.environment import command, differences, environment, machine
from utils.runs.identity import digest
from utils.runs.kinds import parse
from utils.runs.lock import held, holding
from utils.runs.results import SCHEMA, check

GONE = "its weights (model.pt) were deleted; recompute=true computes it again"


class Run:
    """One stage's folder: config.yaml, metrics.jsonl, resume.pt, model.pt, result.json; error.txt
    where it failed.

    Args:
        device: on which it computes now, if it does.
        strict: what was computed with other code, threads or the like is an error.
        recompute: a result whose weights were deleted counts as none.
    """

    def __init__(
        self,
        runs_dir: str | Path,
        stage: str,
        row: str,
        seed: int,
        identity: Mapping[str, Any],
        device: torch.device | str = "cpu",
        strict: bool = False,
        recompute: bool = False,
    ):
        self.stage, self.row, self.label = stage, row, f"{row}-s{seed}"
        identity = {"stage": stage, "seed": seed, **identity}
        self.name = f"{re.sub(r'[^A-Za-z0-9_.+-]+', '_', self.label)}-{digest(identity)}"
        self.folder = Path(runs_dir).expanduser() / self.name
        self.device, self.strict, self.recompute = device, strict, recompute
        self.environment = environment(device)
        self._started, self._before = time.monotonic(), 0.0
        self._earlier: list[dict[str, Any]] = []  # environments in which it was begun

    @property
    def result(self) -> dict[str, Any] | None:
        """What the finished stage left, or None while it isn't finished (or has to be again)."""
        result = read_result(self.folder)
        return None if self.recompute and not self.has_weights else result

    @property
    def has_weights(self) -> bool:
        return (self.folder / "model.pt").is_file()

    def status(self) -> str:
        """What asking for this run would do, in words; nothing is written."""
        if (done := self.result) is not None:
            return f"is finished{self.remarks(done)}"
        if held(self.folder):
            return "is being computed by another process"
        epoch, step = self.progress()
        if epoch or step:
            return f"would go on at epoch {epoch + 1}" + (f", step {step + 1}" if step else "")
        return "would be computed"

    def remarks(self, result: Mapping[str, Any]) -> str:
        """ " (computed with ...)": what a finished run was computed with that isn't so here.

        Raises:
            ValueError: there is something, and strict=true.
        """
        told = [] if self.has_weights else [GONE]
        if other := self.unlike(result):
            told.append(f"computed with {other}")
            self.insist(f"{self.folder} was computed with {other}")
        return f" ({'; '.join(told)})" if told else ""

    def unlike(self, result: Mapping[str, Any]) -> str:
        """What a result was computed with that isn't so here, in words, or ""."""
        return differences(result, self.environment)

    def insist(self, difference: str, way_out: str = "delete the folder to compute it again"):
        """
        Raises:
            ValueError: strict=true allows no difference.
        """
        if self.strict:
            raise ValueError(f"strict=true: {difference}; {way_out}")

    def progress(self) -> tuple[int, int]:
        """Epochs, and steps of the next one, after which resuming would go on."""
        saved = _load_resume(self.folder / "resume.pt", mmap=True) or {}  # mmap: only the numbers
        return saved.get("epoch", 0), saved.get("step", 0)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run; see `holding`."""
        with holding(self.folder):
            self._started = time.monotonic()  # waiting for another process doesn't count
            yield

    def begin(self, config: str) -> None:
        """Write what is asked for, in place of what is left of an older failure."""
        (self.folder / "error.txt").unlink(missing_ok=True)
        self.write("config.yaml", config)

    def fail(self, reason: str) -> None:
        """Leave why it failed, for whoever waits for it and for whoever looks later."""
        with suppress(OSError):  # the disk may be what failed
            self.write("error.txt", reason + "\n")

    def give_up(self) -> None:
        """Stopped by hand before anything was saved: what it wrote goes."""
        if {file.name for file in self.folder.iterdir()} <= {"config.yaml", "metrics.jsonl"}:
            for file in self.folder.iterdir():
                file.unlink()

    @property
    def seconds(self) -> float:
        """Time spent on this run, over all its interruptions."""
        return self._before + time.monotonic() - self._started

    def save_resume(self, state: dict[str, Any]) -> None:
        whole = [*self._earlier, self.environment]
        state = {**state, "seconds": self.seconds, "environments": whole}
        with self.writing("resume.pt") as path:
            write_atomically(path, lambda file: torch.save(state, file))

    def load_resume(self) -> dict[str, Any] | None:
        """What was saved last, or None. Says what has changed since; result.json will, too.

        Raises:
            ValueError: the file is broken (not by us: it is replaced in one step); or something
                has changed, and strict=true.
        """
        saved = _load_resume(self.folder / "resume.pt")
        if saved is not None:
            self._before = saved["seconds"]
            earlier = saved.get("environments", [])
            # The engine sets the threads of a resumed run to what they were.
            now = {**self.environment, "threads": saved.get("threads")}
            self.environment = now | {"threads": now["threads"] or torch.get_num_threads()}
            if earlier and (other := differences(earlier[-1], self.environment)):
                way_out = "go on without strict=true, or delete the folder to begin anew"
                self.insist(f"{self.folder} was begun with {other}", way_out)
                print(f"{self.name} was begun with {other}: result.json will say so")
                self._earlier = earlier
            else:
                self._earlier = earlier[:-1]
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
        begun = {"begun_with": self._earlier} if self._earlier else {}
        whole = {
            "schema": SCHEMA,
            "name": self.name,
            "label": self.label,
            **result,
            "bytes": (self.folder / "model.pt").stat().st_size,
            "command": command(),
            **self.environment,
            **begun,
            "machine": machine(str(self.device)),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
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


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a finished run says, or None.

    Raises:
        ValueError: the file is broken, or of another version.
    """
    path = folder / "result.json"
    if not path.is_file():
        return None
    try:
        result = parse(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is broken: delete it to compute this run again") from error
    if problem := check(result):
        raise ValueError(
            f"{path} {problem}: use the version that wrote it, another runs_dir=..., or delete it "
            f"to compute this run again"
        )
    return result


def newest(runs_dir: str | Path, fits: Callable[[dict], bool], advice: str) -> Path:
    """The run folder finished last, by the date in its result, whose result `fits`.

    Raises:
        FileNotFoundError: there is none; the message is `advice`.
    """
    found = []
    for path in Path(runs_dir).glob("*/result.json"):
        try:
            result = read_result(path.parent)
            if fits(result):
                # Older results have no date: before all others, by the date of their file.
                found.append((result.get("finished", ""), path.stat().st_mtime, path.parent))
        except (ValueError, KeyError, TypeError):
            print(f"{path} is not a result of this version: passed over", file=sys.stderr)
    if not found:
        raise FileNotFoundError(advice)
    return max(found)[2]
