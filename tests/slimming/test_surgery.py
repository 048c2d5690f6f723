"""Removing channels equals hiding them: outputs, gradients, and by an oracle without any graph."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from helpers import (
    assert_same_state,
    configured,
    configured_networks,
    norms,
    one_index_wrong,
    random_plan,
    randomise,
    relative_gap,
    state,
    takes,
)
from models.vgg import VGG
from slimming import Plan, compensate, mask, slices, slim, trace, verify
from slimming.checkpoint import compose
from slimming.graph.resize import resize
from slimming.modules.selection import Selecting, name_in, selects
from zoo import ZOO, PreActivation, Residual

CONFIGURED = {f"conf/model/{name}": name for name in configured_networks()}
GRAY = {f"{k}, one channel in": v for k, v in CONFIGURED.items() if takes(v, "in_channels")}
ONE_PER_CLASS = {target: name for name, (target, _) in reversed(configured_networks().items())}
NETWORKS = [*ZOO, *(k for k, v in CONFIGURED.items() if v in ONE_PER_CLASS.values())]
EVERYTHING = [*ZOO, *CONFIGURED, *GRAY]
# Behind a BatchNorm without beta a channel that gives 0 isn't silent, so silencing isn't cutting.
SILENT = [name for name in NETWORKS if name != "BatchNorm without gamma"]


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A randomised network in float64, in training mode, and a batch for it."""
    if name in GRAY:
        return configured(GRAY[name], in_channels=1).double(), pictures(1, 16, 16)
    if name in CONFIGURED:
        return configured(CONFIGURED[name]).double(), pictures(3, 16, 16)
    make, shape = ZOO[name]
    return randomise(make()).double(), pictures(*shape)


def pictures(*shape: int) -> torch.Tensor:
    return torch.randn(4, *shape, dtype=torch.float64)


def outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(model(x)) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", EVERYTHING)
def test_removing_equals_hiding(name):
    model, x = network(name)
    graph = trace(model, x)
    keep = random_plan(graph, 0.5)
    thin, masked = slim(model, graph, keep), mask(model, graph, keep)
    for training in (False, True):
        pair = [outputs(copy.deepcopy(m).train(training), x) for m in (thin, masked)]
        for small, big in zip(*pair, strict=True):
            assert relative_gap(small, big) < 1e-9
    proof = verify(model, graph, keep, thin, x)
    assert proof.holds and proof.relative < 1e-9 and proof.first_difference is None
    # Neither is the dense network: something was cut, and it mattered.
    (dense, *_), (small, *_) = outputs(model.eval(), x), outputs(thin.eval(), x)
    assert keep.kept < keep.total
    assert relative_gap(small, dense) > 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_a_training_step_equal_those_of_the_hidden_network(name):
    model, x = network(name)
    graph = trace(model, x)
    keep = random_plan(graph, 0.5)
    thin, masked = slim(model, graph, keep), mask(model, graph, keep)
    for m in (thin, masked):
        sum(output.square().sum() for output in outputs(m.train(), x)).backward()
    largest = max(p.grad.abs().max() for p in masked.parameters() if p.grad is not None)
    cuts, big = slices(graph, keep), dict(masked.named_parameters())
    named = {name_in(thin, name): name for name in big}
    for parameter_name, small in thin.named_parameters():
        dense_name = named[parameter_name]
        expected = big[dense_name].grad
        if expected is None:
            assert small.grad is None
            continue
        for dim, index in cuts.get(dense_name, []):
            expected = expected.index_select(dim, index)
        torch.testing.assert_close(small.grad, expected, rtol=1e-6, atol=1e-12 * largest.item())


