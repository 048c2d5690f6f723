"""A folded network computes what the network computes, with fewer BatchNorms."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._pytree import tree_leaves

from helpers import (
    assert_same_state,
    configured,
    configured_networks,
    norms,
    random_plan,
    random_scores,
    randomise,
    relative_gap,
    state,
)
from slimming import plan, slim, trace
from slimming.modules.bypass import Constant
from slimming.modules.selection import gather, selects
from slimming.surgery.fold import fold
from zoo import PICTURE, ZOO, PreActivation, Twice, block, chain, conv


def check(model: nn.Module, *shape: int) -> nn.Module:
    """The folded copy of a network in float64 and eval mode, after comparing their outputs."""
    model = randomise(model.double()).eval()
    images = torch.randn(3, *shape, dtype=torch.float64)
    folded = fold(model, images)
    with torch.no_grad():
        got, expected = tree_leaves(folded(images)), tree_leaves(model(images))
    for a, b in zip(got, expected, strict=True):
        assert relative_gap(a, b) < 1e-12
    return folded


def shape_of(name: str) -> tuple[int, ...]:
    arguments = configured_networks()[name][1]
    return tuple(arguments.get("input_shape", (arguments.get("in_channels", 3), 16, 16)))


@pytest.mark.parametrize("name", configured_networks())
def test_every_network_folds_dense_and_thin(name):
    model, shape = configured(name), shape_of(name)
    graph = trace(model, torch.zeros(1, *shape))
    thin = slim(model, graph, random_plan(graph, 0.5))
    read_a_stream = set(graph.selecting)  # pre-activation: nothing that could take them in front
    for network in (model, thin):
        assert set(norms(check(network, *shape))) == read_a_stream


@pytest.mark.parametrize("name", ZOO)
def test_every_turn_of_the_zoo_folds(name):
    make, shape = ZOO[name]
    check(make(), *shape)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (lambda bias: nn.Linear(4, 6, bias), nn.BatchNorm1d, (4,)),
        (lambda bias: nn.Conv1d(4, 6, 3, bias=bias), nn.BatchNorm1d, (4, 5)),
        (lambda bias: nn.Conv2d(4, 6, 3, padding=1, bias=bias), nn.BatchNorm2d, (4, 5, 5)),
        (lambda bias: nn.Conv2d(4, 6, 3, groups=2, bias=bias), nn.BatchNorm2d, (4, 5, 5)),
        (lambda bias: nn.Conv3d(4, 6, 2, bias=bias), nn.BatchNorm3d, (4, 3, 3, 3)),
        (lambda bias: nn.ConvTranspose2d(4, 6, 3, 2, bias=bias), nn.BatchNorm2d, (4, 5, 5)),
        (lambda b: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=b), nn.BatchNorm2d, (4, 5, 5)),
    ],
)
def test_every_kind_of_layer_takes_its_norm(layer, norm, shape, affine, bias):
    folded = check(chain(layer(bias), norm(6, affine=affine, eps=0.1), nn.ReLU()), *shape)
    assert isinstance(folded[1], nn.Identity) and folded[0].bias is not None


class OverPositions(nn.Module):
    """The norm of a sequence behind a linear layer has the positions as its channels."""

    def __init__(self, positions: int):
        super().__init__()
        self.fc, self.bn = nn.Linear(4, 5), nn.BatchNorm1d(positions)

    def forward(self, x):
        return self.bn(self.fc(x))


class Between(nn.Module):
    """What the convolution makes is read by the norm and by somebody else."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv(3, 6), nn.BatchNorm2d(6)

    def forward(self, x):
        x = self.conv(x)
        return self.bn(x) * torch.sigmoid(x)


class Own(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight.abs(), padding=1)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: OverPositions(5), (5, 4)),  # as many positions as outputs
        (lambda: OverPositions(7), (7, 4)),
        (Between, PICTURE),
        (lambda: chain(conv(3, 6), nn.ReLU(), nn.BatchNorm2d(6)), PICTURE),
        (lambda: chain(conv(3, 6), nn.BatchNorm2d(6, track_running_stats=False)), PICTURE),
        (lambda: chain(Own(3, 6, 3, bias=False), nn.BatchNorm2d(6)), PICTURE),
        (lambda: chain(weight_norm(conv(3, 6)), nn.BatchNorm2d(6)), PICTURE),
    ],
)
def test_a_norm_that_must_not_be_folded_stays(make, shape):
    assert len(norms(check(make(), *shape))) == 1


def test_layers_that_are_called_twice_are_left_alone():
    folded = check(Twice(), *PICTURE)
    assert list(norms(folded)) == ["bn"]


