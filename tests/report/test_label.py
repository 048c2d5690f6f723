"""One name for a network, one key for what may stand together."""

import pytest

from door import ROOT
from made_up import chain, read, run, story
from utils.report import groups, tables
from utils.report.compare import contests
from utils.report.knee import sweeps
from utils.report.label import common, goal, label, labels
from utils.report.page import content
from utils.report.together import regime

ALL = ROOT / "results"
GOALS = ({"ratio": 0.3}, {"ratio": 0.5}, {"target": {"macs": 0.5}}, {"target": {"params": 0.2}})


def two_trainings() -> list[list[dict]]:
    """One network trained for 15 epochs, and for 8 on fewer images; the second was cut."""
    long = run("long", strength=0, epochs=15, test=0.88, val=0.87)
    config = {"data": {"_target_": "x", "val_size": 5000}}
    short = {"strength": 0, "epochs": 8, "config": config, "val": 0.82}
    sparse = {**short, "strength": 0.00084, "val": 0.82}
    cuts = [
        chain(0, sparse, {"ratio": r, "val": v}, {"val": v, "test": v, "config": config})
        for r, v in ((0.5, 0.8257), (0.7, 0.5))
    ]
    return [[long], [run("short", test=0.8262, **short)], *cuts]


def test_two_trainings_share_no_headline_no_baseline_and_no_panel():
    told = story(*two_trainings())
    (sweep,) = told.sweeps
    uncut = {point["run"]: point for point in sweep.uncut}
    assert "short" in uncut and "long" not in uncut
    ((about, cards),) = content.headlines(told)
    assert [number for number, _ in cards[:2]] == ["82.62 %", "82.57 %"]
    (table,) = tables.results(told)
    against = dict(zip(table.columns[0].cells, table.columns[table.names.index("vs dense")].cells))
    assert [*against.values()].count("-") == 2, "each uncut network without a penalty is a baseline"
    assert all("8 epochs" in name or "15 epochs" in name for name in against), "names tell which"
    long, short = (told.dense[regime(p)] for p in told.points if p["run"] in ("long", "short"))
    assert long is not short


def test_a_fine_tuning_without_its_parents_is_averaged_with_nothing():
    cuts = [(0, {"strength": 0.0}, {"method": "random", "target": {"params": 0.2}}),
            (1, {"strength": 0.0}, {"method": "random", "target": {"params": 0.2}}),
            (2, {"strength": 0.0008}, {"target": {"macs": 0.5}})]  # fmt: skip
    orphans = [chain(*one)[-1] for one in cuts]
    told = story(orphans)
    assert [line.end.n for line in told.lines] == [1, 1, 1]
    names = [*labels([line.end for line in told.lines]).values()]
    assert len({*names}) == 3
    assert told.dense == {} and not contests([line.end for line in told.lines])
    (table,) = tables.results(told)
    assert "its training isn't here" in table.title
    assert any("Copy the runs beside them" in note for note in table.notes)


def test_methods_and_schedules_and_repairs_have_names_of_their_own():
    told = story(*(
        chain(0, {}, {"method": method, "target": {"params": 0.2}}, tuned)
        for method in ("slimming", "gamma_local", "l1_norm")
        for tuned in ({}, {"epochs": 9}, {"scratch": "E"})
    ))  # fmt: skip
    names = [*told.names.values()]
    assert len({*names}) == len(names) == 10
    assert "gamma_local, keep 20 % parameters, 9 epochs of fine-tuning" in names
    assert "l1_norm, keep 20 % parameters, scratch-E" in names


@pytest.mark.parametrize("folder", ["", "compare_cifar10", "cifar10_vgg11_fast", "after_cut"])
def test_no_two_committed_networks_share_a_name(folder):
    told = read(ALL / folder)
    names = labels([line.end for line in told.lines])
    assert len({*names.values()}) == len(told.lines)
    for points in (told.points, [p for p in told.points if p["stage"] == "train"]):
        assert len({*labels(points).values()}) == len(points)


def test_a_mean_holds_no_two_networks_that_differ_in_a_setting():
    told = read(ALL)
    for point in told.points:
        chains = [told.paths[row["run"]] for row in point.rows]
        later = set() if point["stage"] != "prune" else {"compensate", "images", "recalibrate"}
        assert groups.differences(chains, later) == {}
        assert len({(row["method"], row["lambda"], row["target"]) for row in point.rows}) == 1


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"ratio": 0.7}, "cut 70 % channels"),
        ({"ratio": 0.333}, "cut 33.3 % channels"),
        ({"target": {"macs": 0.5}}, "keep 50 % MACs"),
        ({"target": {"macs": 0.5, "params": 0.25}}, "keep 50 % MACs and 25 % parameters"),
        ({"target": {"macs": 5e6, "latency": None}}, "keep 5.00 M MACs"),
    ],
)
def test_a_goal_says_what_goes_or_what_stays(facts, said):
    told = story(chain(0, {}, facts))
    assert goal(told.lines[-1].end) == said
    assert said in label(told.lines[-1].end) and "vgg11-w0.25 on digits" in label(
        told.lines[-1].end
    )


def test_a_title_and_the_names_below_it_say_everything_once():
    told = story(chain(0, {}, {"ratio": 0.3}), chain(0, {}, {"ratio": 0.5}))
    ends = [line.end for line in told.lines]
    assert (
        common(ends)
        == "vgg11-w0.25 on digits, fast recipe, λ 0.01, slimming, 1 epoch of fine-tuning"
    )
    assert [*labels(ends).values()] == ["uncut", "cut 30 % channels", "cut 50 % channels"]


def test_a_sweep_is_of_one_training_one_schedule_and_one_kind_of_goal():
    told = story(*(
        chain(0, {"strength": strength}, cut, tuned)
        for strength in (0.01, 0.02)
        for cut in GOALS
        for tuned in ({}, {"epochs": 9})
    ))  # fmt: skip
    found = sweeps(told.lines)
    assert sorted(len(sweep.cuts) for sweep in found) == [2, 2, 2, 2, 4, 4]
    for sweep in found:
        assert len({point["epochs"] for point in sweep.cuts}) == 1
        assert len({point["target"] is None for point in sweep.cuts}) == 1


def test_a_recipe_that_was_changed_by_hand_says_how():
    changes = {"batch_size": 32, "optimizer.lr": 0.01, "mixup": 0.2, "ema": 0.9}
    told = story(run("a", recipe="fast*", recipe_changes=changes))
    (made,) = tables.results(told)
    assert "fast* recipe (batch_size 32, optimizer.lr 0.01, mixup 0.2 and 1 more)" in made.title


def test_a_training_by_a_method_of_ones_own_is_called_by_its_name():
    def trained(name: str, target: str) -> dict:
        return run(name, config={"method": {"_target_": target, "name": name, "mode": "x"}})

    told = story(
        trained("slimming", "slimming.methods.slimming.Slimming"), trained("ramp", "my_pkg.Ramp")
    )
    assert {*told.names.values()} == {"λ 0.01", "λ 0.01, trained by ramp"}


def test_a_schedule_is_called_by_its_own_name():
    def scheduled(name: str) -> dict:
        recipe = {"schedule": {"_target_": f"my_pkg.waves.{name}"}}
        changes = {"recipe": "fast*", "recipe_changes": {"schedule._target_": f"my_pkg.{name}"}}
        return run(name, config={"recipe": recipe}, **changes)

    told = story(scheduled("sawtooth"), scheduled("triangle"))
    assert {*told.names.values()} == {
        "fast* recipe (schedule sawtooth)", "fast* recipe (schedule triangle)"
    }  # fmt: skip
