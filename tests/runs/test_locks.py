"""Two processes want one run; a run fails: who waits, who takes over, what stays."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from filelock import FileLock

from door import ROOT, tiny
from terminal import refusal, terminal
from train import train
from utils.runs.folder import Run
from utils.runs.lock import lock_of
from utils.training.tracking import NoLogger

DIVERGES = ("method.strength=1e-4", "recipe.optimizer.lr=1e30", "epochs=2")


class Stops(NoLogger):
    """A logger that is closed by Ctrl-C before anything was saved."""

    def start(self, *_) -> None:
        raise KeyboardInterrupt


def folder_of(runs: Path, *options: str) -> Path:
    return train(tiny("train", runs, *options, "dry_run=true"))


def test_a_lock_lies_beside_the_folders_and_not_in_them(tmp_path):
    folder = train(tiny("train", tmp_path, "epochs=1"))
    assert lock_of(folder) == tmp_path / ".locks" / f"{folder.name}.lock"
    assert {file.name for file in folder.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "model.pt", "result.json")
    }


def test_a_diverged_run_keeps_its_log_and_what_others_put_there(tmp_path):
    folder = folder_of(tmp_path, *DIVERGES)
    (folder / "plots").mkdir(parents=True)
    (folder / "notes.md").write_text("my notes")
    with pytest.raises(ValueError, match="diverged"):
        train(tiny("train", tmp_path, *DIVERGES))
    assert (folder / "notes.md").read_text() == "my notes" and (folder / "plots").is_dir()
    assert "diverged" in (folder / "error.txt").read_text()
    assert "strength" in (folder / "config.yaml").read_text()
    code, out, _ = terminal("report", str(tmp_path), "list=true")
    assert code == 0 and "failed: the loss is" in out


def test_a_run_that_was_mended_forgets_that_it_failed(tmp_path):
    folder = folder_of(tmp_path, "epochs=1")
    folder.mkdir()
    (folder / "error.txt").write_text("the disk was full\n")
    train(tiny("train", tmp_path, "epochs=1"))
    assert not (folder / "error.txt").exists() and (folder / "result.json").exists()


def test_stopped_before_anything_was_saved_it_leaves_nothing(tmp_path):
    cfg = tiny("train", tmp_path, "epochs=1")
    cfg.logger = {"_target_": "test_locks.Stops"}
    with pytest.raises(KeyboardInterrupt):
        train(cfg)
    assert not list(tmp_path.glob("[!.]*"))


def test_a_symlinked_folder_fails_with_the_true_reason(tmp_path):
    folder = folder_of(tmp_path / "runs", *DIVERGES)
    (tmp_path / "elsewhere").mkdir()
    folder.parent.mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    said = refusal("train", *(f"{k}" for k in _typed(tmp_path / "runs", *DIVERGES)))
    assert "diverged" in said
    assert folder.is_symlink() and (tmp_path / "elsewhere" / "error.txt").exists()
    with FileLock(lock_of(folder), timeout=0):
        pass  # it was let go


def _typed(runs: Path, *options: str) -> list[str]:
    from door import TINY

    return [*TINY, *options, f"runs_dir={runs}"]


WAITER = """
    import sys
    sys.path[:0] = [{root!r}, {tests!r}]
    from pathlib import Path
    from door import tiny
    from train import train
    print("begun", flush=True)
    train(tiny("train", Path({runs!r}), *{options!r}))
"""


def test_who_waits_takes_over_when_the_first_fails_and_says_why(tmp_path):
    """The first is held by a lock of this process, which then fails as a diverging run does."""
    options = ["epochs=1"]
    run_folder = folder_of(tmp_path, *options)
    lock_of(run_folder).parent.mkdir(parents=True)
    script = textwrap.dedent(WAITER).format(
        root=str(ROOT), tests=str(ROOT / "tests"), runs=str(tmp_path), options=options
    )
    with FileLock(lock_of(run_folder)):
        waiter = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
            stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        said = ""
        while "waiting for it" not in said:
            line = waiter.stdout.readline()
            assert line, said
            said += line
        run_folder.mkdir()
        (run_folder / "error.txt").write_text("the loss is nan in epoch 1\n")
    rest, _ = waiter.communicate(timeout=300)
    assert waiter.returncode == 0, rest
    assert "the other process failed (the loss is nan in epoch 1)" in rest
    assert json.loads((run_folder / "result.json").read_text())["epochs"] == 1
    assert not (run_folder / "error.txt").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    run = Run(tmp_path / "runs", "train", "row", 0, {})
    with pytest.raises(OSError, match="choose another place with runs_dir="), run.locked():
        pass
