"""Our own networks: the paper's counts, and every yaml builds something that can be cut."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from door import config
from helpers import OURS
from models.densenet import DenseNet
from models.mlp import MLP
from models.mobilenet import MobileNetV1, MobileNetV2
from models.preresnet import PreResNet
from models.resnet import ResNet
from models.vgg import LAYERS, VGG
from models.vgg_a import VGGA
from slimming import Slimming, plan, slim, trace, verify
from slimming.checkpoint import build
from utils.cli import configured
from utils.cli.script import CONF
from utils.data.sets import Data, fake, mnist
from utils.networks.build import model_for
from utils.networks.cost import count, count_macs

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
MODELS.remove("own")  # names no class: that is the user's


def test_vgg19_has_the_papers_parameters_and_macs():
    """20.04M and 7.97e8 FLOPs (2 x MACs) in Table 1; the exact numbers by arithmetic."""
    with torch.device("meta"):
        costs = [count(VGG(19, classes), (3, 32, 32)) for classes in (10, 100)]
    assert [cost["params"] for cost in costs] == [20_035_018, 20_081_188]
    assert costs[0]["macs"] == 398_136_320 and costs[0]["flops_paper"] == 796_272_640


def test_vgg19_has_5504_channels_in_16_layers():
    norms = [m for m in VGG(19).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 16 and sum(norm.num_features for norm in norms) == 5504


# (network, arguments, pixels, parameters, MACs), as their docstrings say.
COUNTS = [
    (PreResNet, {}, 32, 1_703_258, 247_646_720),  # Table 1: 1.70 M, 4.99e8 FLOPs = 2 x MACs
    (PreResNet, {"num_classes": 100}, 32, 1_726_388, 247_669_760),
    (DenseNet, {}, 32, 1_019_722, 264_812_928),  # Table 1: 1.02 M, 5.33e8 FLOPs
    (DenseNet, {"num_classes": 100}, 32, 1_060_132, 264_853_248),
    (DenseNet, {"stem": 24}, 32, 1_059_298, 282_917_328),  # the authors' PyTorch code
    (VGGA, {}, 224, 132_874_280, 7_609_090_048),  # Table 2: 132.9 M, 4.57e10 FLOPs = 6 x MACs
    (ResNet, {"depth": 20}, 32, 272_474, 40_813_184),
    (ResNet, {"depth": 32}, 32, 466_906, 69_124_736),
    (ResNet, {"depth": 56}, 32, 855_770, 125_747_840),
    (ResNet, {"depth": 110}, 32, 1_730_714, 253_149_824),
    (MobileNetV1, {}, 32, 3_217_226, 46_354_432),
    (MobileNetV2, {}, 32, 2_236_682, 87_976_448),
    (MobileNetV2, {"num_classes": 1000}, 32, 3_504_872, 89_243_648),  # as torchvision's
]


@pytest.mark.parametrize(
    "kind, arguments, size, params, macs",
    COUNTS,
    ids=[" ".join([row[0].__name__, *(f"{k}={v}" for k, v in row[1].items())]) for row in COUNTS],
)
def test_parameters_and_macs_are_those_of_the_docstring(kind, arguments, size, params, macs):
    with torch.device("meta"):
        model = kind(**arguments)
    assert sum(p.numel() for p in model.parameters()) == params
    assert count_macs(model, (3, size, size)) == macs


# What the paper ranks: Table 2 counts 2752 channels and 8192 neurons; the rest is arithmetic.
@pytest.mark.parametrize(
    "kind, num_norms, num_gammas",
    [
        (VGGA, 10, 2752 + 8192),
        (PreResNet, 3 * 54 + 1, 12112),
        (DenseNet, 3 * 12 + 2 + 1, 9048),
    ],
)
def test_gammas_of_the_papers_networks(kind, num_norms, num_gammas):
    with torch.device("meta"):
        gammas = [m.weight for m in kind().modules() if isinstance(m, _BatchNorm)]
    assert len(gammas) == num_norms and sum(map(len, gammas)) == num_gammas


NARROW = {
    "VGG": lambda **options: VGG(11, width=0.25, **options),
    "PreResNet": lambda **options: PreResNet(11, width=0.5, **options),
    "DenseNet": lambda **options: DenseNet(10, growth=4, **options),
    "ResNet": lambda **options: ResNet(8, **options),
    "VGGA": lambda **options: VGGA(width=1 / 16, **{"num_classes": 10, **options}),
    "MobileNetV1": lambda **options: MobileNetV1(width=0.25, **options),
    "MobileNetV2": lambda **options: MobileNetV2(width=0.25, **options),
}


@pytest.mark.parametrize("name", [*NARROW, "MLP"])
def test_initialisation_is_the_papers(name):
    network = MLP(hidden=(20, 10)) if name == "MLP" else NARROW[name]()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            assert (module.weight == 0.5).all() and (module.bias == 0).all()
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            fan_out = module.weight[:, 0].numel() / module.groups
            # How far the estimate may be off: five standard errors.
            error = 5 / (2 * module.weight.numel()) ** 0.5
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=error)
    if name != "MLP":
        assert (network.classifier.bias == 0).all()


@pytest.mark.parametrize("depth", LAYERS)
def test_depth_counts_the_layers_with_weights(depth):
    layers = [m for m in VGG(depth).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    # The paper's CIFAR form has one Linear layer where the original has three.
    assert len(layers) == depth - 2


@pytest.mark.parametrize("name", NARROW)
def test_networks_take_images_of_any_size_and_colour(name):
    network = NARROW[name](num_classes=5, in_channels=1).eval()
    for size in [(1, 1), (7, 7), (8, 8), (28, 28), (45, 45), (9, 20)]:
        assert network(torch.zeros(2, 1, *size)).shape == (2, 5)


@pytest.mark.parametrize(
    "network, words",
    [
        (lambda: VGG(12), "VGG has depth 11, 13, 16, 19; got depth=12"),
        (lambda: PreResNet(56 + 1), "9n [+] 2, such as 29, 56, 164; got depth=57"),
        (lambda: PreResNet(2), "9n [+] 2"),
        (lambda: DenseNet(41), "3n [+] 4, such as 22, 40, 100; got depth=41"),
        (lambda: DenseNet(4), "3n [+] 4"),
        (lambda: ResNet(18), "6n [+] 2, such as 20, 56, 110; got depth=18"),
        (lambda: ResNet(2), "6n [+] 2"),
        (lambda: VGG(11, width=0.001), "width=0.001 leaves layers without .* at least 1/64"),
        (lambda: PreResNet(width=0.05), "without channels; use at least 1/16"),
        (lambda: DenseNet(width=1 / 13), "without channels; use at least 1/12"),
        (lambda: ResNet(width=0.0), "without channels"),
        (lambda: VGGA(width=-1), "without channels"),
        (lambda: MobileNetV1(width=0.01), "without channels"),
        (lambda: MobileNetV2(width=0.04), "without channels"),
        (lambda: MLP(width=0.001), "without channels"),
    ],
)
def test_impossible_networks_are_refused_in_words(network, words):
    with pytest.raises(ValueError, match=words), torch.device("meta"):
        network()


def test_an_unexpanded_block_of_mobilenet_v2_has_no_widening_convolution():
    first, second = MobileNetV2().features[3:5]
    assert len(first) == 5 and not first.adds
    assert len(second) == 8


@pytest.mark.parametrize(
    "kind, stem, last", [(MobileNetV1, 32, 2), (MobileNetV2, 32, 4), (ResNet, 32, 8)]
)
def test_small_images_keep_their_resolution_in_the_stem(kind, stem, last):
    network, sizes = kind(width=1 / 16), []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: sizes.append(output.shape[2]))
    network.eval()(torch.zeros(1, 3, 32, 32))
    assert sizes[0] == stem and sizes[-1] == last


def test_the_mnist_network_is_784_500_300_10():
    shapes = [m.weight.shape for m in MLP().modules() if isinstance(m, nn.Linear)]
    assert shapes == [(500, 784), (300, 500), (10, 300)]


def smallest(name: str) -> tuple[nn.Module, Data]:
    """The network of conf/model/<name>.yaml, narrow where it has a width, and images it reads."""
    told = configured.plain(config("train", f"model={name}").model)
    if "width" in told:
        told["width"] = 0.125
    for size in (16, 32, 64, 224):
        data = fake(num_train=16, num_test=8, num_classes=7, size=size)
        with contextlib.suppress(RuntimeError, ValueError):  # a network may want larger images
            model = build(*model_for(told, data)).eval()
            model(next(data.eval_batches(data.test))[0])
            break
    return model.double(), data


@pytest.mark.parametrize("name", MODELS)
def test_every_model_yaml_builds_a_network_that_can_be_cut(name):
    model, data = smallest(name)
    images = next(data.eval_batches(data.test))[0].double()
    assert model(images).shape == (8, 7)
    graph = trace(model, images)
    assert graph.gates, graph.explain()
    keep = plan(graph, Slimming().scores(model, graph), 0.5)
    thin = slim(model, graph, keep)
    assert verify(model, graph, keep, thin, images).holds
    assert (
        count(thin, data.input_shape)["params"]
        == keep.params
        < count(model, data.input_shape)["params"]
    )


@pytest.mark.parametrize("name", OURS)
def test_all_of_our_own_networks_can_be_cut(name):
    model, data = smallest(name)
    graph = trace(model, torch.zeros(2, *data.input_shape, dtype=torch.float64))
    assert not graph.fixed, graph.explain()


def test_mnist_is_known_to_the_mlp(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.download=true"):
        mnist(root=str(tmp_path))