@pytest.mark.parametrize("name", SILENT)
def test_removing_equals_silencing_without_any_graph(name):
    # gamma = beta = 0: the channel gives act(0) = 0, whatever the tracing says.
    model, x = network(name)
    graph = trace(model, x)
    keep = random_plan(graph, 0.5)
    silent = copy.deepcopy(model).eval()
    with torch.no_grad():
        for gate, kept in keep.items():
            goes = torch.ones(len(silent.get_submodule(gate).weight), dtype=torch.bool)
            goes[kept] = False
            silent.get_submodule(gate).weight[goes] = 0
            silent.get_submodule(gate).bias[goes] = 0
    (small, *_), (big, *_) = outputs(slim(model, graph, keep).eval(), x), outputs(silent, x)
    assert relative_gap(small, big) < 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_the_original_stays_as_it_was(name):
    model, x = network(name)
    next(iter(model.modules())).train()
    model.get_submodule(next(iter(norms(model)))).eval()
    before = state(model)
    flags = {n: m.training for n, m in model.named_modules()}
    draws = torch.get_rng_state()
    graph = trace(model, x)
    keep = random_plan(graph, 0.5)
    thin = slim(model, graph, keep)
    mask(model, graph, keep)
    verify(model, graph, keep, thin, x)
    compensate(model, graph, keep, copy.deepcopy(thin), [x], "expected")
    assert_same_state(state(model), before)
    assert {n: m.training for n, m in model.named_modules()} == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), draws)
    assert {n: m.training for n, m in thin.named_modules() if n in flags} == flags
    assert all(m.norm.training == m.training for m in thin.modules() if selects(m))
    selections = {n for n, m in thin.named_modules(remove_duplicate=False) if selects(m)}
    renamed = {name_in(thin, name) for name in before}
    assert set(thin.state_dict()) == renamed | {f"{name}.index" for name in selections}


@pytest.mark.parametrize("name", NETWORKS)
def test_ratio_zero_is_the_same_network(name):
    model, x = network(name)
    graph = trace(model, x)
    thin = slim(model, graph, random_plan(graph, 0))
    assert_same_state(thin.state_dict(), model.state_dict())
    for a, b in zip(outputs(thin.eval(), x), outputs(model.eval(), x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NETWORKS)
def test_cutting_three_times_is_one_cut(name):
    model, x = network(name)
    graph = trace(model, x)
    keep, thin, first_graph = {}, model, graph
    for seed in range(3):
        graph = trace(thin, x)
        then = random_plan(graph, 0.25, seed)
        thin, keep = slim(thin, graph, then), compose(keep, then)
    at_once = slim(model, first_graph, {gate: torch.tensor(kept) for gate, kept in keep.items()})
    assert_same_state(thin.state_dict(), at_once.state_dict())
    assert str(thin) == str(at_once)  # the same modules: nothing nests


MUTATIONS = ["features.0.weight", "features.1.bias", "features.1.running_mean", "features.4.weight"]


@pytest.mark.parametrize("tensor", [*MUTATIONS, "features.5.running_var", "classifier.weight"])
def test_one_wrong_channel_in_one_tensor_fails_and_is_named(tensor):
    model = randomise(VGG(11, width=0.125)).double()
    for norm in norms(model).values():
        nn.init.uniform_(norm.bias, 3.0, 5.0)  # no channel is dead, so each one matters
    x = pictures(3, 32, 32)
    graph = trace(model, x)
    keep = random_plan(graph, 0.5)
    cuts = slices(graph, keep)
    wrong = copy.deepcopy(model)
    resize(wrong, cuts | {tensor: one_index_wrong(graph, cuts, tensor)})
    proof = verify(model, graph, keep, wrong, x)
    assert not proof.holds
    assert proof.first_difference == tensor.rpartition(".")[0]
    assert proof.as_dict()["holds"] is False


def test_a_wrong_channel_behind_a_transposed_convolution_is_named():
    model, x = network("transposed convolution")
    graph = trace(model, x)
    keep = random_plan(graph, 0.5)
    thin = slim(model, graph, keep)
    with torch.no_grad():
        thin[4].weight[0] += 1
    assert verify(model, graph, keep, thin, x).first_difference == "4"


def test_nan_never_passes_for_equal():
    model, x = network("auxiliary head")
    two_heads = nn.Sequential(model.a, TwoOutputs())
    graph = trace(two_heads, x)
    keep = random_plan(graph, 0.5)
    thin = slim(two_heads, graph, keep)
    assert verify(two_heads, graph, keep, thin, x).holds
    with torch.no_grad():
        thin[1].b.weight[0, 0] = float("nan")  # the second output; the first one is right
    proof = verify(two_heads, graph, keep, thin, x)
    assert not proof.holds and proof.first_difference == "1.b"


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 2).double(), nn.Linear(6, 3).double()

    def forward(self, x):
        x = x.mean((2, 3))
        return self.a(x), self.b(x)


