"""What the README says of the comparison is what the committed results say."""

from statistics import mean

from door import ROOT
from utils.report import table
from utils.report.compare import Contest, as_text, contests
from utils.runs.results import find_runs
from utils.runs.units import si

METHODS = (("slimming", 0.0008), ("slimming", 0.002), ("uniform", 0.0008), ("l1_norm", 0.0))
METHODS += (("random", 0.0),)


def line(contest: Contest) -> str:
    """One budget: test accuracy of each method, fine-tuned, and what slimming's network costs."""
    tuned = {(e.method, e.strength): e for e in contest.entrants if e.tuning == "fine-tuned"}
    texts = as_text(contest)
    texts = texts[texts["then"] == "fine-tuned"].set_index(["method", "λ"])["test %"]
    cells = [
        texts[name, f"{strength:g}"].replace(" (n = 3)", "") if (name, strength) in tuned else "-"
        for name, strength in METHODS
    ]
    costs = []
    for name in (("slimming", 0.0008), ("l1_norm", 0.0)):
        last = [chain[-1] for chain in tuned[name].chains.values()]
        costs.append(f"{si(mean(r['params'] for r in last))} / {si(mean(r['macs'] for r in last))}")
    goal = contest.title.rpartition(", ")[2]
    return f"| {' | '.join([goal, *cells, *costs])} |"


def test_the_readmes_comparison_is_that_of_the_committed_results():
    runs = find_runs(ROOT / "results" / "compare_cifar10")
    found = contests(table.chains(runs))
    readme = (ROOT / "README.md").read_text()
    assert len(found) == 3
    for contest in found:
        assert line(contest) in readme, line(contest)