def test_one_of_two_layers_with_the_same_weight_can_be_folded():
    model = chain(*block(4, 4), conv(4, 4), nn.Sigmoid())
    model[3].weight = model[0].weight
    folded = check(model, 4, 5, 5)
    assert not norms(folded) and torch.equal(folded[3].weight, model[0].weight)


def test_the_network_is_not_changed_and_its_copy_keeps_type_and_layout():
    model = randomise(chain(*block(3, 6), *block(6, 5))).to(memory_format=torch.channels_last)
    model.train()
    before = state(model)
    folded = fold(model.half(), torch.zeros(2, 3, 8, 8))
    assert_same_state(model.float().state_dict(), {k: v.half().to(v) for k, v in before.items()})
    assert model.training and not any(module.training for module in folded.modules())
    assert {p.dtype for p in folded.parameters()} == {torch.float16}
    assert folded[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_thin_network_keeps_its_selections():
    model = randomise(PreActivation())
    graph = trace(model, torch.zeros(1, *PICTURE))
    folded = check(slim(model, graph, random_plan(graph, 0.5)), *PICTURE)
    assert set(norms(folded)) == {"bn1a", "bn2a", "bn"}


@pytest.mark.parametrize(("dropped", "stays"), [([1], False), ([0, 2, 3, 5, 6, 7], True)])
def test_a_selection_that_drops_few_channels_becomes_zeros_in_the_weights(dropped, stays):
    model = randomise(PreActivation())
    graph = trace(model, torch.zeros(1, *PICTURE))
    few = torch.tensor([i for i in range(8) if i not in dropped])
    thin = slim(model, graph, {**random_plan(graph, 0), "bn1a": few})
    folded = check(thin, *PICTURE)
    assert selects(thin.bn1a) and selects(folded.bn1a) == stays
    assert folded.conv1a.weight.shape[1] == folded.conv1a.in_channels == (len(few) if stays else 8)
    assert thin.conv1a.in_channels == len(few)
    if not stays:
        assert not folded.conv1a.weight[:, dropped].any()


def test_a_network_without_some_branches_and_stream_channels_folds():
    model, shape = configured("preresnet164"), shape_of("preresnet164")
    graph = trace(model, torch.zeros(1, *shape))
    scores = random_scores(graph)
    for gate in graph.branches[0].gates:
        scores[gate] = torch.zeros_like(scores[gate])
    thin = slim(model, graph, plan(graph, scores, 0.6, dead="bypass", unread="remove"))
    assert any(isinstance(module, Constant) for module in thin.modules())
    check(thin, *shape)


@pytest.mark.parametrize("name", ["preresnet164", "densenet40"])
@pytest.mark.parametrize("ratio", [0.1, 0.8])
def test_selections_fold_where_they_drop_few_channels(name, ratio):
    model, shape = configured(name), shape_of(name)
    graph = trace(model, torch.zeros(1, *shape))
    thin = slim(model, graph, random_plan(graph, ratio, scope="layer"))
    left = [selects(module) for module in check(thin, *shape).modules()]
    assert any(left) == (ratio > 0.5)


def test_a_selection_stays_where_others_pass_its_channels_on():
    """A depthwise convolution, a sum, a concatenation: zeros in one layer's weights don't do."""

    class Passing(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = conv(3, 8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
            self.depthwise, self.c = conv(8, 8, groups=8), conv(8, 4)
            self.d, self.fc = conv(16, 4), nn.Linear(8, 5)

        def forward(self, x):
            x = self.stem(x)
            a, b = F.relu(self.a(x)), F.relu(self.b(x))
            y = self.d(torch.cat([b, x], 1)) + self.c(self.depthwise(a))
            return self.fc(torch.cat([y, self.c(a)], 1).mean((2, 3)))

    model = randomise(Passing())
    graph = trace(model, torch.zeros(1, *PICTURE))
    keep = {**random_plan(graph, 0), "a": torch.arange(7), "b": torch.arange(1, 8)}
    folded = check(slim(model, graph, keep), *PICTURE)
    assert selects(folded.a) and selects(folded.b)


def test_a_weight_that_is_used_outside_its_layer_is_left_alone():
    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = conv(3, 6), nn.BatchNorm2d(6)

        def forward(self, x):
            return self.bn(self.conv(x)) + F.conv2d(x, self.conv.weight, padding=1)

    folded = check(randomise(Shares()), *PICTURE)
    assert isinstance(folded.bn, nn.BatchNorm2d)


class Reads(nn.Module):
    """The norm's gamma is also used by itself; `outside`: how."""

    def __init__(self, outside):
        super().__init__()
        self.conv, self.bn, self.outside = conv(3, 6), nn.BatchNorm2d(6), outside

    def forward(self, x):
        return self.bn(self.conv(x)) * self.outside(self.bn)


@pytest.mark.parametrize(
    "outside", [lambda bn: bn.weight.abs().sum(), lambda bn: bn.bias.norm(), lambda bn: bn.eps]
)
def test_a_norm_that_the_code_reads_elsewhere_is_left_alone(outside):
    assert isinstance(check(Reads(outside), *PICTURE).bn, nn.BatchNorm2d)


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize(
    "add",
    [
        lambda m: m.register_forward_hook(lambda module, args, output: output.clamp(-1, 1)),
        lambda m: m.register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
    ],
)
def test_a_layer_with_a_hook_is_left_alone(where, add):
    model = chain(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4), nn.BatchNorm2d(4))
    add(model[where])
    assert list(norms(check(model, *PICTURE))) == ["1"]


class Float32(nn.Module):
    """Insists on float32, so that nothing can be compared in float64."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = conv(3, 6), nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(F.relu(self.bn(self.conv(x))).mean((2, 3)).float())


class Draws(nn.Module):
    """Random in eval mode, too."""

    def __init__(self):
        super().__init__()
        self.body = chain(*block(3, 6))

    def forward(self, x):
        return F.dropout(self.body(x), 0.5)


@pytest.mark.parametrize("kind", [Float32, Draws])
def test_networks_that_are_hard_to_compare_fold(kind):
    model, images = randomise(kind()).eval(), torch.randn(3, *PICTURE)
    draws = torch.get_rng_state()
    folded = fold(model, images)
    assert torch.equal(torch.get_rng_state(), draws) and not norms(folded)
    torch.manual_seed(0)
    expected = model(images)
    torch.manual_seed(0)
    assert relative_gap(folded(images), expected) < 1e-5


def test_a_step_that_would_change_the_function_is_left_out_alone(monkeypatch):
    """Whatever the reason; here the graph is wrong about one pair."""
    room = sys.modules[fold.__module__]
    model = randomise(chain(*block(3, 6), *block(6, 6), *block(6, 5))).eval()

    def wrong(model, example):
        graph = trace(model, example)
        graph.folds["3"] = "1"
        return graph

    monkeypatch.setattr(room, "trace", wrong)
    for example in (torch.zeros(2, *PICTURE), torch.zeros(2, *PICTURE, device="meta")):
        folded = fold(model, example)  # of which nothing could be told: random numbers
        images = torch.randn(3, *PICTURE)
        assert relative_gap(folded(images), model(images)) < 1e-5
        assert list(norms(folded)) == ["4"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m: m[1].bias.data.fill_(torch.nan), "returns NaN or infinity"),
        (lambda m: m.append(Nothing()), "returns no tensor"),
    ],
)
def test_what_cannot_be_compared_is_refused(spoil, words):
    model = randomise(chain(*block(3, 6)))
    spoil(model)
    with pytest.raises(ValueError, match=words):
        fold(model, torch.zeros(2, *PICTURE))


class Nothing(nn.Module):
    def forward(self, x):
        return None


def test_what_cannot_be_traced_is_refused():
    with pytest.raises(ValueError, match="can't take an input of shape"):
        fold(randomise(chain(*block(3, 6))), torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 4), (3, 6, 4, 5), (1, 6, 1, 1), (2, 6, 3, 4, 5)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_selecting_keeps_values_gradients_and_layout(shape, channels_last):
    """torch's own index_select leaves channels_last, and every layer behind it pays for that."""
    x = torch.randn(shape)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    x.requires_grad_()
    index = torch.tensor([0, 2, 5])
    got, expected = gather(x, index), x[:, index]
    assert torch.equal(got, expected)
    weight = torch.randn(got.shape)
    (gradient,) = torch.autograd.grad((got * weight).sum(), x)
    (expected,) = torch.autograd.grad((expected * weight).sum(), x)
    assert torch.equal(gradient, expected)
    if len(shape) == 4:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert got.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_network_with_selections_is_exported_for_any_batch(layout):
    model = randomise(PreActivation()).to(memory_format=layout).eval()
    graph = trace(model, torch.zeros(1, *PICTURE))
    thin = slim(model, graph, random_plan(graph, 0.5))
    images = torch.randn(4, *PICTURE).to(memory_format=layout)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(thin, (images[:2],), dynamic_shapes=({0: batch},)).module()
    with torch.no_grad():
        assert relative_gap(exported(images), thin(images)) < 1e-5