def test_verify_sees_both_calls_of_a_layer():
    model, x = network("called twice")
    graph = trace(model, x)
    keep = random_plan(graph, 0.5)
    thin = slim(model, graph, keep)
    before = outputs(thin.eval(), x)[0]
    assert verify(model, graph, keep, thin, x).holds
    with torch.no_grad():
        thin.conv.weight[0] *= 2
    proof = verify(model, graph, keep, thin, x)
    assert proof.first_difference == "conv"
    gap = (outputs(thin, x)[0] - before).abs().max().item()
    assert proof.absolute == pytest.approx(gap, rel=1e-6)


def test_everything_about_the_layers_is_kept():
    model, x = network("conf/model/vgg11")
    model.features[0].weight.requires_grad_(False)
    model.features[1].bias.requires_grad_(False)
    graph = trace(model, x)
    keep = random_plan(graph, 0.5)
    for kind in (torch.float64, torch.bfloat16, torch.float16):
        thin = slim(copy.deepcopy(model).to(kind), graph, keep)
        assert {p.dtype for p in thin.parameters()} == {kind}
        assert not thin.features[0].weight.requires_grad and not thin.features[1].bias.requires_grad
        assert thin.features[4].weight.requires_grad
    thin = slim(model.to("meta"), graph, keep)
    assert {t.device.type for t in thin.state_dict().values()} == {"meta"}


def test_half_precision_networks_are_traced_with_any_example():
    for kind in (torch.float16, torch.bfloat16):
        model = randomise(PreActivation()).to(kind)
        graph = trace(model, torch.zeros(1, 3, 8, 8))
        keep = random_plan(graph, 0.5)
        proof = verify(model, graph, keep, slim(model, graph, keep), torch.randn(2, 3, 8, 8))
        assert proof.holds


