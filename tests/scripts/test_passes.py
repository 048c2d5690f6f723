"""Multi-pass slimming: train sparsely, cut, fine-tune, and again from there (paper, Table 4)."""

import json
from pathlib import Path

import pytest
import torch

from door import TINY, tiny
from pipeline import pipeline
from slimming import load
from slimming.checkpoint import read
from terminal import refusal, terminal
from train import train

CUT = ("ratio=0.5", "floor=0.5", "refill=false", "recalibrate=64")
PASSES = ("epochs=2", "method.strength=0.5", "finetune.epochs=1", *CUT)


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def folders(runs) -> list[Path]:
    return pipeline(tiny("pipeline", runs, *PASSES, "passes=2"))


def test_each_pass_is_three_stages_that_go_on_from_the_last(runs, folders):
    stages = ["train", "prune", "finetune"]
    assert [result(folder)["stage"] for folder in folders] == 2 * stages
    assert [result(folder)["pass"] for folder in folders] == 3 * [1] + 3 * [2]
    parents = [result(folder)["parent"] for folder in folders]
    assert parents == [None, *(folder.name for folder in folders[:-1])]
    assert [entry["stage"] for entry in read(folders[-1]).history] == 2 * stages
    assert "-p2-r0.5" in folders[4].name and "-p2" not in folders[1].name


def test_one_pass_is_the_first_of_several(runs, folders):
    assert pipeline(tiny("pipeline", runs, *PASSES)) == folders[:3]


def test_a_ratio_is_of_the_channels_that_are_left(folders):
    dense, *cuts = (result(folders[i]) for i in (0, 1, 4))
    left = dense["channels"]["total"]
    for cut in cuts:
        assert cut["plan"]["total"] == left
        assert left / 2 <= cut["channels"]["kept"] < left, "at most half of each layer goes"
        left = cut["channels"]["kept"]
    for layer, (once, total) in cuts[0]["widths"].items():
        assert total / 2 <= once and cuts[1]["widths"][layer][0] >= once / 2
    assert cuts[1]["channels"]["total"] == dense["channels"]["total"]


def test_the_second_training_starts_at_the_first_ones_end(runs, folders):
    """Not a step is taken where the learning rate is nothing."""
    still = ("method.strength=0", "recipe.optimizer.lr=0", "epochs=1")
    before, after = (
        read(f).weights
        for f in (folders[2], train(tiny("train", runs, *still, f"ckpt={folders[2]}")))
    )
    assert before.keys() == after.keys()
    for name in before:
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(before[name], after[name]), name


def test_the_network_of_the_last_pass_loads_by_itself(folders):
    network, thin = load(folders[-1]), read(folders[-1])
    kept = {gate: len(kept) for gate, kept in thin.keep.items()}
    assert sum(kept.values()) == result(folders[-1])["channels"]["kept"]
    assert network(torch.zeros(2, *thin.input_shape)).shape == (2, 4)
    assert sum(p.numel() for p in network.parameters()) == result(folders[-1])["params"]


def test_a_repetition_computes_what_is_missing_only(runs, folders, capsys):
    kept = [(folder / "result.json").stat().st_mtime_ns for folder in folders[:-1]]
    weights = read(folders[-1]).weights
    (folders[-1] / "result.json").unlink()
    assert pipeline(tiny("pipeline", runs, *PASSES, "passes=2")) == folders
    assert kept == [(folder / "result.json").stat().st_mtime_ns for folder in folders[:-1]]
    said = capsys.readouterr().out
    assert said.count("is finished") == 5
    assert "pass 2: trained" in said and "fine-tuned" in said
    again = read(folders[-1]).weights
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_dry_run_names_all_stages_of_all_passes_and_does_nothing(tmp_path, capsys):
    cfg = tiny("pipeline", tmp_path, *PASSES, "passes=2")
    cfg.dry_run = True
    named = pipeline(cfg)
    said = capsys.readouterr().out
    assert said.count("would be computed") == 6 and "pass 2: " in said
    assert not list(tmp_path.iterdir())
    cfg.dry_run = False
    assert pipeline(cfg) == named


@pytest.mark.parametrize("passes", ["-1", "1.5", "many"])
def test_passes_are_counted_from_one(tmp_path, passes):
    assert "passes" in refusal("pipeline", f"runs_dir={tmp_path}", f"passes={passes}")
    assert not list(tmp_path.iterdir())


def test_a_dense_network_is_trained_further_on_its_own_data(tmp_path):
    """`train.py ckpt=...` needs no word about the network or the data."""
    dense = train(tiny("train", tmp_path, "method.strength=0", "epochs=1"))
    rest = ("logger=none", "hardware.precision=fp32", f"runs_dir={tmp_path}", "epochs=1")
    code, _, err = terminal("train", *rest, f"ckpt={dense}", "method.strength=0.1")
    assert code == 0, err
    (sparse,) = (folder for folder in tmp_path.glob("[!.]*") if folder != dense)
    said = result(sparse)
    assert said["parent"] == dense.name and said["dataset"] == "fake" and said["strength"] == 0.1
    assert said["pass"] == 1 and said["params"] == result(dense)["params"]
    assert read(sparse).arguments == read(dense).arguments
    assert "leave out model=" in refusal("train", *TINY, *rest, f"ckpt={dense}")
    assert "leave init= out" in refusal("train", *rest, f"ckpt={dense}", f"init={dense}")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("finetune", ("scratch=E", "epochs=3")),
        ("pipeline", ("finetune.scratch=B", "finetune.epochs=3")),
    ],
)
def test_the_epochs_of_a_control_cannot_be_typed(tmp_path, script, words):
    said = refusal(script, *words, f"runs_dir={tmp_path}", "logger=none")
    assert f"says how many epochs there are: leave out {words[1][:-1]}" in said
