"""The report: what is read, in which order it is shown, that no number changes on the way."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from door import config, shell, tiny
from pipeline import pipeline
from report import report
from train import train
from utils import table
from utils.results import find_runs

SWEEP = ("epochs=1", "finetune.epochs=1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A baseline, and one sparse training with two cuts, each fine-tuned."""
    folder = tmp_path_factory.mktemp("runs")
    for ratio in (0.6, 0.3):
        pipeline(tiny("pipeline", folder, "method.strength=2", f"ratio={ratio}", *SWEEP))
    train(tiny("train", folder, "method.strength=0", "epochs=1"))
    return folder


def test_the_rows_tell_the_story_in_order(runs):
    steps = [row["step"] for row in table.rows(find_runs(runs))]
    cut = ["cut {} %", "cut {} % + bias", "cut {} % + bias + recalibrated", "fine-tuned"]
    expected = [word.format(share) for share in (30, 60) for word in cut]
    assert steps == ["baseline", "sparse", *expected]


def test_every_number_is_the_results(runs):
    path = report(config("report", f"runs_dir={runs}"))
    read = pd.read_csv(path.with_name("table.csv"))
    for row in read.itertuples():
        said = json.loads((runs / row.run / "result.json").read_text())
        assert row.params == said["params"] and row.macs == said["macs"]
        assert row.kept == said["channels"]["kept"] and row.bytes == said["bytes"]
        variants = [said["accuracy"], *said.get("variants", {}).values()]
        assert row.test in [variant["test"] for variant in variants]
    text = path.read_text()
    assert all(f"`{run['command']}`" in text and run["commit"] in text for run in find_runs(runs))
    for name in ("gammas.png", "widths.png"):
        assert path.with_name(name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_broken_foreign_and_future_results_are_named_and_passed_over(runs, tmp_path, capsys):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    good = len(find_runs(tmp_path))
    capsys.readouterr()
    one = next(iter(sorted(tmp_path.glob("*/result.json"))))
    whole = one.read_text()
    for name, text in {
        "half": whole[: len(whole) // 2],
        "foreign": '{"accuracy": 3}',
        "list": "[1, 2]",
        "future": whole.replace('"schema": 1', '"schema": 99'),
        "poor": '{"schema": 1, "stage": "train"}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "config.yaml").write_text("seed: 0\n")
    assert len(find_runs(tmp_path)) == good
    said = capsys.readouterr().err
    for words in (
        "half/result.json is broken",
        "foreign/result.json is not a result of this project",
        "list/result.json is not a result of this project",
        "future/result.json has schema 99",
        "poor/result.json lacks",
        "1 not finished",
    ):
        assert words in said


def test_latency_is_measured_once_side_by_side_and_kept(runs):
    report(config("report", f"runs_dir={runs}", "latency=true", "only=l0-"))
    (kept,) = runs.glob("*/latency.json")
    said = json.loads(kept.read_text())
    assert said["machine"]["threads"] >= 1
    assert {"1", "64"} == set(said["batch"])
    assert all(times["q1_ms"] <= times["median_ms"] <= times["q3_ms"]
               for times in said["batch"].values())  # fmt: skip
    assert "ms / 64" in table.humane(table.frame(table.rows(find_runs(runs)))).columns


def test_with_nothing_finished_it_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python pipeline\.py"):
        report(config("report", f"runs_dir={tmp_path}"))


def test_only_keeps_whole_chains(runs):
    steps = {row["step"] for row in table.rows(table.choose(find_runs(runs), "r0.3"))}
    assert "sparse" in steps and "cut 30 %" in steps and not any("60" in step for step in steps)
    with pytest.raises(ValueError, match="no finished run has this in its name"):
        table.choose(find_runs(runs), "resnet")


def test_a_bare_folder_on_the_command_line_is_where_the_runs_are(runs):
    done = shell("report", str(runs))
    assert done.returncode == 0, done.stderr
    assert "fine-tuned" in done.stdout and "report.md" in done.stdout


@pytest.mark.parametrize(
    ("number", "text"),
    [(398136320, "398 M"), (45600, "45.6 k"), (999_700, "1.00 M"), (1, "1"), (20035018, "20.0 M")],
)
def test_humane_numbers(number, text):
    assert table.si(number) == text
