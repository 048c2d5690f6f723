"""What computed a result is recorded, and compared when the result is met again."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from door import tiny
from finetune import finetune
from pipeline import pipeline
from prune import prune
from slimming.checkpoint import read, save
from train import train
from utils.runs import environment
from utils.runs.environment import differences
from utils.training.tracking import NoLogger

FAST = ("epochs=1", "finetune.epochs=1", "method.strength=0.5", "ratio=0.5")
NOW = {
    "commit": "abc", "code": "1", "versions": {"torch": "2.15.0"}, "device": "cpu",
    "threads": 1, "instructions": "AVX512",
}  # fmt: skip


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def rewrite(folder: Path, **facts) -> None:
    (folder / "result.json").write_text(json.dumps(result(folder) | facts))


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ({}, ""),
        ({"commit": "other"}, ""),  # the same code: a commit of the docs
        ({"code": "2", "commit": "other"}, "other code (commit other, here abc)"),
        ({"code": "2"}, "other code (commit abc, here abc)"),
        ({"threads": 2}, "threads 2 (here 1)"),
        ({"device": "cuda:1"}, "device cuda (here cpu)"),
        ({"versions": {"torch": "2.9"}}, "torch 2.9 (here 2.15.0)"),
        ({"instructions": "AVX2"}, "instructions AVX2 (here AVX512)"),
    ],
)
def test_each_difference_is_named(then, words):
    assert differences({**NOW, **then}, NOW) == words


def test_what_an_older_result_does_not_say_is_not_compared():
    assert differences({"commit": "abc"}, NOW) == ""
    assert differences({"commit": "old"}, NOW) == "other code (commit old, here abc)"


def test_a_gpu_is_like_another():
    assert differences({**NOW, "device": "cuda:1"}, {**NOW, "device": "cuda:0"}) == ""


# The state of the code.


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A small repository in place of ours."""
    (tmp_path / "models").mkdir()
    (tmp_path / "engine.py").write_text("A = 1\n")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        name = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *name, *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "SCRIPTS", ("engine.py",))
    environment.commit.cache_clear()
    yield tmp_path
    environment.commit.cache_clear()


def commit() -> str:
    environment.commit.cache_clear()
    return environment.commit()


def test_two_dirty_trees_differ_and_an_untracked_file_is_dirt(checkout):
    clean = commit()
    assert len(clean) == 10 and "+" not in clean
    states = {clean}
    for file, text in (
        ("engine.py", "A = 2\n"),
        ("engine.py", "A = 3\n"),
        ("models/mine.py", "B = 1\n"),  # new, and not in git
        ("models/mine.py", "B = 2\n"),
    ):
        (checkout / file).write_text(text)
        states.add(commit())
        assert commit().startswith(f"{clean}+")
    assert len(states) == 5
    (checkout / "engine.py").write_text("A = 1\n")
    (checkout / "models/mine.py").unlink()
    (checkout / "photo.jpg").write_text("no code")
    assert commit() == clean


def test_the_digest_of_the_code_knows_no_commits(checkout):
    def code() -> str:
        environment.code.cache_clear()
        return environment.code()

    try:
        before = code()
        (checkout / "engine.py").write_text("A = 2\n")
        assert code() != before
        (checkout / "engine.py").write_text("A = 1\n")
        assert code() == before
    finally:
        environment.code.cache_clear()


# Results that are met again.


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    pipeline(tiny("pipeline", runs, *FAST))
    return runs


@pytest.fixture
def runs(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs"))


def stage(runs: Path, kind: str) -> Path:
    (found,) = (f.parent for f in runs.glob("*/result.json") if result(f.parent)["stage"] == kind)
    return found


def test_a_result_says_what_computed_it(made):
    said = result(stage(made, "finetune"))
    for key in ("commit", "code", "versions", "device", "threads", "instructions", "weights"):
        assert said[key], key
    assert said["channels_last"] is True, "the layout, resolved"
    assert said["parent_weights"] == result(stage(made, "prune"))["weights"]
    assert said["finished"].endswith("+00:00")


def test_the_same_is_found_without_a_word(runs, capsys):
    pipeline(tiny("pipeline", runs, *FAST, "strict=true"))
    assert capsys.readouterr().out.count("is finished\n") == 3


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"code": "000000000000"}, "other code"),
        ({"threads": 64}, "threads 64 (here 1)"),
        ({"instructions": "SSE2"}, "instructions SSE2"),
    ],
)
def test_what_other_things_computed_is_said_in_a_line_and_strict_refuses(
    runs, capsys, facts, words
):
    rewrite(stage(runs, "prune"), **facts)
    pipeline(tiny("pipeline", runs, *FAST))
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if "computed with" in line)
    assert words in line and "is finished (computed with" in line
    with pytest.raises(ValueError, match="strict=true: .* was computed with"):
        pipeline(tiny("pipeline", runs, *FAST, "strict=true"))


