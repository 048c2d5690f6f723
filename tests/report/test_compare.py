"""Methods against each other: pairs of equal seeds, an interval, when n is too small to tell."""

import json
from pathlib import Path

import pytest

from door import config, tiny
from pipeline import pipeline
from report import report
from utils.report import render, table
from utils.report.compare import Difference, as_text, contests, paired
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
    (one,) = contests(table.chains(find_runs(runs)))
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
    assert verdict(5.0) == "one seed can't tell"
    assert verdict(1.0, 5.0) == "2 seeds can't tell"
    assert verdict(1.0, 1.1, 0.9) == "better" and verdict(-1.0, -1.1, -0.9) == "worse"
    assert verdict(0.0, 0.0, 0.0) == "3 seeds can't tell"


def test_a_contest_is_what_differs_in_method_seed_and_what_followed(contest):
    found = {(e.method, e.tuning): sorted(e.chains) for e in contest.entrants}
    assert found == {
        ("slimming", "fine-tuned"): [0, 1],
        ("random", "fine-tuned"): [0, 1],
        ("random", "scratch-E"): [0],
    }, "the one cut at a ratio has other MACs"


def test_each_is_compared_with_what_it_should_be(contest):
    against = {(e.method, e.tuning): contest.reference(e) for e in contest.entrants}
    assert against[("slimming", "fine-tuned")] is None
    assert against[("random", "fine-tuned")].method == "slimming"
    own = against[("random", "scratch-E")]
    assert (own.method, own.tuning) == ("random", "fine-tuned")


def test_the_table_has_the_numbers_of_the_results(runs, contest):
    lines = as_text(contest).set_index(["method", "then"])
    accuracy = {
        (said["method"], said["seed"]): 100 * said["accuracy"]["test"]
        for path in runs.glob("*-ft-*/result.json")
        if (said := json.loads(path.read_text())) and said.get("target")
    }
    assert len(accuracy) == 4
    expected = sum(accuracy["random", s] - accuracy["slimming", s] for s in (0, 1)) / 2
    line = lines.loc[("random", "fine-tuned")]
    assert line["difference"].startswith(f"{expected:+.2f} ± ")
    assert line["verdict"] == "2 seeds can't tell" and line["against"] == "slimming, λ 0.5"
    assert "(n = 2)" in line["test %"]
    control = lines.loc[("random", "scratch-E")]
    assert control["verdict"] == "one seed can't tell" and "±" not in control["difference"]
    assert control["against"] == "its fine-tuning" and control["epochs"] == "2"


def test_other_conditions_are_another_contest(runs):
    found = find_runs(runs)
    for run in found:  # as if the random ones had been fine-tuned with another batch size
        if run["stage"] == "finetune" and run["method"] == "random":
            run["config"]["recipe"]["batch_size"] = 32
    assert contests(table.chains(found)) == []


def test_other_penalties_are_other_entrants(runs):
    found = find_runs(runs)
    for run in found:
        if run["stage"] == "train" and run["strength"] and run["seed"] == 1:
            run["config"]["method"]["mode"] = "proximal"
    (contest,) = contests(table.chains(found))
    slimmings = [sorted(e.chains) for e in contest.entrants if e.method == "slimming"]
    assert slimmings == [[0], [1]], "never averaged"


def test_of_several_lambdas_one_is_the_reference(runs):
    found = find_runs(runs)
    stronger = {}
    for run in (run for chain in table.chains(found) if chain[0]["strength"] for run in chain):
        names = {"run": f"{run['run']}-2", "parent": run["parent"] and f"{run['parent']}-2"}
        stronger[run["run"]] = {**run, **names, "strength": 0.7}
    (contest,) = contests(table.chains([*found, *stronger.values()]))
    against = {(e.method, e.strength): contest.reference(e) for e in contest.entrants if e.epochs}
    assert against["slimming", 0.5] is None
    assert against["slimming", 0.7].strength == against["random", 0.0].strength == 0.5


def test_the_report_shows_it_as_a_plot_and_in_numbers(runs, contest):
    written = report(config("report", f"runs_dir={runs}")).read_text()
    assert render.markdown(as_text(contest)) in written
    html = (runs / "report" / "index.html").read_text()
    assert 'id="compare"' in html and "macs 0.5: against slimming (λ 0.5)" in html


def test_a_difference_of_nothing_reads_as_a_dash():
    assert str(Difference(0.0, None, 0)) == "-" and str(Difference(1.234, None, 1)) == "+1.23"
