"""A search over lambda and ratio: told the validation split only, and nothing is trained twice."""

import json
import re

import yaml

from door import TINY
from terminal import terminal

SEARCH = ("-m", "+sweep=optuna", *TINY, "epochs=2", "finetune.epochs=1")
TRIALS = ("hydra.sweeper.n_trials=4", "method.strength=0.5", "ratio=choice(0.2,0.4,1.5)")


def results(runs_dir) -> list[dict]:
    return [json.loads(path.read_text()) for path in runs_dir.glob("*/result.json")]


def found(runs_dir) -> dict:
    (path,) = runs_dir.glob("sweeps/*/optimization_results.yaml")
    return yaml.safe_load(path.read_text())


def test_a_search_trades_accuracy_on_the_validation_split_against_macs(tmp_path):
    at = f"runs_dir={tmp_path}"
    code, _, errors = terminal("pipeline", *SEARCH, *TRIALS, at, "data.val_size=50")
    tuned = {r["ratio"]: r for r in results(tmp_path) if r["stage"] == "finetune"}
    assert sum(r["stage"] == "train" for r in results(tmp_path)) == 1 and tuned
    for solution in found(tmp_path)["solutions"]:
        run = tuned[float(solution["params"]["ratio"])]
        assert solution["values"] == [run["accuracy"]["val"], run["macs"]]
        assert run["accuracy"]["val"] != run["accuracy"]["test"], "else this test shows nothing"
    last = errors.splitlines()[-1]
    assert code == 1 and "jobs failed: ratio=1.5" in last and "0 <= ratio < 1; got 1.5" in last


def test_at_one_budget_accuracy_alone_decides(tmp_path):
    """With target.macs nothing but lambda is left to search."""
    code, _, errors = terminal(
        "pipeline", *SEARCH, f"runs_dir={tmp_path}", "data.val_size=50", "ratio=null",
        "target.macs=0.5", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=2",
        "method.strength=choice(0.1,0.5)",
    )  # fmt: skip
    assert code in (0, None), errors
    best = max(r["accuracy"]["val"] for r in results(tmp_path) if r["stage"] == "finetune")
    assert found(tmp_path)["best_value"] == best


def test_without_a_validation_split_nothing_is_trained(tmp_path):
    code, _, errors = terminal("pipeline", *SEARCH, *TRIALS, f"runs_dir={tmp_path}")
    assert code == 1 and "never on the test set: add data.val_size=..." in errors.splitlines()[-1]
    assert results(tmp_path) == []


def test_a_search_that_is_to_do_nothing_is_refused_once(tmp_path):
    words = (*SEARCH, *TRIALS, f"runs_dir={tmp_path}", "data.val_size=50", "dry_run=true")
    code, said, errors = terminal("pipeline", *words)
    assert code == 1 and "trial" not in said and list(tmp_path.iterdir()) == []
    assert errors == (
        "error: a search has to see results: leave out dry_run=true, or the sweeper\n"
    )


def test_a_number_that_was_counted_up_to_is_the_number_that_was_typed(tmp_path):
    def runs(ratios: str) -> list[str]:
        ask = ("-m", *TINY, f"runs_dir={tmp_path}", "dry_run=true")
        code, said, errors = terminal("pipeline", *ask, "method.strength=0.5", f"ratio={ratios}")
        assert code in (0, None), errors
        return re.findall(r"\S+-r0\.\d\S+", said)

    typed = runs("0.1,0.2,0.3")
    assert len(typed) >= 3 and runs("range(0.1,0.35,0.1)") == typed
    assert runs("0.30000000000000004") == runs("0.3")
