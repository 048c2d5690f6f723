"""The comparison with the peer: its oracle is right, and failures become rows."""

import copy
import json

import pytest
import torch

from benchmarks.coverage import measure, run
from benchmarks.coverage_networks import NETWORKS
from benchmarks.coverage_oracle import TOLERANCE, CannotTell, difference
from benchmarks.coverage_table import equal, met, page
from helpers import random_plan
from slimming import slim, trace


@pytest.fixture(scope="module")
def cut():
    network = NETWORKS["concat, flatten"]
    model = network.build()
    graph = trace(model, torch.randn(2, *network.shape))
    thin = slim(model, graph, random_plan(graph, 0.5))
    return model, thin, torch.randn(2, *network.shape)


def test_a_right_cut_is_recognised_from_the_weights_alone(cut):
    dense, thin, x = cut
    assert difference(dense, thin, x) <= TOLERANCE


@pytest.mark.parametrize("layer", ["both.0", "fc"])
def test_a_layer_that_reads_the_wrong_channels_is_seen(cut, layer):
    dense, thin, x = cut
    wrong = copy.deepcopy(thin)
    weight = wrong.get_submodule(layer).weight
    weight.data = weight.data.roll(1, dims=1)
    assert difference(dense, wrong, x) > 1e-3


def test_no_answer_where_the_rows_are_not_the_originals(cut):
    dense, thin, x = cut
    other = copy.deepcopy(thin)
    other.stem[0].weight.data.add_(1e-3)
    with pytest.raises(CannotTell, match=r"rows of 'stem\.0'"):
        difference(dense, other, x)
    with pytest.raises(CannotTell, match="don't show"):
        difference(dense, dense, x)


def test_a_row_holds_everything_and_a_late_one_says_so(tmp_path):
    measure("computed sizes", "ours", tmp_path / "row.json")
    row = json.loads((tmp_path / "row.json").read_text())
    assert met(row) and equal(row) and row["difference"] <= TOLERANCE
    assert row["eval"] is row["train"] is row["reloads"] is True
    late = run("VGG-19", "ours", limit=0.01)
    assert late["error"] == "not done after 0.01 s"
    about = {"command": "", "commit": "", "machine": {"cpu": ""}}
    about["versions"] = dict.fromkeys(["torch", "torchvision", "torch-pruning"], "")
    rows = {"computed sizes | ours": row, "VGG-19 | ours": late}
    rows = {key: {**said, "commit": key[:3]} for key, said in rows.items()}
    text = page({"about": about, "rows": rows})
    assert "commit com (1 rows), VGG (1 rows)" in text
    assert "- VGG-19, ours: error: not done after 0.01 s" in text
    assert "| budget met | 1 of 2 | 0 of 0 |" in text
