"""Disks that are full, folders that can't be written to, locks of the dead, results of others."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from door import ROOT, TINY, tiny
from prune import prune
from slimming.checkpoint import read
from terminal import refusal, terminal
from train import train
from utils.runs.environment import commit
from utils.runs.lock import lock_of
from utils.training.tracking import NoLogger

FAST = ("epochs=3", "finetune.epochs=1", "method.strength=2.0")


class Stops(NoLogger):
    """A logger at whose second row somebody presses Ctrl-C."""

    def log(self, row, gammas) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(tiny("train", folder, *FAST[:1], FAST[2]))
    return folder


@pytest.fixture
def runs(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs"))


@contextmanager
def full_beyond(size: int):
    """The kernel refuses to let any file of this process grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def same_weights(one: Path, other: Path) -> bool:
    a, b = read(one).weights, read(other).weights
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_disk_that_is_full_from_the_start_leaves_nothing(tmp_path):
    words = (*TINY, *FAST[:1], f"runs_dir={tmp_path}")
    commit.cache_clear()  # git is asked on the full disk, too
    for size, file in ((500, "config.yaml"), (20_000, "resume.pt")):
        with full_beyond(size):
            said = refusal("train", *words)
        assert f"{file} (File too large): what was there is intact" in said
        kept = {path.name for path in tmp_path.glob("[!.]*/*")}
        assert kept <= {"config.yaml", "metrics.jsonl", "error.txt"}, "a log, nothing half written"
    assert not (ROOT / ".git/index.lock").exists()


