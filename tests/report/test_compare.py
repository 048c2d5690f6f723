"""Methods against each other: pairs of equal seeds, an interval, when n is too small to tell."""

import csv
import json
from pathlib import Path

import pytest

from door import config, tiny
from made_up import chain, read, story
from pipeline import pipeline
from report import report
from utils.report import tables
from utils.report.compare import Difference, is_control, paired
from utils.report.story import Story
from utils.runs.results import find_runs

SHORT = ("recipe.strength=0.5", "epochs=2", "finetune.epochs=1", "target.macs=0.5")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two methods and two seeds, fine-tuned; one control; a third method at a ratio."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("slimming", "random"):
        for seed in (0, 1):
            pipeline(tiny("pipeline", folder, f"method={method}", f"seed={seed}", *SHORT))
    pipeline(tiny("pipeline", folder, "method=random", *SHORT, "finetune.scratch=E"))
    pipeline(tiny("pipeline", folder, "method=l1_norm", *SHORT, "target.macs=null", "ratio=0.5"))
    return folder


@pytest.fixture
def contest(runs):
    (one,) = read(runs).contests
    return one


def test_students_interval_of_paired_differences():
    # By hand: differences 1, 2, 6; mean 3, deviation sqrt(7), t(0.975, 2) = 4.3027.
    got = paired({0: 11.0, 1: 12.0, 2: 16.0, 7: 99.0}, {2: 10.0, 1: 10.0, 0: 10.0, 9: 0.0})
    assert got.n == 3 and got.mean == 3
    assert got.half_width == pytest.approx(4.30265 * 7**0.5 / 3**0.5, rel=1e-5)


def test_the_verdict_says_when_n_is_too_small():
    def verdict(*differences):
        ours = dict(enumerate(differences))
        return paired(ours, dict.fromkeys(ours, 0.0)).verdict

    assert verdict() == "no seed in common"
    assert verdict(5.0) == "1 seed can't tell"
    assert verdict(1.0, 1.1) == verdict(0.5, 0.5) == "2 seeds can't tell", "whatever they say"
    assert verdict(1.0, 1.1, 0.9) == "better" and verdict(-1.0, -1.1, -0.9) == "worse"
    assert verdict(0.0, 0.0, 0.0) == verdict(1.0, 5.0, -3.0) == "3 seeds can't tell"
    assert verdict(0.125, 0.125, 0.125) == "3 seeds can't tell", "steps of one image have no spread"


def test_a_contest_is_what_differs_in_method_seed_and_what_followed(contest):
    found = {(e["method"], e.what): sorted(e.by_seed()) for e in contest.entrants}
    assert found == {
        ("slimming", "fine-tuned"): [0, 1],
        ("random", "fine-tuned"): [0, 1],
        ("random", "scratch-E"): [0],
    }, "the one cut at a ratio has other MACs"


def test_each_is_compared_with_what_it_should_be(contest):
    against = {(e["method"], e.what): contest.references(e) for e in contest.entrants}
    assert against["slimming", "fine-tuned"] == []
    assert [other["method"] for other in against["random", "fine-tuned"]] == ["slimming"]
    (own,) = against["random", "scratch-E"]
    assert (own["method"], own.what) == ("random", "fine-tuned")


def test_the_table_has_the_numbers_of_the_results(runs, contest):
    (made,) = tables.contests(read(runs))
    lines = {row[0]: dict(zip(made.names, row, strict=True)) for row in made.body}
    accuracy = {
        (said["method"], said["seed"]): 100 * said["accuracy"]["test"]
        for path in runs.glob("*-ft-*/result.json")
        if (said := json.loads(path.read_text())) and said.get("target")
    }
    assert len(accuracy) == 4
    expected = sum(accuracy["random", s] - accuracy["slimming", s] for s in (0, 1)) / 2
    (line,) = [of for name, of in lines.items() if "random" in name and "scratch" not in name]
    assert "against λ 0.5, slimming" in line["network"]
    assert line["difference"].startswith(f"{expected:+.2f} ± ")
    assert line["verdict"] == "2 seeds can't tell" and line["n"] == "2"
    (control,) = [of for name, of in lines.items() if "scratch-E against" in name]
    assert control["verdict"] == "1 seed can't tell" and "±" not in control["difference"]


