"""A BatchNorm in functional form is penalised, scored, cut, saved and counted as a module is."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from door import tiny
from helpers import relative_gap
from pipeline import pipeline
from slimming import Slimming, Training, compensate, load, plan, slim, trace
from slimming.methods import sparsity
from slimming.methods.sparsity import MODES
from utils.runs.folder import read_result


class Written(nn.Module):
    """The same numbers as a BatchNorm2d, whose gammas go by another name."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        self.gain, self.shift = (nn.Parameter(p.detach().clone()) for p in (norm.weight, norm.bias))
        self.register_buffer("mean", norm.running_mean.clone())
        self.register_buffer("spread", norm.running_var.clone())

    def forward(self, x):
        given = (self.mean, self.spread, self.gain, self.shift, self.training)
        return F.batch_norm(x, *given)


class Net(nn.Module):
    def __init__(self, num_classes: int = 4):
        super().__init__()
        self.a, self.one, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.two, self.layer = nn.BatchNorm2d(8), nn.LayerNorm(num_classes)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.two(self.b(self.one(self.a(x)).relu())).relu()
        return self.layer(self.head(x.mean((2, 3))))


class HalfWritten(Net):
    def __init__(self, num_classes: int = 4):
        super().__init__(num_classes)
        self.one = Written(self.one)


class WhollyWritten(HalfWritten):
    def __init__(self, num_classes: int = 4):
        super().__init__(num_classes)
        self.two = Written(self.two)


def twins() -> tuple[Net, HalfWritten]:
    torch.manual_seed(0)
    net, other = Net().double(), HalfWritten().double()
    for norm in (net.one, net.two):
        nn.init.uniform_(norm.weight, -0.5, 1)
    other.one = Written(net.one)
    rest = {name: t for name, t in net.state_dict().items() if not name.startswith("one.")}
    other.load_state_dict(rest, strict=False)
    return net, other


def steps(model: nn.Module, method: Slimming) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64)
    t = Training(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), x[:2])
    method.start(t)
    for _ in range(3):
        t.optimizer.zero_grad()
        method.loss(t, (x, torch.arange(8) % 4))[0].backward()
        method.after_backward(t)
        t.optimizer.step()
        method.after_step(t)
    return model


@pytest.mark.parametrize("mode", MODES)
def test_its_gammas_go_the_way_of_a_modules(mode):
    net, other = twins()
    before = net.one.weight.detach().clone()
    plain = steps(copy.deepcopy(net), Slimming(0.0)).one.weight
    method = Slimming(0.05, mode)
    found = steps(other, method).one.gain
    assert torch.allclose(found, steps(net, Slimming(0.05, mode)).one.weight, rtol=0, atol=1e-12)
    assert not torch.allclose(found, plain, atol=1e-3) and not torch.equal(found, before)
    assert method.functional == ["one.gain"], "layer norms aren't penalised"
    again = Slimming(0.05, mode)
    again.load_state_dict(method.state_dict())
    assert again.functional == method.functional


def test_a_network_of_modules_is_not_run_to_look_for_more(monkeypatch):
    monkeypatch.setattr(sparsity, "trace", None)
    assert sparsity.find_functional(Net(), torch.zeros(2, 3, 8, 8)) == []
    assert sparsity.find_functional(HalfWritten(), None) == []  # in a loop of one's own


def test_looking_draws_nothing():
    model = HalfWritten()
    model.dropout = nn.Dropout(0.5)
    model.register_forward_hook(lambda module, _, y: module.dropout(y))
    draws = torch.get_rng_state()
    assert sparsity.find_functional(model, torch.zeros(2, 3, 8, 8)) == ["one.gain"]
    assert torch.equal(torch.get_rng_state(), draws)


def test_a_network_that_cannot_be_traced_trains_all_the_same():
    assert sparsity.find_functional(HalfWritten(), torch.zeros(2, 5, 8, 8)) == []


def test_scores_and_compensation_are_those_of_a_module():
    thin = {}
    for model in twins():
        x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
        graph = trace(model.eval(), x)
        scores = Slimming().scores(model, graph)
        keep = plan(graph, scores, 0.4)
        thin[type(model)] = slim(model, graph, keep)
        compensate(model, graph, keep, thin[type(model)], [x], "bias")
    assert relative_gap(thin[Net](x), thin[HalfWritten](x)) < 1e-12


@pytest.mark.parametrize("network", ["HalfWritten", "WhollyWritten"])
def test_a_pipeline_trains_cuts_and_tunes_it(tmp_path, network):
    options = ("method.strength=0.01", "ratio=0.5", "epochs=2", "recipe.lr_gamma=0.05")
    if network == "WhollyWritten":
        options = options[:-1]
    cfg = tiny("pipeline", tmp_path, *options)
    cfg.model = {"_target_": f"test_functional.{network}"}
    *_, cut, tuned = folders = pipeline(cfg)
    found = read_result(cut)
    kept = found["plan"]["keep"]["one.gain"]
    for folder in (cut, tuned):
        result = read_result(folder)
        assert result["channels"] == {"kept": 8, "total": 16}
        assert result["widths"]["one.gain"] == [len(kept), 8]
        thin = load(folder, allow=["test_functional"])
        assert len(thin.one.gain) == len(kept) and thin(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    rows = [row for row in (folders[0] / "metrics.jsonl").read_text().splitlines() if row]
    assert all('"one.gain"' in row for row in rows)


def test_without_any_gammas_there_is_nothing_to_slim():
    t = Training(nn.Linear(2, 2), None, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="no BatchNorm with a gamma"):
        Slimming(0.1).start(t)
    Slimming(0.0).start(t)
