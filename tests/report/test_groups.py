"""A mean is over seeds and nothing else: which runs make a group, and what keeps others out."""

import copy
import json
from collections import Counter
from pathlib import Path

import pytest

from door import tiny
from pipeline import pipeline
from train import train
from utils.report import groups, table
from utils.runs.results import find_runs

QUICK = ("method.strength=2", "epochs=1", "finetune.epochs=1", "ratio=0.5", "recalibrate=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(tiny("train", folder, *QUICK[:2], "seed=0"))  # by its own script; the rest by pipelines
    for seed in (0, 1):
        pipeline(tiny("pipeline", folder, *QUICK, f"seed={seed}"))
    return folder


@pytest.fixture()
def chains(folder) -> list[list[dict]]:
    return copy.deepcopy(table.chains(find_runs(folder)))


def test_seeds_are_one_group_whichever_script_made_the_stages(chains):
    assert [[run["stage"] for run in chain] for chain in chains] == 2 * [
        ["train", "prune", "finetune"]
    ]
    assert groups.differences(chains) == {}
    assert len({*map(groups.key, chains)}) == 1


@pytest.mark.parametrize(
    ("override", "setting", "values"),
    [
        ("recipe.batch_size=32", "train: recipe.batch_size", [64, 32]),
        ("recipe.optimizer.nesterov=false", "train: recipe.optimizer.nesterov", [True, False]),
        ("data.flip=false", "train: data.flip", [True, False]),
        ("epochs=2", "train: epochs", [1, 2]),
        ("model.width=0.125", "train: model.width", [0.0625, 0.125]),
        ("method.mode=proximal", "train: method.mode", ["subgradient", "proximal"]),
        ("hardware.precision=bf16", "train: precision", ["fp32", "bf16"]),
        ("hardware.channels_last=false", "finetune: channels_last", [None, False]),
        ("ratio=0.4", "prune: ratio", [0.5, 0.4]),
        ("combine=sum", "prune: combine", ["max", "sum"]),
        ("finetune.epochs=2", "finetune: epochs", [1, 2]),
        ("+finetune.recipe.optimizer.lr=1", "finetune: recipe.optimizer.lr", [0.1, 1.0]),
    ],
)
def test_any_setting_keeps_a_chain_out_and_is_named(folder, tmp_path, override, setting, values):
    pipeline(tiny("pipeline", tmp_path, *QUICK, "seed=2", override))
    both = table.chains(find_runs(folder)) + table.chains(find_runs(tmp_path))
    found = groups.differences(both)
    assert found[setting] == values
    others = [name for name in found if name.split(": ")[1] != setting.split(": ")[1]]
    assert not others, "one setting was changed"
    assert [*Counter(map(groups.key, both)).values()] == [2, 1]


def test_a_fine_tuning_by_another_method_stands_alone_and_says_so(folder, tmp_path):
    pipeline(tiny("pipeline", tmp_path, *QUICK, "seed=2", "finetune.method=slimming"))
    both = table.chains(find_runs(folder)) + table.chains(find_runs(tmp_path))
    assert [*Counter(map(groups.key, both)).values()] == [2, 1]
    found = groups.differences(both)
    assert found and all(name.startswith("finetune: method") for name in found)
    assert {table.tuning(chain[-1]) for chain in both} == {"fine-tuned", "fine-tuned by slimming"}


def change(chain: list[dict], key: str, value) -> None:
    *above, last = key.split(".")
    for run in chain:
        node = run["config"]
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("device", "cuda"), ("hardware.threads", 7), ("hardware.device", "cuda"),
        ("runs_dir", "/elsewhere"), ("logger", {"_target_": "x"}), ("data.root", "/elsewhere"),
        ("data.download", True), ("allow", ["mine"]), ("dry_run", True), ("ckpt", "/elsewhere"),
        ("seed", 99), ("recipe.name", "mine"),
    ],
)  # fmt: skip
def test_what_cannot_change_a_result_keeps_nobody_out(chains, key, value):
    change(chains[1], key, value)
    chains[1][0]["config"]["ckpt"] = None  # a training from somebody's file is another training
    assert groups.differences(chains) == {}


def test_an_option_that_an_older_run_lacks_had_its_default(chains):
    for run in chains[0]:
        for name in ("combine", "unread", "coupled", "rounding"):
            run["config"].pop(name, None)
        (run["config"].get("data") or {}).pop("val_size", None)
        recipe = run["config"].get("recipe") or {}
        for name in ("label_smoothing", "mixup", "ema", "grad_clip", "lr_gamma"):
            recipe.pop(name, None)
        recipe.get("optimizer", {}).pop("nesterov", None)
    assert list(groups.differences(chains)) == [
        "train: recipe.optimizer.nesterov", "finetune: recipe.optimizer.nesterov"
    ], "ours is true, torch's default is not"  # fmt: skip


def test_numbers_are_compared_as_numbers(chains):
    change(chains[0], "recipe.optimizer.lr", 1)
    change(chains[1], "recipe.optimizer.lr", 1.0)
    assert groups.differences(chains) == {}


def test_what_a_target_took_is_an_outcome_not_a_setting(chains):
    for chain, reached in zip(chains, (0.41, 0.43)):
        for run in chain[1:]:
            run.update(target={"macs": 0.5}, ratio=reached)
    assert groups.differences(chains) == {}
    chains[1][1]["target"] = {"macs": 0.4}
    assert groups.differences(chains) == {"prune: target.macs": [0.5, 0.4]}


def test_epochs_of_a_control_of_equal_computation_follow_from_its_network(chains):
    for chain, epochs in zip(chains, (11, 12)):
        chain[-1].update(scratch="B", epochs=epochs)
    assert groups.differences(chains) == {}


def test_one_seed_twice_is_no_group(chains):
    twin = copy.deepcopy(chains[0])
    assert groups.differences([*chains, twin]) == {"seed": [0, 1, 0]}


def test_chains_of_other_stages_are_told_apart_by_that_alone(chains):
    found = groups.differences([chains[0], chains[1][:1]])
    assert found == {"stages": [["train", "prune", "finetune"], ["train"]]}


def test_a_strangers_class_is_never_imported_to_look_up_its_defaults(chains, tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for chain in chains:
        chain[0]["config"]["model"] = {"_target_": "stranger.Net", "depth": 3}
    assert groups.differences(chains) == {}
    assert groups.settings(chains[0][0])["model._target_"] == "stranger.Net"


def test_a_run_without_a_config_has_the_settings_of_its_result(chains):
    for chain in chains:
        for run in chain:
            del run["config"]
    assert groups.differences(chains) == {}
    chains[1][1]["ratio"] = 0.7
    assert groups.differences(chains) == {"prune: ratio": [0.5, 0.7]}


def test_the_differing_settings_are_said_in_one_line():
    said = groups.say({"train: epochs": [1, 2], "seed": [0, 0]})
    assert said == "train: epochs (1 / 2), seed (0 / 0)"
    assert groups.say({str(n): [n, None] for n in range(7)}).endswith("4 (4 / -) and 2 more")


def test_the_committed_digits_are_two_groups_of_five():
    results = Path(__file__).parents[2] / "results" / "digits"
    chains = table.chains(find_runs(results))
    assert [*Counter(map(groups.key, chains)).values()] == [5, 5]
    assert json.dumps(groups.of_chain(chains[-1]))