def test_other_conditions_are_another_contest(runs):
    found = find_runs(runs)
    for run in found:  # as if the random ones had been fine-tuned with another batch size
        if run["stage"] == "finetune" and run["method"] == "random":
            run["config"]["recipe"]["batch_size"] = 32
    assert Story(found).contests == []


def test_other_penalties_are_other_entrants(runs):
    found = find_runs(runs)
    for run in found:
        if run["stage"] == "train" and run["strength"] and run["seed"] == 1:
            run["config"]["method"]["mode"] = "proximal"
    (contest,) = Story(found).contests
    slimmings = [sorted(e.by_seed()) for e in contest.entrants if e["method"] == "slimming"]
    assert slimmings == [[0], [1]], "never averaged"


def entrants(*several: tuple[str, float, dict]) -> list[list[dict]]:
    """(method, lambda, {seed: test accuracy}): fine-tuned at half the MACs."""
    return [
        chain(seed, {"strength": strength}, {"method": method, "target": {"macs": 0.5}},
              {"test": accuracy})
        for method, strength, accuracies in several
        for seed, accuracy in accuracies.items()
    ]  # fmt: skip


SEEDS = {0: 0.70, 1: 0.71, 2: 0.72}


def test_a_ranking_is_compared_under_one_penalty_and_the_unpenalised_meets_each():
    told = story(*entrants(
        ("slimming", 0.1, SEEDS), ("slimming", 0.2, SEEDS), ("gamma_local", 0.2, SEEDS),
        ("l1_norm", 0, SEEDS),
    ))  # fmt: skip
    (contest,) = told.contests
    against = {
        (e["method"], e["lambda"]): [(o["method"], o["lambda"]) for o in contest.references(e)]
        for e in contest.entrants
    }
    assert against == {
        ("slimming", 0.1): [],
        ("slimming", 0.2): [("slimming", 0.1)],
        ("gamma_local", 0.2): [("slimming", 0.2)],
        ("l1_norm", 0): [("slimming", 0.1), ("slimming", 0.2)],
    }


def test_every_pair_has_the_same_schedule():
    long = [
        chain(s, {"strength": 0}, {"method": "l1_norm", "target": {"macs": 0.5}}, {"epochs": 40})
        for s in SEEDS
    ]
    told = story(*entrants(("slimming", 0.1, SEEDS), ("random", 0, SEEDS)), *long)
    (contest,) = told.contests
    for ours, other in contest.pairs:
        assert is_control(ours) or ours["epochs"] == other["epochs"]
    assert not any(ours["epochs"] == 40 for ours, _ in contest.pairs)


def test_the_report_shows_it_as_a_plot_and_in_numbers(runs, contest):
    written = report(config("report", f"runs_dir={runs}"))
    (made,) = tables.contests(read(runs))
    assert made.markdown() in written.read_text()
    html = (runs / "report" / "index.html").read_text()
    assert '<section id="compare">' in html and "keep 50 % MACs" in html
    raw = [*csv.DictReader((runs / "report" / "contests.csv").read_text().splitlines())]
    assert [line["verdict"] for line in raw] == ["2 seeds can't tell", "1 seed can't tell"]
    assert raw[1]["half_width"] == "" and raw[0]["against"] == "λ 0.5, slimming, fine-tuned"
    tex = (runs / "report" / "contests.tex").read_text()
    assert r"\toprule" in tex and "2 seeds can't tell" in tex


def test_a_difference_of_nothing_reads_as_a_dash():
    assert str(Difference(0.0, None, 0)) == "-" and str(Difference(1.234, None, 1)) == "+1.23"
