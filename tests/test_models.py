"""Our own networks: the paper's counts, and every yaml builds something that can be cut."""

import pytest
import torch
from torch import nn

from door import config
from models.mlp import MLP
from models.vgg import LAYERS, VGG
from slimming import Slimming, plan, slim, trace, verify
from utils import stages
from utils.cli import CONF
from utils.cost import count
from utils.data import fake, mnist

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


def test_vgg19_has_the_papers_parameters_and_macs():
    """20.04M and 7.97e8 FLOPs (2 x MACs) in Table 1; the exact numbers by arithmetic."""
    with torch.device("meta"):
        costs = [count(VGG(19, classes), (3, 32, 32)) for classes in (10, 100)]
    assert [cost["params"] for cost in costs] == [20_035_018, 20_081_188]
    assert costs[0]["macs"] == 398_136_320 and costs[0]["flops_paper"] == 796_272_640


def test_vgg19_has_5504_channels_in_16_layers():
    norms = [m for m in VGG(19).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 16 and sum(norm.num_features for norm in norms) == 5504


@pytest.mark.parametrize("network", [VGG(11, width=0.25), MLP(hidden=(20, 10))])
def test_initialisation_is_the_papers(network):
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert (module.weight == 0.5).all() and (module.bias == 0).all()
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            fan_out = module.out_channels * 9
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)


@pytest.mark.parametrize("depth", LAYERS)
def test_depth_counts_the_layers_with_weights(depth):
    layers = [m for m in VGG(depth).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    # The paper's CIFAR form has one Linear layer where the original has three.
    assert len(layers) == depth - 2


@pytest.mark.parametrize("size", [1, 7, 8, 28, 32, 45])
def test_vgg_takes_images_of_any_size(size):
    assert VGG(11, 5, 1, width=1 / 16).eval()(torch.zeros(2, 1, size, size)).shape == (2, 5)


def test_impossible_networks_are_refused():
    with pytest.raises(ValueError, match="depth 11, 13, 16, 19"):
        VGG(12)
    with pytest.raises(ValueError, match="without channels"):
        VGG(11, width=0.001)


def test_the_mnist_network_is_784_500_300_10():
    shapes = [m.weight.shape for m in MLP().modules() if isinstance(m, nn.Linear)]
    assert shapes == [(500, 784), (300, 500), (10, 300)]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_yaml_builds_a_network_that_can_be_cut(name):
    data = fake(num_train=16, num_test=8, num_classes=7, size=16)
    cfg = config("train", f"model={name}", "+model.width=0.125" if name == "none" else "seed=0")
    target, arguments = stages.model_for({**stages.plain(cfg.model), "width": 0.125}, data)
    from slimming.artifact import build

    model = build(target, arguments).double().eval()
    images = next(data.eval_batches(data.test)) [0].double()
    assert model(images).shape == (8, 7)
    graph = trace(model, images)
    assert graph.gates and not graph.fixed, graph.explain()
    keep = plan(graph, Slimming().scores(model, graph), 0.5)
    thin = slim(model, graph, keep)
    assert verify(model, graph, keep, thin, images).holds
    assert count(thin, data.input_shape)["params"] == keep.params


def test_mnist_is_known_to_the_mlp(tmp_path):
    with pytest.raises(FileNotFoundError, match="data.download=true"):
        mnist(root=str(tmp_path))
