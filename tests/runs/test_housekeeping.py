"""A runs folder is listed, and cleaned without breaking what others stand on."""

import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from door import ROOT, tiny
from pipeline import pipeline
from prune import prune
from terminal import refusal, terminal
from train import train
from utils.runs.lock import lock_of
from utils.training.tracking import NoLogger

FAST = ("epochs=2", "finetune.epochs=1", "method.strength=2.0")


class Stops(NoLogger):
    """A logger at whose second row somebody presses Ctrl-C."""

    def log(self, row, gammas) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A whole pipeline, a second cut of its training, and an interrupted fine-tuning of that."""
    folder = tmp_path_factory.mktemp("runs")
    trained, *_ = pipeline(tiny("pipeline", folder, *FAST, "ratio=0.5"))
    cut = prune(tiny("prune", folder, f"ckpt={trained}", "ratio=0.25"))
    cfg = tiny("pipeline", folder, *FAST, "ratio=0.25", "finetune.epochs=3")
    cfg.logger = {"_target_": "test_housekeeping.Stops"}
    with pytest.raises(KeyboardInterrupt):
        pipeline(cfg)
    assert cut.exists()
    return folder


@pytest.fixture
def runs(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs"))


def names(runs: Path) -> set[str]:
    """ "l2", "l2-r0.5", "l2-r0.5-ft", ...: what sets the runs apart."""
    said = {path.name.removeprefix("vgg11-w0.0625-fake-") for path in runs.glob("[!.]*")}
    return {name.partition("-s0-")[0].replace("-rc192", "") for name in said}


ALL = {"l2", "l2-r0.5", "l2-r0.5-ft", "l2-r0.25", "l2-r0.25-ft"}


def clean(runs: Path, *options: str) -> str:
    code, out, err = terminal("report", str(runs), *options)
    assert code == 0, err
    return out


def test_every_run_is_listed_with_its_state_and_what_stands_on_it(runs):
    out = clean(runs, "list=true")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:-1]}
    assert len(rows) == 5 and names(runs) == ALL
    (trained,) = (words for words in rows.values() if words[0] == "train")
    assert trained[1] == "finished" and trained[-1] == "2"
    (stopped,) = (words for name, words in rows.items() if "interrupted" in words)
    assert stopped[0] == "finetune" and "interrupted after 2 epochs" in out
    assert out.splitlines()[-1].startswith("5 runs, ")


def test_nothing_goes_before_it_was_said(runs):
    out = clean(runs, "delete='*'")
    assert out.count("would delete") == 5 and "yes=true" in out and names(runs) == ALL


def test_what_others_stand_on_stays(runs):
    out = clean(runs, "delete=fake", "unfinished=true", "yes=true")
    assert names(runs) == ALL - {"l2-r0.25-ft"} and "1 runs deleted" in out
    out = clean(runs, "delete='*-r0.5-rc192-s0-*'", "yes=true")  # the cut without its tuning
    assert names(runs) == ALL - {"l2-r0.25-ft"} and "-ft-s0-" in out and "stands on it" in out
    clean(runs, "delete=r0.5", "yes=true")  # both
    assert names(runs) == {"l2", "l2-r0.25"}
    clean(runs, "delete=fake-l2", "yes=true")
    assert names(runs) == set()


def test_an_unfinished_run_keeps_its_parents_too(runs):
    out = clean(runs, "delete='*-r0.25-rc192-s0-*'", "yes=true")
    assert names(runs) == ALL and "kept" in out


def test_what_is_kept_keeps_its_ancestors(runs):
    (tuned,) = runs.glob("*r0.5*-ft-*")
    (tuned / "notes.txt").write_text("precious")
    out = clean(runs, "delete='*'", "yes=true")
    assert names(runs) == {"l2", "l2-r0.5", "l2-r0.5-ft"}
    assert "'notes.txt', which no run writes" in out


def test_a_run_that_is_being_computed_stays(runs):
    (tuned,) = runs.glob("*r0.25*-ft-*")
    with FileLock(lock_of(tuned)):
        out = clean(runs, "delete='*'", "yes=true")
    assert "it is being computed" in out and names(runs) == {"l2", "l2-r0.25", "l2-r0.25-ft"}


def test_passes_go_children_first(tmp_path, capsys):
    """A run's place in its chain counts, not its stage: the second training is the last's child."""
    passes = pipeline(tiny("pipeline", tmp_path, *FAST, "passes=2", "ratio=0.3", "recalibrate=0"))
    lines = clean(tmp_path, "delete='*'", "yes=true").splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [f.name for f in reversed(passes)]
    assert not list(tmp_path.glob("[!.]*"))


def test_what_is_no_run_is_never_touched(runs, tmp_path):
    for name in ("sweeps", "my-notes", "report"):
        (runs / name).mkdir()
        (runs / name / "result.json").write_text("{}")
    other = train(tiny("train", tmp_path / "other", "epochs=1"))
    (runs / other.name).symlink_to(other)
    clean(runs, "delete='*'", "yes=true")
    left = {path.name for path in runs.glob("[!.]*")}
    assert left == {"sweeps", "my-notes", "report", other.name}
    assert (other / "result.json").exists()


def test_a_run_whose_result_cannot_be_read_is_listed_and_can_go(runs, capsys):
    (tuned,) = runs.glob("*r0.5*-ft-*")
    (tuned / "result.json").write_text("{")
    assert "unreadable" in clean(runs, "list=true")
    clean(runs, "delete=r0.5-rc192-ft", "unfinished=true", "yes=true")
    assert not tuned.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("delete=",), "needs a part of a name"),
        (("delete=none_such",), "no run has this in its name"),
        (("yes=true",), "belong to delete=TEXT"),
        (("unfinished=true",), "belong to delete=TEXT"),
    ],
)
def test_a_deletion_that_says_nothing_is_refused(runs, options, words):
    assert words in refusal("report", str(runs), *options) and names(runs) == ALL


def test_a_deletion_that_is_killed_leaves_nothing_broken(runs, monkeypatch):
    """At worst an unfinished run is left: asked for again, it is computed anew."""
    (tuned,) = runs.glob("*r0.5*-ft-*")
    monkeypatch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    code, _, _ = terminal("report", str(runs), "delete=r0.5-rc192-ft", "yes=true")
    assert code == 130 and tuned.exists() and not (tuned / "result.json").exists()
    monkeypatch.undo()
    *_, again = pipeline(tiny("pipeline", runs, *FAST, "ratio=0.5"))
    assert again == tuned and (tuned / "result.json").exists()


def test_a_list_of_no_runs_is_empty_and_asks_for_no_environment(tmp_path):
    code, out, err = terminal("report", "list=true", str(tmp_path / "none"))
    assert (code, out, err) == (0, f"0 runs: there is no folder {tmp_path / 'none'}/ yet\n", "")
    made = subprocess.run(
        ["make", "runs", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode and "make install" in made.stdout and not list(tmp_path.iterdir())
