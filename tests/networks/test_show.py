"""What a cut would do, on the terminal."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from models.preresnet import PreResNet
from slimming import Slimming, plan, trace
from utils.networks.show import show_plan


@pytest.mark.parametrize("width", [80, 120])
def test_no_number_is_cut_in_a_narrow_window(width, capsys, monkeypatch):
    """Names as long as those of torchvision's networks, and layers of a thousand channels."""
    monkeypatch.setenv("COLUMNS", str(width))
    model = nn.Sequential(OrderedDict(a_backbone_with_a_name=PreResNet(depth=20, width=16)))
    graph = trace(model, torch.zeros(2, 3, 8, 8))
    scores = Slimming().scores(model, graph)
    keep = plan(graph, scores, ratio=0.5)
    show_plan(model, graph, scores, keep)
    said = capsys.readouterr().out
    assert (
        "…" not in said and max(map(len, said.partition("of the scores")[0].splitlines())) <= width
    )
    assert all(f"{len(keep[g])} / {len(ids)}" in said for g, ids in graph.gates.items())
    assert max(len(ids) for ids in graph.gates.values()) >= 1000
    assert ("25 %" in said) == (width == 120) and "median" in said
