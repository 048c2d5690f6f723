"""Jobs side by side: other processes, one parent for two jobs, and failures among them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from door import ROOT, TINY, tiny
from train import train
from utils.runs.lock import lock_of
from utils.training.hardware import gpu_of_worker


def sweep(script: str, launcher: str, cwd: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, ROOT / f"{script}.py", "-m", f"hydra/launcher={launcher}", *TINY]
    return subprocess.Popen(
        [*command, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip


def test_joblib_trains_the_network_of_two_jobs_once_and_names_the_job_that_failed(tmp_path):
    shared = train(tiny("train", tmp_path, "method.strength=2", "dry_run=true"))
    lock_of(shared).parent.mkdir()
    with FileLock(lock_of(shared)):  # as if a third process had begun: both jobs come to wait
        jobs = sweep(
            "pipeline", "joblib", ROOT, "hydra.launcher.n_jobs=2", f"runs_dir={tmp_path}",
            "method.strength=2", "finetune.epochs=1", "ratio=0.3,0.5,1.5",
        )  # fmt: skip
        said, waiting = [], 0
        while waiting < 2 and (line := jobs.stdout.readline()):
            said.append(line)
            waiting += f"{shared.name} is being computed by another process: waiting" in line
    out, errors = jobs.communicate()
    lines = [*said, *out.splitlines()]
    assert waiting == 2 and jobs.returncode == 1, errors
    assert sum("epoch 3/3" in line for line in lines) == 1, "it was trained once"
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")]
    stages = sorted((result["stage"], result["ratio"]) for result in results if result["ratio"])
    assert stages == [("finetune", 0.3), ("finetune", 0.5), ("prune", 0.3), ("prune", 0.5)]
    assert len(results) == 5 and "Traceback" not in errors
    assert all(result["command"].startswith("python pipeline.py -m") for result in results)
    last = errors.splitlines()[-1]
    assert last.startswith("error: 1 of the sweep's jobs failed: ratio=1.5 (ratio is the share")


@pytest.mark.long
def test_submitit_runs_jobs_from_any_folder_and_names_the_one_that_failed(tmp_path):
    """Its local executor stands for a cluster: own processes, results and output in files."""
    jobs = sweep("train", "submitit_local", tmp_path, "runs_dir=runs", "epochs=1,-1")
    _, errors = jobs.communicate()
    assert jobs.returncode == 1 and "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: 1 of the sweep's jobs failed: epochs=-1 (training needs epochs")
    (result,) = tmp_path.glob("runs/*/result.json")
    assert json.loads(result.read_text())["epochs"] == 1
    logs = [path.read_text() for path in tmp_path.glob("runs/sweeps/*/.submitit/*/*_log.out")]
    assert len(logs) == 2 and sum("epoch 1/1" in log for log in logs) == 1


def test_each_worker_of_joblib_has_a_gpu_while_there_are_enough():
    assert [gpu_of_worker(f"LokyProcess-{n}", 4) for n in (1, 2, 3, 4, 5)] == [0, 1, 2, 3, 0]
    assert gpu_of_worker("MainProcess", 4) == 0 and gpu_of_worker("LokyProcess-3", 1) == 0
