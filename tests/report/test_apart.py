"""What is another training, another file or a later pass is told apart, and nothing is hidden."""

import pytest

from made_up import chain, run, story
from utils.report import tables
from utils.report.compare import contests
from utils.report.label import label
from utils.report.plots.gammas import gammas
from utils.report.story import Story
from utils.report.together import regime

PLAIN = "slimming.methods.slimming.Slimming"


def dense(seed: int, method: dict | None, test: float = 0.5) -> dict:
    config = {} if method is None else {"config": {"method": method}}
    return run(f"dense{seed}", seed=seed, strength=0.0, test=test, **config)


@pytest.mark.parametrize(
    "other",
    [
        {"_target_": "slimming.methods.mine.Mine", "groups": 4},
        {"_target_": "somebody.Else"},
        {"_target_": PLAIN, "weight_decay_on_gamma": False},
    ],
)
def test_a_training_of_its_own_without_lambda_is_not_the_dense_network(other):
    told = story(dense(0, {"_target_": PLAIN}), dense(1, None), dense(2, other, 0.9))
    assert sorted(line.end.n for line in told.lines) == [1, 2]
    (baseline,) = told.dense.values()
    assert baseline.n == 2 and len({*told.names.values()}) == 2


def test_methods_that_train_plainly_share_their_dense_networks():
    methods = ("slimming.Slimming", "l1_norm.L1Norm", "random.Random")
    plain = [{"_target_": f"slimming.methods.{method}", "name": "x"} for method in methods]
    told = story(*(dense(seed, method) for seed, method in enumerate(plain)))
    assert [line.end.n for line in told.lines] == [3]


def twice(seed: int) -> list[dict]:
    """Trained, cut, fine-tuned; and the thin network once more."""
    made, parent = [], None
    for number in (1, 2):
        cut = {"ratio": 0.3, "method": "slimming", "pass": number}
        params = 100 - 20 * number
        for stage, more in (
            ("train", {"pass": number, "params": params + 20, "test": 0.5}),
            ("prune", {**cut, "params": params, "test": 0.4}),
            ("finetune", {**cut, "params": params, "test": 0.6 + number / 10 + seed / 100}),
        ):
            made.append(run(f"{stage}{number}-s{seed}", stage, parent, seed=seed, **more))
            parent = made[-1]["run"]
    return made


def passes() -> Story:
    return story(*(twice(seed) for seed in (0, 1)), dense(0, None), dense(1, None))


def test_each_pass_is_a_result_beside_the_same_dense_network():
    (made,) = tables.results(passes())
    tests = dict(zip(made.columns[0].cells, made.columns[1].cells, strict=True))
    assert tests == {
        "no penalty, uncut": "50.00 ± 0.00",
        "λ 0.01, uncut": "50.00 ± 0.00",
        "λ 0.01, cut 30 % channels": "70.50 ± 0.71",
        "λ 0.01, cut 30 % channels, pass 2": "80.50 ± 0.71",
    }
    against = made.columns[made.names.index("vs dense")].cells
    assert [cell[:6] for cell in against] == ["-", "+0.00 ", "+20.50", "+30.50"]


def test_a_thin_network_that_was_trained_again_is_not_called_uncut():
    told = story(twice(0)[:4])
    (again,) = [line.end for line in told.lines if line.end["pass"] == 2]
    assert told.names[again] == "trained again, pass 2"
    (made,) = tables.results(told)
    assert [row["method"] for row in made.rows] == ["uncut", "slimming", "slimming"]
    assert tables.every_run(told, {"None": 1}).rows[-1]["method"] == "slimming"
    assert len(gammas(passes()).panels) == 2, "before any cut"


def test_cuts_of_two_files_are_two_networks():
    told = story(*(
        run(f"{file}-{ratio}", "prune", ratio=ratio, method="slimming", config={"ckpt": file})
        for file in ("a.pt", "b.pt")
        for ratio in (0.3, 0.5)
    ))  # fmt: skip
    ends = [line.end for line in told.lines]
    assert len({regime(end) for end in ends}) == 2 == len(told.sweeps)
    assert len({*told.names.values()}) == 4
    assert all("a.pt" in name or "b.pt" in name for name in told.names.values())


def test_limits_have_one_order_and_amounts_of_any_size_keep_their_cut():
    told = story(*(
        chain(0, {}, {"target": target})
        for target in ({"macs": 0.5, "params": 0.2}, {"params": 0.3, "macs": 0.5}, {"macs": 3e10})
    ))  # fmt: skip
    assert {*told.names.values()} >= {
        "keep 50 % MACs and 20 % parameters",
        "keep 50 % MACs and 30 % parameters",
        "keep 30.0 G MACs",
    }
    assert all(line.steps["cut"].mean("test") == 0.3 for line in told.lines[1:])


