"""What a channel costs, in the ranking and in the penalty."""

import itertools

import pytest
import torch
from torch import nn

from helpers import randomise
from models.densenet import DenseNet
from models.mobilenet import MobileNetV2
from models.preresnet import PreResNet
from models.vgg import VGG
from slimming import Slimming, plan, slim, trace
from slimming.graph.slices import alive as left_by
from slimming.methods.base import Training
from slimming.methods.sparsity import MODES
from slimming.planning.costs import MarginalCosts, by_cost
from slimming.planning.counting import Counter, predict
from slimming.planning.layers import find_layers
from slimming.planning.ranking import rank
from utils.networks.cost import count_macs

X = torch.zeros(2, 3, 32, 32)
NETWORKS = {
    "VGG": lambda: VGG(depth=11, width=0.125),
    "PreResNet": lambda: PreResNet(depth=11),
    "DenseNet": lambda: DenseNet(depth=13),
    "MobileNetV2": lambda: MobileNetV2(width=0.25),
}


def drawn(name: str, seed: int = 0):
    """A network, its graph and the scores of random gammas."""
    torch.manual_seed(seed)
    model = randomise(NETWORKS[name](), seed)
    graph = trace(model, X)
    return model, graph, Slimming().scores(model, graph)


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_channel_costs_what_goes_with_it(name, cost):
    """Sums of products are affine in each width: one channel frees what the derivative says,
    but for products that hold the layer twice (a square), where it is the mean of two channels."""
    _, graph, scores = drawn(name)
    layers, layer_of = find_layers(graph)
    count, which = Counter(graph, unread=False), ("params", "macs").index(cost)
    ranking, marginal = rank(graph, scores, "global", "max"), MarginalCosts(graph, cost)
    removed = [layer.size // 3 for layer in layers]
    left = marginal.sizes - torch.tensor(removed)
    found = marginal(left)
    for layer in range(len(layers)):
        around = []
        for step in (-1, 1):
            changed = [n + step * (i == layer) for i, n in enumerate(removed)]
            around.append(count(ranking.stays(changed))[which])
        assert (around[0] - around[1]) / 2 == pytest.approx(float(found[layer]), rel=1e-9, abs=1)


@pytest.mark.parametrize("target", [{"macs": 0.5}, {"macs": 0.3}, {"params": 0.2}, {"macs": 0.77}])
@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_budget_is_met_and_what_was_planned_is_counted(name, cost, target):
    model, graph, scores = drawn(name)
    keep = plan(graph, scores, target=target, cost=cost)
    thin, dense = slim(model, graph, keep), dict(zip(("params", "macs"), predict(graph, {})))
    found = {
        "params": sum(p.numel() for p in thin.parameters()),
        "macs": count_macs(thin, (3, 32, 32)),
    }
    assert (keep.params, keep.macs) == (found["params"], found["macs"])
    for key, share in target.items():
        assert 0.97 * share * dense[key] <= found[key] <= share * dense[key]


def test_a_layer_keeps_its_strongest_and_all_of_it_goes_in_some_order():
    _, graph, scores = drawn("VGG")
    plain = rank(graph, scores, "global", "max")
    for power in (0.0, 0.5, 1.0, 2.0):
        ranking = by_cost(graph, plain, "macs", power)
        assert sorted(ranking.sequence) == sorted(plain.sequence)
        assert (ranking.sequence == plain.sequence) == (power == 0.0)
    keep = plan(graph, scores, target={"macs": 0.4}, cost="macs")
    for gate, score in scores.items():
        stays = torch.zeros(len(score), dtype=torch.bool)
        stays[keep[gate]] = True
        assert stays.all() or score[stays].min() >= score[~stays].max()


class Two(nn.Module):
    """Two layers of which a channel costs 1 : `apart`."""

    def __init__(self, widths=(6, 6), apart=1):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, widths[0], 1), nn.Conv2d(1, widths[1], 1)
        self.one, self.two = nn.BatchNorm2d(widths[0]), nn.BatchNorm2d(widths[1])
        self.c, self.d = nn.Conv2d(widths[0], 2, 1), nn.Conv2d(widths[1], 2, 1)
        self.apart = apart

    def forward(self, x):
        large = x.repeat(1, 1, 1, self.apart)
        return self.c(self.one(self.a(x))).sum((2, 3)) + self.d(self.two(self.b(large))).sum((2, 3))


def test_where_all_cost_the_same_it_is_the_paper():
    model = Two()
    graph = trace(model, torch.zeros(2, 1, 4, 4))
    for seed in range(10):
        torch.manual_seed(seed)
        scores = {gate: torch.rand(6) for gate in graph.gates}
        for ratio in (0.2, 0.5, 0.8):
            ours = plan(graph, scores, ratio, cost="macs", cost_power=1.0)
            assert {g: k.tolist() for g, k in ours.items()} == {
                g: k.tolist() for g, k in plan(graph, scores, ratio).items()
            }


