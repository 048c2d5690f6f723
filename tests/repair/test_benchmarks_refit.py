"""By which numbers `benchmarks/refit_default.py` compares."""

import sys

from benchmarks import refit_default


def test_validation_images_decide_where_there_are_any_and_seeds_are_paired(monkeypatch, capsys):
    runs = {}

    def result(name, seed, test, val, **more):
        accuracy = {"test": test, "val": val}
        runs[name] = {"name": name, "seed": seed, "network": "net", "accuracy": accuracy, **more}
        return runs[name]

    def _run(runs_dir, script, options, sweep=True):
        if "passes=0" in options:
            return [{"name": f"trained{seed}"} for seed in refit_default.SEEDS]
        if script == "prune.py":
            return [{"safe_ratio": 0.858}]
        refit = "compensate=refit" in options
        found = []
        for ratio in map(float, options[-1].removeprefix("ratio=").split(",")):
            for seed in (2, 0, 1):  # in any order
                name = f"{seed}{ratio}{refit}"
                result(name, seed, 0.9, 0.5)
                more = {"stage": "finetune", "ratio": ratio, "parent": name}
                found.append(result(f"{name}ft", seed, 0.9, 0.5 + seed / 10 + refit / 20, **more))
        return found

    monkeypatch.setattr(refit_default, "_run", _run)
    monkeypatch.setattr(refit_default, "_read", lambda folder: runs[folder.name])
    monkeypatch.setattr(sys, "argv", ["refit_default.py"])
    refit_default.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows[::3]] == ["0.85", "0.9", "0.95", "0.99"] * 2
    assert all(row.endswith("| 50.00 ± 0.00 | 65.00 ± 10.00 | 5.00 ± 0.00 |") for row in rows[1::3])


def test_without_a_validation_split_it_is_the_test_set():
    assert refit_default._accuracy({"accuracy": {"test": 0.9, "val": None}}) == 90
