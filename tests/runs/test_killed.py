"""A sweep that is killed hard, twice, and repeated: complete, nothing twice, the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from door import ROOT
from slimming.checkpoint import read
from terminal import terminal

GRID = ("hardware.threads=1", "ratio=0.3,0.5", "finetune.epochs=3")
SWEEP = ["data=digits", "epochs=6", "method.strength=0.01,0.02", *GRID, "logger=none"]


def kill(words: list[str], moment: Callable[[], bool]) -> None:
    """Start the sweep and kill it at a moment of its work."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "pipeline.py"), "-m", *words],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not moment():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def finished(runs: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/result.json")}


def epochs_saved(runs: Path) -> int:
    """Of the training that is under way."""
    resumable = [path.parent for path in runs.glob("*/resume.pt")]
    rows = [folder / "metrics.jsonl" for folder in resumable]
    return max((path.read_text().count("\n") for path in rows if path.exists()), default=0)


@pytest.mark.long
def test_a_sweep_killed_twice_ends_like_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert terminal("pipeline", "-m", *SWEEP, f"runs_dir={whole}")[0] == 0
    again = [*SWEEP, f"runs_dir={killed}"]
    kill(again, lambda: epochs_saved(killed) >= 2)  # inside the first training
    assert not finished(killed)
    kill(again, lambda: len(finished(killed)) >= 3 and epochs_saved(killed) >= 1)  # a later one
    done = finished(killed)
    assert 3 <= len(done) < 10

    code, out, _ = terminal("pipeline", "-m", *again)
    after = finished(killed)
    assert code == 0 and after.keys() == finished(whole).keys() and len(after) == 10
    assert all(after[name] == at for name, at in done.items()), "nothing is computed twice"
    assert "going on at epoch" in out
    for name in after:
        a, b = read(whole / name).weights, read(killed / name).weights
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
        assert _facts(whole / name) == _facts(killed / name)
        assert {path.name for path in (whole / name).iterdir()} == {
            path.name for path in (killed / name).iterdir()
        }, "nothing is left over"


def _facts(folder: Path) -> tuple:
    """All that must not depend on how often a run was killed."""
    result = json.loads((folder / "result.json").read_text())
    rows = folder / "metrics.jsonl"
    told = {key: result[key] for key in ("accuracy", "channels", "widths", "gammas", "macs")}
    return told, rows.read_text() if rows.exists() else None
