"""What joins several layers may lose many channels, each of the layers keeps some."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import random_scores, randomise
from slimming import plan, safe_ratio, slim, trace, verify

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Fire(nn.Module):
    """SqueezeNet's module with a BatchNorm: it reads what two convolutions write side by side."""

    def __init__(self, last: bool = False):
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.one, self.three = nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16) if last else nn.Identity()
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        x = torch.cat([self.one(x), self.three(x)], 1)
        return self.fc(F.relu(self.depthwise(self.bn(x))).mean((2, 3)))


def octave() -> nn.Module:
    """Four convolutions of different widths behind one BatchNorm (MixConv)."""

    class Mix(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Conv2d(3, n, 2 * i + 1, padding=i) for i, n in WIDTHS)
            self.bn, self.out = nn.BatchNorm2d(13), nn.Conv2d(13, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.bn(torch.cat([part(x) for part in self.parts], 1)).relu())

    return Mix()


WIDTHS = ((0, 7), (1, 3), (2, 2), (3, 1))


def favours_three(graph) -> dict[str, Tensor]:
    """Scores under which every channel of `one` is weaker than all others."""
    weak, strong = torch.linspace(0.01, 0.02, 8), torch.linspace(0.5, 1, 8)
    return {"squeeze.1": torch.linspace(0.4, 0.9, 6), "bn": torch.cat([weak, strong])}


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("options", [{}, {"floor": 0.25}, {"dead": "bypass"}, {"round_to": 4}])
def test_a_convolution_in_front_of_a_concatenation_keeps_a_filter(options, depthwise):
    torch.manual_seed(0)
    model = randomise(Fire(depthwise)).eval()
    graph = trace(model, IMAGE)
    keep = plan(graph, favours_three(graph), 0.5, **options)
    least = {"floor": 2, "round_to": 4}.get(next(iter(options), ""), 1)
    assert sum(keep["bn"] < 8) >= least and sum(keep["bn"] >= 8) >= least
    thin = slim(model, graph, keep)
    assert thin.one.out_channels >= least
    assert verify(model, graph, keep, thin, IMAGE).holds


def test_the_ranking_that_empties_one_of_them_is_no_safe_one():
    graph = trace(Fire(), IMAGE)
    scores = favours_three(graph)
    safe = safe_ratio(graph, scores)
    assert plan(graph, scores, 0.1).safe_ratio == safe == pytest.approx(7 / 22)
    assert plan(graph, scores, safe, dead="error").shortfalls == ()
    with pytest.raises(ValueError, match=r"'bn' \(of one\) would lose every channel"):
        plan(graph, scores, 8 / 22, dead="error")


@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.99])
@pytest.mark.parametrize("seed", range(5))
def test_however_many_convolutions_a_batchnorm_joins_the_thin_network_runs(ratio, seed):
    model = randomise(octave(), seed).eval()
    graph = trace(model, IMAGE)
    keep = plan(graph, random_scores(graph, seed), ratio)
    assert keep.kept == max(13 - int(13 * ratio), len(WIDTHS))
    thin = slim(model, graph, keep)
    assert verify(model, graph, keep, thin, IMAGE).holds


def test_a_target_too_leaves_each_of_them_a_filter():
    model = randomise(octave()).eval()
    graph = trace(model, IMAGE)
    least = plan(graph, random_scores(graph), 0.99)
    with pytest.raises(ValueError, match="can't be reached"):
        plan(graph, random_scores(graph), target={"macs": least.macs - 1})
    keep = plan(graph, random_scores(graph), target={"macs": least.macs})
    assert keep.kept == len(WIDTHS)


def test_a_plan_made_by_hand_that_empties_one_is_refused():
    graph = trace(model := Fire(), IMAGE)
    with pytest.raises(ValueError, match="one.weight would lose every channel"):
        slim(model, graph, {"bn": torch.arange(8, 16)})


def test_one_of_them_can_be_left_alone():
    graph = trace(Fire(), IMAGE)
    keep = plan(graph, favours_three(graph), 0.5, exclude=["one"])
    assert keep["bn"][:8].tolist() == list(range(8)) and keep.kept == 22 - 7
