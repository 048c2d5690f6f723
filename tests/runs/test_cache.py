"""What a pipeline finds finished, what it would do, and how long that would take."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock
from torch import optim

import engine
from door import ROOT, TINY, tiny
from pipeline import pipeline
from slimming import checkpoint as artifact
from terminal import terminal
from utils import data
from utils.data import load
from utils.runs import environment, forecast
from utils.runs.lock import lock_of
from utils.training.tracking import NoLogger

FAST = ("epochs=2", "finetune.epochs=1", "method.strength=2.0")


@pytest.fixture(autouse=True)
def nothing_remembered():
    forecast.finished.cache_clear()


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def rewrite(folder: Path, **changes) -> None:
    (folder / "result.json").write_text(json.dumps(result(folder) | changes))


def dry(runs: Path, *changes: str) -> list[str]:
    sweep = ["-m"] * any("," in change for change in changes)
    words = (*sweep, *TINY, *FAST, f"runs_dir={runs}", *changes, "dry_run=true")
    code, out, err = terminal("pipeline", *words)
    assert code == 0, err
    return [line for line in out.splitlines() if not line.startswith("job ")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Trained (2 epochs, said to have taken 100 s), cut (7 s) and fine-tuned (1 epoch, 30 s)."""
    folder = tmp_path_factory.mktemp("runs")
    trained, cut, tuned = pipeline(tiny("pipeline", folder, *FAST, "ratio=0.5"))
    for stage, seconds in ((trained, 100), (cut, 7), (tuned, 30)):
        rewrite(stage, seconds=seconds)
    return folder


def test_a_dry_run_of_a_sweep_tells_each_stage_and_sums_them_once(runs):
    before = sorted(runs.rglob("*"))
    lines = dry(runs, "ratio=0.5,0.25", "seed=0,1")
    assert sorted(runs.rglob("*")) == before, "a dry run writes nothing"
    told = [line.partition(" ")[2] for line in lines[:-1]]
    done, whole = "is finished", "would be computed (about 2 min)"
    cut, tuned = "would be computed (about 7 s)", "would be computed (about 30 s)"
    wider = "would be computed (at most 50 s)"
    assert told == [
        *(done, done, done),
        *(whole, cut, tuned),
        *(done, cut, wider),  # no network cut to 0.25 was fine-tuned: no slower than the whole one
        *(whole, cut, wider),
    ]
    assert lines[-1] == "7 stages to compute: at most 4 min in a row"  # seed 1 trains once


def test_the_names_a_dry_run_tells_are_those_of_the_run(tmp_path):
    for options in (("ratio=0.5",), ("target.macs=0.6",), ("ratio=0.5", "finetune.scratch=E")):
        named = pipeline(tiny("pipeline", tmp_path, *FAST, *options, "dry_run=true"))
        assert pipeline(tiny("pipeline", tmp_path, *FAST, *options)) == named and len(named) == 3


def test_a_name_that_cannot_be_known_yet_is_not_told(tmp_path, capsys):
    cfg = tiny("pipeline", tmp_path, *FAST, "ratio=0.5", "finetune.scratch=B", "dry_run=true")
    assert len(pipeline(cfg)) == 2
    assert "no name yet: the epochs of scratch=B depend on the MACs" in capsys.readouterr().out


def test_more_epochs_take_longer_and_other_batches_are_another_thing(runs):
    assert "(about 3 min)" in dry(runs, "epochs=4")[0]
    for other in ("recipe.batch_size=32", "model.width=0.125", "data.num_train=384"):
        lines = dry(runs, other)
        assert "time unknown: no finished run is like it" in lines[0], other


def test_times_of_another_machine_tell_nothing(runs, tmp_path):
    trained, *_ = pipeline(tiny("pipeline", tmp_path, *FAST))
    rewrite(trained, machine=result(trained)["machine"] | {"cpu": "another"})
    assert "time unknown" in dry(tmp_path, "seed=1")[0]


def test_what_is_no_result_of_ours_is_named_and_tells_nothing(tmp_path):
    wrong = {"half": '{"schema": 1, "na', "foreign": "[1, 2]", "new": '{"schema": 9}'}
    for name, text in wrong.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    code, out, err = terminal("pipeline", *TINY, f"runs_dir={tmp_path}", "dry_run=true")
    assert code == 0 and out.count("time unknown") == 4
    for name in wrong:
        assert f"{name}/result.json" in err
    assert "has schema 9, this version reads 1" in err


class Stops(NoLogger):
    """A logger at whose second row somebody presses Ctrl-C."""

    def log(self, row, gammas) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt


def test_an_interrupted_training_is_told_with_the_epoch_it_goes_on_at(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    cfg = tiny("pipeline", tmp_path / "runs", *FAST, "epochs=5", "seed=1")
    cfg.logger = {"_target_": "test_cache.Stops"}
    with pytest.raises(KeyboardInterrupt):
        pipeline(cfg)
    line = dry(tmp_path / "runs", "epochs=5", "seed=1")[0]
    assert line.endswith("would go on at epoch 3 (about 2 min)")  # 3 epochs of 50 s


def test_a_stage_that_another_process_computes_is_told(runs, tmp_path):
    folder = Path(dry(tmp_path)[0].partition(" ")[0])
    lock_of(folder).parent.mkdir(parents=True)
    with FileLock(lock_of(folder)):
        assert "is being computed by another process" in dry(tmp_path)[0]
    assert "would be computed" in dry(tmp_path)[0]


def test_a_finished_job_of_a_sweep_computes_and_loads_nothing(tmp_path, monkeypatch):
    """Causes, not clocks: one look at the data, one at the commit, no network, no optimiser."""
    sweep = ("pipeline", "-m", *TINY, *FAST, f"runs_dir={tmp_path}", "ratio=0.3,0.5", "seed=0")
    assert terminal(*sweep)[0] == 0
    calls = Counter()

    def count(module, name: str) -> None:
        real = getattr(module, name)

        @functools.wraps(real)
        def counted(*args, **kwargs):
            calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    load._load.cache_clear()
    environment.commit.cache_clear()
    count(data, "fake")
    count(subprocess, "run")
    count(artifact, "build")
    count(engine, "evaluate")
    count(optim.Optimizer, "__init__")
    code, out, _ = terminal(*sweep)
    assert code == 0 and out.count("is finished") == 6
    git = calls.pop("run")  # which commit, whether files were changed, and if so, how
    assert calls == {"fake": 1} and git in (2, 3)


def test_finding_a_finished_pipeline_imports_no_compiler_and_no_tables(tmp_path):
    """They take longer to import than all the rest."""
    pipeline(tiny("pipeline", tmp_path, *FAST))
    heavy = ("torch._dynamo", "torch._inductor", "altair", "vl_convert", "wandb", "onnx", "sklearn")
    code = (
        "import sys, runpy\n"
        "sys.argv = ['pipeline.py', *sys.argv[1:]]\n"
        "runpy.run_path('pipeline.py', run_name='__main__')\n"
        f"print('imported:', *[name for name in {heavy} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *TINY, *FAST, f"runs_dir={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is finished") == 3
    assert done.stdout.splitlines()[-1] == "imported:"