def test_a_disk_that_fills_up_leaves_what_was_saved_and_the_run_goes_on(runs, tmp_path):
    cfg = tiny("train", tmp_path / "new", *FAST[:1], FAST[2])
    cfg.logger = {"_target_": "test_wrong_inputs.Stops"}
    with pytest.raises(KeyboardInterrupt):
        train(cfg)
    (folder,) = (tmp_path / "new").glob("[!.]*")
    before = content(folder)
    words = (*TINY, *FAST[:1], FAST[2], f"runs_dir={tmp_path / 'new'}")
    with full_beyond(len(before["resume.pt"]) // 2):
        assert "resume.pt (File too large)" in refusal("train", *words)
    after = content(folder)
    assert after.keys() == {*before, "error.txt"}, "nothing lost, nothing left over"
    assert all(after[name] == before[name] for name in ("resume.pt", "metrics.jsonl"))
    code, out, _ = terminal("train", *words)
    assert code == 0 and "going on at epoch 3" in out and not (folder / "error.txt").exists()
    assert same_weights(folder, runs / folder.name)


@pytest.mark.parametrize("file", ["model.pt", "result.json"])
def test_a_disk_that_is_full_at_the_end_leaves_no_finished_run(runs, file):
    """A result as large as its config, twice: what it was asked for, and by which command."""
    (parent,) = runs.glob("[!.]*")
    cut = (f"ckpt={parent}", "ratio=0.5", f"runs_dir={runs}", "logger=none")
    cut += ("hardware.precision=fp32", f"allow=[{100_000 * 'x'}]") if file == "result.json" else ()
    before = content(parent)
    with full_beyond(20_000 if file == "model.pt" else 150_000):
        assert f"{file} (File too large)" in refusal("prune", *cut)
    assert content(parent) == before
    rest = {path.name for path in runs.glob("*-r0.5-*/*")}
    assert rest == {"config.yaml", "error.txt"} | ({"model.pt"} if file == "result.json" else set())
    code, out, _ = terminal("prune", *cut)
    assert code == 0 and len(list(runs.glob("*-r0.5-*/result.json"))) == 1


@pytest.mark.parametrize("place", ["/proc/nowhere", "/sys/nowhere", "/dev/null/nowhere"])
def test_a_place_where_nobody_may_write_is_named(place):
    """Also root, for whom permissions don't count."""
    said = refusal("train", *TINY, f"runs_dir={place}")
    assert said.startswith("can't write to the run folder") and "runs_dir=" in said


def test_a_finished_run_is_found_where_nothing_can_be_written(runs):
    """No lock is taken for it: here, taking one would fail."""
    (folder,) = runs.glob("[!.]*")
    lock_of(folder).unlink()
    lock_of(folder).mkdir()
    before = sorted(folder.rglob("*"))
    code, out, err = terminal("train", *TINY, *FAST[:1], FAST[2], f"runs_dir={runs}")
    assert code == 0 and "is finished" in out, err
    assert sorted(folder.rglob("*")) == before


def test_the_lock_of_a_dead_process_is_free_and_that_of_a_living_one_is_not(tmp_path):
    folder = train(tiny("train", tmp_path, "dry_run=true"))
    hold = (
        "import sys; from pathlib import Path; from filelock import FileLock\n"
        "file = Path(sys.argv[1]); file.parent.mkdir(); lock = FileLock(file); lock.acquire()\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(lock_of(folder))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"held\n"
    words = ("train", *TINY, f"runs_dir={tmp_path}")
    assert "is being computed by another process" in terminal(*words, "dry_run=true")[1]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert lock_of(folder).exists(), "it is left behind, as after a crash"
    code, out, _ = terminal(*words)
    assert code == 0 and "waiting" not in out and (folder / "result.json").exists()


def test_a_run_of_another_commit_is_used_but_marked(runs):
    (folder,) = runs.glob("[!.]*")
    result = json.loads((folder / "result.json").read_text())
    words = ("train", *TINY, *FAST[:1], FAST[2], f"runs_dir={runs}")
    assert terminal(*words)[1].strip().endswith("is finished")
    (folder / "result.json").write_text(json.dumps(result | {"commit": "0123456789", "code": "0"}))
    before = content(folder)
    code, out, _ = terminal(*words)
    told = f"other code (commit 0123456789, here {result['commit']})"
    assert code == 0 and f"is finished (computed with {told})" in out
    assert content(folder) == before


@pytest.mark.parametrize("text", ['{"schema": 2, "stage": "train"}', "[]", "7"])
def test_a_result_of_another_version_is_refused_with_the_way_out(runs, text):
    (folder,) = runs.glob("[!.]*")
    (folder / "result.json").write_text(text)
    for script, more in (("train", (*TINY, *FAST[:1], FAST[2])), ("prune", (f"ckpt={folder}",))):
        said = refusal(script, *more, f"runs_dir={runs}")
        assert "this version reads 1" in said and "result.json" in said
    assert (folder / "result.json").read_text() == text


def test_the_newest_run_is_sought_among_ours_only(runs, capsys):
    """Half-written, foreign and newer results are named and passed over."""
    wrong = {
        "half": '{"schema": 1, "sta',
        "list": "[1]",
        "other": '{"a": 1}',
        "new": '{"schema": 9}',
    }
    for name, text in wrong.items():
        (runs / name).mkdir()
        (runs / name / "result.json").write_text(text)
    (ours,) = runs.glob("vgg11*")
    cut = prune(tiny("prune", runs, "ratio=0.5"))
    assert json.loads((cut / "result.json").read_text())["parent"] == ours.name
    said = capsys.readouterr().err
    assert all(f"{name}/result.json" in said for name in wrong)


def test_a_failing_job_of_a_pipelines_sweep_is_named_and_the_others_finish(tmp_path):
    sweep = ("pipeline", "-m", *TINY, *FAST, f"runs_dir={tmp_path}", "ratio=0.5,1.5,0.25")
    code, _, err = terminal(*sweep)
    assert code == 1 and len(list(tmp_path.glob("*/result.json"))) == 5
    assert "1 of the sweep's jobs failed: ratio=1.5" in err.splitlines()[-1]
    assert "0 <= ratio < 1" in err and "Traceback" not in err