@pytest.mark.parametrize("apart", [2, 3, 7])
def test_it_is_within_one_channel_of_the_best_of_all_choices(apart):
    """Exhaustively: the most score within the budget, at least one channel in each layer."""
    model = Two((5, 7), apart)
    graph = trace(model, torch.zeros(2, 1, 4, 4))
    dense = predict(graph, {})[1]
    for seed in range(12):
        torch.manual_seed(seed)
        scores = {gate: torch.rand(len(ids)) for gate, ids in graph.gates.items()}
        most = max(float(score.max()) for score in scores.values())
        for share in (0.3, 0.5, 0.8):
            keep = plan(graph, scores, target={"macs": share}, cost="macs", cost_power=1.0)
            got = sum(float(scores[gate][kept].sum()) for gate, kept in keep.items())
            best = 0.0
            for many in itertools.product(range(1, 6), range(1, 8)):
                chosen = {
                    gate: scores[gate].argsort(descending=True)[:n].sort().values
                    for gate, n in zip(graph.gates, many)
                }
                count = Counter(graph, unread=False)(left_by(graph, chosen))[1]
                if count <= share * dense:
                    best = max(best, sum(float(scores[g][k].sum()) for g, k in chosen.items()))
            assert best - most <= got <= best + 1e-6


def test_what_cannot_be_weighed_is_refused():
    _, graph, scores = drawn("VGG")
    below = {gate: score - 1 for gate, score in scores.items()}
    with pytest.raises(ValueError, match="scores below 0 can't be weighed against a cost"):
        plan(graph, below, 0.5, cost="macs")
    with pytest.raises(ValueError, match="cost=macs ranks all layers together; scope=layer"):
        plan(graph, scores, 0.5, cost="macs", scope="layer")
    for wrong in ("MACs", "flops", None):
        with pytest.raises(ValueError, match="cost is one of none, macs, params"):
            plan(graph, scores, 0.5, cost=wrong)
    for wrong in (-1, float("nan"), "much", True):
        with pytest.raises(ValueError, match="cost_power is a number from 0 on"):
            plan(graph, scores, 0.5, cost="macs", cost_power=wrong)
        with pytest.raises(ValueError, match="cost_power is a number from 0 on"):
            Slimming(cost="macs", cost_power=wrong)


def started(model: nn.Module, **options) -> tuple[Slimming, Training]:
    method = Slimming(strength=0.1, **options)
    t = Training(model, torch.optim.SGD(model.parameters(), lr=0.5), X)
    method.start(t)
    return method, t


@pytest.mark.parametrize("mode", MODES)
def test_lambda_follows_the_cost_and_its_mean_is_lambda(mode):
    model, graph, _ = drawn("VGG")
    method, t = started(model, cost="macs", cost_power=1.0, mode=mode)
    weights = torch.cat([method.weights[gate] for gate in graph.gates])
    assert weights.mean().item() == pytest.approx(1.0)
    alive = [int((model.get_submodule(gate).weight.abs() > 0.01).sum()) for gate in graph.gates]
    price = MarginalCosts(graph, "macs")(torch.tensor(alive))
    ratio = [float(method.weights[gate][0]) for gate in graph.gates]
    assert torch.allclose(torch.tensor(ratio) / ratio[0], (price / price[0]).float(), rtol=1e-5)
    before = {gate: model.get_submodule(gate).weight.detach().clone() for gate in graph.gates}
    loss, cross_entropy, _ = method.loss(t, (torch.randn(4, 3, 32, 32), torch.arange(4)))
    (loss - cross_entropy).backward()  # the penalty alone
    method.after_backward(t)
    t.optimizer.step()
    method.after_step(t)
    for gate, old in before.items():
        moved = (old - model.get_submodule(gate).weight.detach()).abs()
        expected = (0.5 * 0.1 * method.weights[gate]).expand_as(moved)
        if mode == "proximal":
            expected = torch.minimum(expected, old.abs())
        assert torch.allclose(moved, expected, atol=1e-6), gate


def test_dead_neighbours_make_a_channel_cheaper_and_what_stays_has_no_penalty():
    model = PreResNet(depth=11)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(0.5)
    method, t = started(model, cost="macs")
    assert set(method.weights) == set(method._graph.gates)
    gates = [gate for gate in method.weights if len(method.weights[gate].unique()) == 1]
    first, second = gates[1], gates[2]
    before = method.weights[second][0] / method.weights[gates[-1]][0]
    with torch.no_grad():
        model.get_submodule(first).weight[2:] = 0.001
    method.after_epoch(t)
    assert method.weights[second][0] / method.weights[gates[-1]][0] < before


def test_where_nothing_can_be_cut_no_penalty_is_left_out_in_silence():
    with pytest.raises(ValueError, match="cost=macs weighs .* this network has none"):
        started(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), cost="macs")


def test_a_loop_of_ones_own_calls_the_moments():
    model = VGG(depth=11, width=0.125)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="cost='macs' is counted in `start`"):
        Slimming(strength=1e-3, cost="macs").attach(model, optimizer)
