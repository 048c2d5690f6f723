"""A sweep announces its jobs, names those that failed, and leaves nothing but runs."""

import os
import re
from pathlib import Path

import pytest

from door import TINY
from terminal import refusal, terminal

LINE = re.compile(r"^(job \d+ of \d+)(, about .+ left)?: (.*)$", re.M)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def own(*words: str) -> tuple[str, ...]:
    return (*TINY, "method.strength=0.5", *words)


@pytest.mark.parametrize("word", ["dry_run=1", "dry_run=yes", "dry_run=True", "++dry_run=true"])
@pytest.mark.parametrize("several", [(), ("-m", "seed=0,1")], ids=["one", "several"])
def test_a_dry_run_is_what_the_config_says(tmp_path, word, several):
    code, out, err = terminal("pipeline", *own(word), *several, f"runs_dir={tmp_path / 'runs'}")
    stages = 6 if several else 3
    assert code == 0 and not err, err
    assert out.count("would be computed") == stages and f"{stages} stages to compute" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("several", [(), ("-m", "seed=0,1")], ids=["one", "several"])
def test_a_dry_run_may_stand_in_a_yaml(tmp_path, several):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndry_run: true\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text, "utf-8")
    words = ("-cd", str(tmp_path), "experiment=mine", f"runs_dir={tmp_path / 'runs'}")
    code, out, err = terminal("pipeline", *own(), *several, *words)
    assert code == 0 and "stages to compute" in out.splitlines()[-1], err
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_of_a_sweep_leaves_nothing_in_a_folder_of_the_users(tmp_path):
    place = f"hydra.sweep.dir={tmp_path / 'mine'}"
    words = own("-m", "dry_run=true", "ratio=0.3,0.5", place, f"runs_dir={tmp_path / 'runs'}")
    code, out, _ = terminal("pipeline", *words)
    assert code == 0 and "5 stages to compute" in out and files(tmp_path) == []


def test_a_dry_run_that_fails_says_nothing_of_its_work(tmp_path):
    words = own("dry_run=true", "ratio=1.5", f"runs_dir={tmp_path}")
    code, out, err = terminal("pipeline", *words)
    assert code == 1 and "0 <= ratio < 1" in err and "to compute" not in out


def test_a_job_says_which_it_is_and_what_sets_it_apart(tmp_path):
    words = own("-m", "epochs=1,-1", "seed=3,4", f"runs_dir={tmp_path}", "allow=[a, b]")
    code, out, err = terminal("train", *words)
    said = LINE.findall(out)
    assert [job for job, _, _ in said] == [f"job {n} of 4" for n in (1, 2, 3, 4)]
    assert [told for _, _, told in said] == [
        "epochs=1 seed=3", "epochs=1 seed=4", "epochs=-1 seed=3", "epochs=-1 seed=4",
    ]  # fmt: skip
    assert not said[0][1] and all(left for _, left, _ in said[1:])
    *each, last = err.strip().splitlines()
    assert code == 1 and len(each) == 2 and all(line.startswith("error: training") for line in each)
    assert last.startswith("error: 2 of the sweep's jobs failed: epochs=-1 seed=3, epochs=-1")
    assert "Error executing" not in err
    assert len(list(tmp_path.glob("[!.]*"))) == 2, "two runs, and no folder of a sweep"


def test_a_sweep_over_what_is_finished_needs_no_place_to_write(tmp_path):
    words = own("epochs=1", f"runs_dir={tmp_path / 'runs'}")
    assert terminal("train", *words)[0] == 0
    (tmp_path / "runs" / "sweeps").write_text("in the way", "utf-8")
    before = files(tmp_path)
    code, out, err = terminal("train", "-m", *words, "seed=0")
    assert code == 0 and "is finished" in out and files(tmp_path) == before, err


def test_what_a_job_leaves_in_its_folder_stays(tmp_path):
    place = (f"hydra.sweep.dir={tmp_path / 'mine'}", f"runs_dir={tmp_path / 'runs'}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine", "utf-8")
    words = own("-m", "epochs=1", "seed=0,1", *place, "hydra.output_subdir=.hydra")
    assert terminal("train", *words)[0] == 0
    assert {"notes", "multirun.yaml"} <= {*os.listdir(tmp_path / "mine")}
    assert (tmp_path / "mine" / "1" / ".hydra" / "config.yaml").exists()
    assert not list((tmp_path / "mine").glob(".jobs-*"))


@pytest.mark.parametrize("word", ["ckpt=glob(*)", "method=glob(nothing*)"])
def test_a_sweep_without_a_job_is_a_mistake(tmp_path, word):
    said = refusal("prune", "-m", word, "ratio=0.3,0.5", f"runs_dir={tmp_path}")
    assert said.startswith(f"no job: {word} fits nothing") and files(tmp_path) == []


@pytest.mark.parametrize("script", ["train", "prune", "finetune"])
def test_a_search_is_for_scripts_that_have_something_to_search_for(tmp_path, script):
    said = refusal(script, "-m", "hydra/sweeper=optuna", "seed=5,6", f"runs_dir={tmp_path}")
    assert "only pipeline.py has one" in said and files(tmp_path) == []