def test_modules_agree_with_their_tensors():
    for name in ZOO:
        model, x = network(name)
        graph = trace(model, x)
        for module in slim(model, graph, random_plan(graph, 0.6)).modules():
            if isinstance(module, nn.modules.conv._ConvTransposeNd):
                shape = (module.in_channels, module.out_channels // module.groups)
                assert tuple(module.weight.shape[:2]) == shape
            elif isinstance(module, nn.modules.conv._ConvNd):
                shape = (module.out_channels, module.in_channels // module.groups)
                assert tuple(module.weight.shape[:2]) == shape
            elif isinstance(module, nn.Linear):
                assert tuple(module.weight.shape) == (module.out_features, module.in_features)
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert len(module.running_mean) == module.num_features


def test_statistics_and_the_classifiers_bias_are_cut_along():
    """Peer bug B13: a port forgets the classifier's bias; its pruned accuracies are wrong."""
    model, x = network("conf/model/vgg11")
    nn.init.normal_(model.classifier.bias)
    graph = trace(model, x)
    keep = random_plan(graph, 0.5)
    thin = slim(model, graph, keep)
    assert torch.equal(thin.classifier.bias, model.classifier.bias)
    last = list(keep)[-1]
    assert torch.equal(thin.classifier.weight, model.classifier.weight[:, keep[last]])
    for gate, kept in keep.items():
        big, small = model.get_submodule(gate), thin.get_submodule(gate)
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(getattr(small, tensor), getattr(big, tensor)[kept])
        assert small.num_batches_tracked == big.num_batches_tracked


def test_layers_of_one_channel_work():
    """Peer bug B13: argwhere().squeeze() makes a number out of one index, and a port crashes."""
    model, x = network("conf/model/vgg11")
    graph = trace(model, x)
    keep = {gate: torch.tensor([len(ids) - 1]) for gate, ids in graph.gates.items()}
    thin = slim(model, graph, keep)
    assert verify(model, graph, keep, thin, x).holds
    assert {len(norm.weight) for norm in norms(thin).values()} == {1}
    again = trace(thin, x)
    assert_same_state(slim(thin, again, random_plan(again, 0)).state_dict(), thin.state_dict())


def test_a_thin_network_trains():
    model, x = network("pre-activation")
    graph = trace(model, x)
    thin = slim(model, graph, random_plan(graph, 0.5)).train()
    sgd = torch.optim.SGD(thin.parameters(), 0.01, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = thin(x).square().mean()
        sgd.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in thin.parameters())
        sgd.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_selection_is_a_buffer_and_composes():
    """Peer bug B11: as a Parameter it inflates the counts, and DDP waits for its gradient."""
    model, x = network("pre-activation")
    graph = trace(model, x)
    thin = slim(model, graph, {**random_plan(graph, 0), "bn1a": torch.tensor([1, 3, 4, 6])})
    assert type(thin.bn1a) is Selecting and type(thin.bn1a.norm) is nn.BatchNorm2d
    assert type(thin.bn2a) is nn.BatchNorm2d
    assert "bn1a.index" in dict(thin.named_buffers())
    assert not any("index" in name for name, _ in thin.named_parameters())
    assert thin.stem.out_channels == 8 and thin.conv1a.in_channels == 4
    graph = trace(thin, x)
    again = slim(thin, graph, {**random_plan(graph, 0), "bn1a": torch.tensor([0, 3])})
    assert again.bn1a.index.tolist() == [1, 6]
    assert type(again.bn1a.norm) is nn.BatchNorm2d
    assert thin.bn1a.index.tolist() == [1, 3, 4, 6]


def test_a_plan_or_graph_of_another_network_is_refused():
    model, x = network("residual")
    other, other_x = network("pre-activation")
    graph, other_graph = trace(model, x), trace(other, other_x)
    keep, other_keep = random_plan(graph), random_plan(other_graph)
    for work in (slim, mask):
        with pytest.raises(ValueError, match="traced from another network"):
            work(other, graph, keep)
        with pytest.raises(ValueError, match="plan was made for another network"):
            work(model, graph, other_keep)
    with pytest.raises(ValueError, match=r"traced from another network: '.*' differs"):
        slim(Residual().stem, graph, keep)
    with pytest.raises(ValueError, match="another network"):
        verify(other, graph, keep, other, x)


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"bn9": torch.tensor([0])}, "'bn9' is not a gate"),
        ({"bn2": torch.tensor([], dtype=torch.long)}, "'bn2' keeps"),
        ({"bn1": torch.tensor([0, 7])}, "from 0 to 6"),
        ({"bn1": torch.tensor([-1, 0])}, "from 0 to 6"),
        ({"bn1": torch.tensor([3, 1])}, "'bn1'"),
        ({"bn1": torch.tensor([1, 1, 2])}, "'bn1'"),
        ({"bn2": torch.tensor([0, 1])}, "tied"),
        ({"bn2": torch.tensor([0, 1]), "bn3": torch.tensor([1, 2])}, "tied"),
    ],
)
def test_an_impossible_choice_is_refused(keep, words):
    model, x = network("residual")
    with pytest.raises(ValueError, match=words):
        slim(model, trace(model, x), keep)


def test_a_plan_is_a_mapping():
    model, x = network("residual")
    keep = random_plan(trace(model, x))
    assert isinstance(keep, Plan)
    assert list(keep) == list(dict(keep)) and len(keep) == 4 and "bn1" in keep