def timed(runs: list[dict], cpu: str, ms: float) -> list[dict]:
    latency = {"machine": {"cpu": cpu, "threads": 1}, "batch": {"64": {"median_ms": ms}}}
    return [{**one, "latency": latency} for one in runs]


def test_times_of_two_machines_have_no_mean():
    told = story(timed(chain(0), "A", 1.0), timed(chain(1), "B", 99.0))
    assert [line.end.mean("latency_64_ms") for line in told.lines] == [None, None]
    (made,) = tables.results(told)
    assert "ms / 64" not in made.names
    same = story(timed(chain(0), "A", 1.0), timed(chain(1), "A", 3.0))
    assert [line.end.mean("latency_64_ms") for line in same.lines] == [2.0, 2.0]


def test_no_lambda_and_a_lambda_of_zero_are_one_training():
    told = story(run("a", strength=0.0), run("b", strength=None, seed=1))
    assert [line.end.n for line in told.lines] == [2]


def test_a_fine_tuning_by_a_changed_recipe_says_how():
    changed = {"finetune_recipe": "fast*", "finetune_recipe_changes": {"batch_size": 32}}
    training = {"recipe": "fast*", "recipe_changes": {"mixup": 0.2}}
    for first in ({}, training):
        (_, line) = story(chain(0, first, {}, changed)).lines
        assert "fine-tuned (fast* recipe: batch_size 32)" in label(line.end)
    (_, line) = story(
        chain(0, {**training, "recipe_changes": {"batch_size": 32}}, {}, changed)
    ).lines
    assert line.end.what == "fine-tuned"


def test_where_every_validation_image_is_right_the_cheapest_such_cut_is_suggested():
    facts = {"val": 1.0, "images": {"val": 50}}
    told = story(*(
        chain(0, {**facts}, {"ratio": ratio, "macs": 9}, {**facts, "val": val, "macs": macs})
        for ratio, val, macs in ((0.3, 1.0, 8), (0.5, 1.0, 6), (0.7, 0.98, 4))
    ))  # fmt: skip
    (sweep,) = told.sweeps
    assert sweep.names[sweep.knee.point] == "cut 50 % channels" and sweep.knee.error == 0


def test_no_title_says_of_a_whole_panel_what_is_true_of_one_network_only():
    goals = ({"ratio": 0.3}, {"ratio": 0.5}, {"target": {"macs": 0.3}}, {"target": {"macs": 0.5}})
    told = story(*(
        chain(0, {}, {**goal, "method": method, "config": {"floor": floor}})
        for goal in goals
        for method in ("slimming", "l1_norm")
        for floor in (1, 2)
    ))  # fmt: skip
    names = [sweep.title for sweep in told.sweeps]
    shared = "vgg11-w0.25 on digits, fast recipe, λ 0.01, 1 epoch of fine-tuning"
    assert names == [f"{shared}, by channels", f"{shared}, by MACs"]
    floors = [contest.title.rpartition(", ")[2] for contest in told.contests]
    assert sorted(floors) == ["floor 1", "floor 1", "floor 2", "floor 2"]


def test_a_fine_tuning_by_another_method_is_in_no_mean_and_no_contest_with_a_plain_one():
    node = {"_target_": "slimming.methods.keep_zeros.KeepZeros", "name": "keep_zeros"}
    by_it = {"finetune_method": "keep_zeros", "config": {"method": node}}
    same = {"target": {"macs": 0.5}}
    plain = [chain(seed, None, {**same, "method": "random"}) for seed in (0, 1)]
    other = [chain(seed, None, same, by_it) for seed in (2, 3)]
    told = story(*plain, *other, chain(4, None, same, {"finetune_method": "keep_zeros"}))
    ends = [line.end for line in told.lines if line.end["stage"] == "finetune"]
    assert sorted(end.n for end in ends) == [1, 2, 2]
    names = sorted(label(end).rpartition(", ")[0] for end in ends)
    assert [name.endswith("fine-tuned by keep_zeros") for name in names] == [False, True, True]
    assert not contests(ends)
    # What an older pipeline recorded there was the method of the training.
    old = [chain(seed, None, same, {"config": {"method": node}}) for seed in (0, 1)]
    assert [line.end.n for line in story(*old, chain(2, None, same)).lines] == [3, 3]