def test_what_stands_on_such_a_result_is_told_too(runs, capsys):
    trained = stage(runs, "train")
    rewrite(trained, code="000000000000")
    other = ("prune", runs, f"ckpt={trained}", "ratio=0.25")
    with pytest.raises(ValueError, match="strict=true"):
        prune(tiny(*other, "strict=true"))
    prune(tiny(*other))
    assert f"{trained} was computed with other code" in capsys.readouterr().out


def test_a_child_of_other_weights_is_not_found_in_silence(runs, capsys):
    """Its parent was deleted, say after a fault was mended, and computed anew."""
    trained = stage(runs, "train")
    rewrite(trained, weights="0" * 64)
    pipeline(tiny("pipeline", runs, *FAST))
    assert "stands on other weights" in capsys.readouterr().out
    with pytest.raises(ValueError, match="strict=true: .*stands on other weights"):
        pipeline(tiny("pipeline", runs, *FAST, "strict=true"))


def test_weights_that_were_exchanged_are_told(runs, capsys):
    trained = stage(runs, "train")
    checkpoint = read(trained)
    checkpoint.weights["classifier.bias"] += 1
    save(trained / "model.pt", checkpoint)
    prune(tiny("prune", runs, f"ckpt={trained}", "ratio=0.25"))
    assert "are not those it was finished with" in capsys.readouterr().out


def test_a_result_without_weights_says_so_and_is_computed_again_if_asked(runs, capsys):
    for file in runs.glob("*/model.pt"):
        file.unlink()
    before = result(stage(runs, "finetune"))
    pipeline(tiny("pipeline", runs, *FAST))  # the numbers are there
    assert capsys.readouterr().out.count("recompute=true computes it again") == 3
    with pytest.raises(FileNotFoundError, match="recompute=true computes it again"):
        finetune(tiny("finetune", runs, f"ckpt={stage(runs, 'prune')}", "epochs=2"))
    with pytest.raises(FileNotFoundError, match="recompute=true"):
        pipeline(tiny("pipeline", runs, *FAST, "ratio=0.25"))
    pipeline(tiny("pipeline", runs, *FAST, "recompute=true"))
    assert len(list(runs.glob("*/model.pt"))) == 3
    assert result(stage(runs, "finetune"))["weights"] == before["weights"]
    capsys.readouterr()
    pipeline(tiny("pipeline", runs, *FAST, "recompute=true"))
    assert capsys.readouterr().out.count("is finished\n") == 3, "what has its weights stays"


def test_the_newest_goes_by_the_date_in_the_result(runs, capsys):
    """Copying and cloning give files new dates."""
    old = prune(tiny("prune", runs, f"ckpt={stage(runs, 'train')}", "ratio=0.25"))
    rewrite(old, finished="2020-01-01T00:00:00+00:00")  # and its file is the newest
    tuned = finetune(tiny("finetune", runs, "epochs=2"))
    assert result(tuned)["parent"] != old.name


class Stops(NoLogger):
    """A logger at whose second row somebody presses Ctrl-C."""

    def log(self, row, gammas) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt


@pytest.fixture
def stopped(tmp_path):
    """A training of four epochs, stopped after two; and how to go on."""

    def cfg(*more: str, logger: str = "utils.training.tracking.NoLogger"):
        made = tiny("train", tmp_path, "epochs=4", "method.strength=0.5", *more)
        made.logger = {"_target_": logger}
        return made

    with pytest.raises(KeyboardInterrupt):
        train(cfg(logger="test_environment.Stops"))
    return cfg


def test_resuming_under_other_code_is_said_and_recorded(stopped, capsys, monkeypatch):
    monkeypatch.setattr(environment, "code", lambda: "another code")
    with pytest.raises(ValueError, match="strict=true: .* was begun with other code"):
        train(stopped("strict=true"))
    folder = train(stopped())
    assert "was begun with other code" in capsys.readouterr().out
    said = result(folder)
    assert said["code"] == "another code"
    (before,) = said["begun_with"]
    assert before["code"] != "another code" and before["threads"] == torch.get_num_threads()


def test_resuming_under_the_same_code_is_no_event(stopped, capsys):
    folder = train(stopped("strict=true"))
    assert "begun_with" not in result(folder)
    assert "begun" not in capsys.readouterr().out


def test_another_layout_is_another_run(stopped):
    cfg = stopped("hardware.channels_last=false", "dry_run=true")
    assert train(cfg) != train(stopped("dry_run=true"))
    assert train(stopped("hardware.compile=true", "dry_run=true")) != train(stopped("dry_run=true"))
