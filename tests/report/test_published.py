"""What the texts say of results is what the committed results say."""

import re

import pytest

from door import ROOT
from made_up import read
from utils.report import tables
from utils.report.compare import paired

RESULTS = ROOT / "results"
README = (ROOT / "README.md").read_text()
MEASUREMENTS = (ROOT / "docs" / "measurements.md").read_text()


def test_the_readmes_table_is_that_of_the_committed_digits():
    told = read(RESULTS / "digits")
    (made,) = tables.results(told)
    lines = {row[0]: dict(zip(made.names, row, strict=True)) for row in made.body}
    dense, thin = lines["no penalty, uncut"], lines["λ 0.015, cut 70 % channels"]
    for name, line in (("dense", dense), ("thin", thin)):
        assert f"| {name} | {line['params']} | {line['MACs']} | {line['test %']} |" in README
    assert f"falls to\n  {thin['cut']} %" in README and f"bring back {thin['repaired']} %" in README
    assert {line.end.n for line in told.lines} == {5} and "of 5 seeds" in README
    assert {run["commit"] for run in told.runs} == {re.search(r"commit (\w{10})", README)[1]}


@pytest.mark.parametrize(
    ("goal", "penalty", "sign"),
    [
        ("20 % parameters", 0.0008, -1),
        ("30 % MACs", 0.0008, 1),
        ("30 % MACs", 0.002, 1),
        ("50 % MACs", 0.0008, 1),
    ],
)
def test_the_readmes_findings_are_those_of_the_committed_comparison(goal, penalty, sign):
    (contest,) = [c for c in read(RESULTS / "compare_cifar10").contests if goal in c.title]
    pairs = [
        paired(ours.by_seed(), other.by_seed())
        for ours, other in contest.pairs
        if ours["method"] == "l1_norm" and other["lambda"] == penalty
    ]
    (found,) = pairs
    assert found.mean * sign > 0 and found.n == 3
    assert f"{abs(found.mean):.2f} ± {found.half_width:.2f}" in README
    assert (found.verdict == "3 seeds can't tell") == (goal == "50 % MACs")


def test_the_measurements_are_those_of_the_committed_results():
    for made in tables.contests(read(RESULTS / "compare_cifar10")):
        assert made.markdown() in MEASUREMENTS
    for made in tables.results(read(RESULTS / "cifar10_vgg11_fast")):
        assert made.markdown() in MEASUREMENTS


def test_the_committed_page_is_that_of_the_committed_results():
    """`make page` after results were added, or after what is said of them has changed."""
    told = read(RESULTS)
    page = (RESULTS / "report" / "report.md").read_text()
    html = (RESULTS / "report" / "index.html").read_text()
    for made in (*tables.results(told), *tables.contests(told)):
        assert made.markdown() in page
        assert made.title in page and all(name in html for name in made.names)
    assert all(run["run"] in html for run in told.runs)
