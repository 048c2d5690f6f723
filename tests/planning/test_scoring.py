"""What each method scores by, against its definition."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from helpers import randomise
from models.mobilenet import MobileNetV2
from models.preresnet import PreResNet
from models.resnet import ResNet
from models.vgg import VGG
from slimming import plan, slim, trace
from slimming.methods.fpgm import FPGM
from slimming.methods.l1_norm import L1Norm
from slimming.methods.l2_norm import L2Norm
from slimming.methods.taylor import Taylor
from slimming.methods.uniform import Uniform

X = torch.zeros(2, 3, 16, 16)


class Plain(nn.Module):
    """Two layers, and a stream that two layers write."""

    def __init__(self):
        super().__init__()
        self.a, self.one = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.b, self.two = nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.c, self.three = nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.end = nn.Linear(6, 4)

    def forward(self, x):
        x = self.one(self.a(x)).relu()
        x = self.two(self.b(x)) + self.three(self.c(x))
        return self.end(x.relu().mean((2, 3)))


def plain(seed: int = 0):
    torch.manual_seed(seed)
    model = randomise(Plain(), seed)
    return model, trace(model, X)


def stream(model: Plain) -> torch.Tensor:
    return torch.cat([model.b.weight.flatten(1), model.c.weight.flatten(1)], 1).double().detach()


@pytest.mark.parametrize(("method", "power"), [(L1Norm(), 1), (L2Norm(), 2)])
def test_a_norm_is_that_of_all_filters_that_make_a_channel(method, power):
    model, graph = plain()
    scores = method.scores(model, graph)
    own = model.a.weight.flatten(1).double().detach()
    assert_close(scores["one"], own.norm(power, 1))
    assert_close(scores["two"], stream(model).norm(power, 1))
    assert torch.equal(scores["two"], scores["three"])


def test_the_distances_of_fpgm_are_those_of_its_equation():
    model, graph = plain()
    scores = FPGM().scores(model, graph)
    for gate, filters in (("one", model.a.weight.flatten(1).double()), ("two", stream(model))):
        sums = (filters[:, None] - filters[None]).square().sum(2).sqrt().sum(1)
        assert_close(scores[gate], sums.detach(), rtol=1e-9, atol=1e-9)
    assert torch.equal(scores["two"], scores["three"])


def test_filters_that_others_can_stand_in_for_go_first():
    model, graph = plain()
    with torch.no_grad():
        model.a.weight[[1, 4, 6]] = model.a.weight[1].clone()
    scores = FPGM().scores(model, graph)["one"]
    assert {*scores.argsort()[:3].tolist()} == {1, 4, 6}
    order = torch.randperm(8)
    with torch.no_grad():
        model.a.weight.copy_(model.a.weight[order])
    assert_close(FPGM().scores(model, graph)["one"], scores[order])


@pytest.mark.parametrize(
    "build",
    [lambda: PreResNet(depth=11), lambda: ResNet(depth=8), lambda: MobileNetV2(width=0.25)],
    ids=["PreResNet", "ResNet", "MobileNetV2"],
)
@pytest.mark.parametrize("method", [FPGM(), L2Norm(), Uniform()], ids=lambda m: type(m).__name__)
def test_every_channel_of_selections_streams_and_depthwise_layers_is_scored(build, method):
    model = build()
    graph = trace(model, X)
    scores = method.scores(model, graph)
    for gate, channels in graph.gates.items():
        assert scores[gate].shape == channels.shape and (scores[gate] > 0).all()
    whole = torch.cat([*graph.gates.values()])
    values = torch.cat([scores[gate] for gate in graph.gates])
    for channel in whole.unique()[::7]:
        assert len(values[whole == channel].unique()) == 1, "what goes together has one score"


def test_uniform_is_the_narrower_network():
    model, narrow = VGG(depth=11, width=0.5), VGG(depth=11, width=0.25)
    graph = trace(model, torch.zeros(2, 3, 32, 32))
    keep = plan(graph, Uniform().scores(model, graph), 0.5, scope="layer")
    for kept in keep.values():
        assert kept.tolist() == [*range(len(kept))]
    shapes = {name: tensor.shape for name, tensor in slim(model, graph, keep).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in narrow.state_dict().items()}


class Gated(nn.Module):
    """A BatchNorm and the gate behind it."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm, self.gate = norm, nn.Parameter(torch.ones(norm.num_features).double())

    def forward(self, x):
        return self.norm(x) * self.gate[:, None, None]


def batches(number: int = 3) -> list:
    torch.manual_seed(7)
    return [(torch.randn(8, 3, 16, 16).double(), torch.randint(0, 4, (8,))) for _ in range(number)]


def test_taylor_is_the_squared_gradient_of_a_gate_behind_the_batchnorm():
    model, graph = plain()
    model = model.double().train()
    scores = Taylor().scores(model, graph, batches())
    gated = copy.deepcopy(model).eval()
    gated.one = Gated(gated.one)
    gate = nn.Parameter(torch.ones(6).double())  # one for both that write the stream
    gated.two, gated.three = Gated(gated.two), Gated(gated.three)
    gated.two.gate = gated.three.gate = gate
    want = {"one": 0, "two": 0}
    for images, labels in batches():
        gated.zero_grad()
        F.cross_entropy(gated(images), labels).backward()
        want = {
            name: total + getattr(gated, name).gate.grad.square() / 3
            for name, total in want.items()
        }
    assert_close(scores["one"], want["one"], rtol=1e-9, atol=1e-15)
    assert_close(scores["two"], want["two"], rtol=1e-9, atol=1e-15)
    assert torch.equal(scores["two"], scores["three"])
    assert model.training and all(p.grad is None for p in model.parameters()), "untouched"


def test_taylor_is_what_removing_a_little_of_a_channel_does_to_the_loss():
    model, graph = plain(3)
    model, (images, labels) = model.double().eval(), batches(1)[0]
    scores = Taylor().scores(model, graph, [(images, labels)])["one"]

    def loss(channel: int, factor: float) -> float:
        less = copy.deepcopy(model)
        with torch.no_grad():
            less.one.weight[channel] *= factor
            less.one.bias[channel] *= factor
            return float(F.cross_entropy(less(images), labels))

    for channel in range(8):
        slope = (loss(channel, 1 + 1e-5) - loss(channel, 1 - 1e-5)) / 2e-5
        assert slope**2 == pytest.approx(float(scores[channel]), rel=1e-5, abs=1e-12)


def test_taylor_needs_labels():
    model, graph = plain()
    with pytest.raises(ValueError, match="it needs batches of images and labels"):
        Taylor().scores(model, graph)
