"""The networks of `coverage.py`: the paper's, torchvision's, timm's, and small difficult ones."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimming.surgery.builder import build

HERE = "benchmarks.coverage_networks"


@dataclass(frozen=True)
class Network:
    target: str  # class or builder
    shape: tuple[int, int, int]  # of one image
    classes: int  # outputs of the last layer
    arguments: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The same random network each time: gammas positive and distinct, real statistics."""
        torch.manual_seed(0)
        return randomise(build(self.target, self.arguments, (HERE,)).float(), self.shape)


@torch.no_grad()
def randomise(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Random BatchNorm parameters and statistics, in place; eval mode.

    Layers differ in their largest gamma by up to 4, as after sparse training. The statistics are
    those of random images, off by up to 20 %: with arbitrary ones the signal dies out in a deep
    network, and no comparison of outputs would see what its first layers do.
    """
    norms = {m: m.momentum for m in model.modules() if isinstance(m, _BatchNorm)}
    for norm in norms:
        top = 0.25 + 0.75 * torch.rand(())
        norm.weight.copy_(top * (1 + torch.randperm(norm.num_features)) / norm.num_features)
        norm.bias.copy_(0.2 * torch.randn(norm.num_features))
        norm.momentum = 1.0  # the statistics of one batch
    model.train()(torch.randn(8, *shape))
    for norm, norm.momentum in norms.items():
        norm.running_mean.add_(0.2 * norm.running_var.sqrt() * torch.randn(norm.num_features))
        norm.running_var.mul_(0.8 + 0.4 * torch.rand(norm.num_features))
    return model.eval()


def block(num_in: int, num_out: int, size: int = 3, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(num_in, num_out, size, padding=size // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(num_out), nn.ReLU())


class Shuffle(nn.Module):
    """Half of the channels passes a branch, then the halves are interleaved (ShuffleNet v2)."""

    def __init__(self):
        super().__init__()
        self.stem, self.last, self.fc = block(3, 64), block(64, 48), nn.Linear(48, 10)
        self.branches = nn.ModuleList(
            nn.Sequential(block(32, 32), block(32, 32, groups=32), block(32, 32, 1))
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            a, b = x.chunk(2, dim=1)
            x = torch.cat([a, branch(b)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(self.last(x).mean((2, 3)))


class Twice(nn.Module):
    """One convolution and its BatchNorm are called two times, in a row."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared = block(3, 48), block(48, 48)
        self.last, self.fc = block(48, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.shared(self.stem(x)))
        return self.fc(self.last(x).mean((2, 3)))


class Tied(nn.Module):
    """Two convolutions with one weight, each with a BatchNorm of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = block(3, 48), block(48, 48), block(48, 48)
        self.b[0].weight = self.a[0].weight
        self.last, self.fc = block(48, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(self.stem(x)))
        return self.fc(self.last(x).mean((2, 3)))


class Sizes(nn.Module):
    """Shapes are computed from shapes, and the map is flattened in front of the classifier."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(block(3, 40), block(40, 56), nn.AdaptiveAvgPool2d(4))
        self.hidden, self.norm = nn.Linear(56 * 16, 64), nn.BatchNorm1d(64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        n, c, h, w = x.shape
        x = x.reshape(n, c, h * w).permute(0, 2, 1).reshape(-1, h * w * c)
        return self.fc(F.relu(self.norm(self.hidden(x))))


class Number(nn.Module):
    """One shape is written as a number, so that the layer in front of it can't shrink."""

    def __init__(self):
        super().__init__()
        self.body, self.fixed = nn.Sequential(block(3, 40), block(40, 48)), block(48, 32)
        self.last, self.fc = block(32, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fixed(self.body(x))
        x = x.view(-1, 4, 8, x.shape[2], x.shape[3]).flatten(1, 2)
        return self.fc(self.last(x).mean((2, 3)))


class Concat(nn.Module):
    """Branches of different widths side by side, one of them used twice, then flattened."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = block(3, 32), block(32, 24), block(32, 40)
        self.both, self.fc = block(96, 48), nn.Linear(112 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = self.a(x), self.b(x)
        y = torch.cat([self.both(torch.cat([b, x, a], 1)), a, b], 1)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(y, 2), 1))


class UNet(nn.Module):
    """Down, a transposed convolution up, and the skipped map beside it."""

    def __init__(self):
        super().__init__()
        self.down, self.low = block(3, 32), nn.Sequential(block(32, 64), block(64, 64))
        self.up, self.norm = nn.ConvTranspose2d(64, 40, 2, 2), nn.BatchNorm2d(40)
        self.last, self.head = block(72, 32), nn.Conv2d(32, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        low = self.low(F.max_pool2d(x, 2))
        return self.head(self.last(torch.cat([F.relu(self.norm(self.up(low))), x], 1)))


class Depthwise(nn.Module):
    """Depthwise with two outputs per channel, then convolutions in groups."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(block(3, 32), block(32, 64, groups=32), block(64, 64, 1))
        self.groups = nn.Sequential(block(64, 96, groups=8), block(96, 64))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.groups(self.body(x)).mean((2, 3)))


def _cifar(target: str, **arguments: Any) -> Network:
    return Network(f"models.{target}", (3, 32, 32), 10, arguments)


def _torchvision(name: str, size: int = 64, classes: int = 1000, **arguments: Any) -> Network:
    return Network(f"torchvision.models.{name}", (3, size, size), classes, arguments)


def _timm(name: str, size: int = 64) -> Network:
    return Network(f"timm.models.{name}", (3, size, size), 1000)


TIMM = ("resnet50d", "res2net50_14w_8s", "cspresnet50", "dpn68", "vovnet39a", "dla34")
TIMM += ("regnety_002", "repvgg_a0", "mobileone_s0", "ghostnet_100", "mixnet_s")
TIMM += ("efficientnet_lite0", "mobilenetv4_conv_small", "efficientvit_b0", "hrnet_w18_small")


def _own(name: str) -> Network:
    return Network(f"{HERE}.{name}", (3, 16, 16), 10)


NETWORKS = {
    "VGG-19": _cifar("vgg.VGG", depth=19),
    "PreResNet-164": _cifar("preresnet.PreResNet", depth=164),
    "DenseNet-40": _cifar("densenet.DenseNet"),
    "ResNet-56": _cifar("resnet.ResNet", depth=56),
    "MobileNetV2 (CIFAR)": _cifar("mobilenet.MobileNetV2"),
    "resnet18": _torchvision("resnet18"),
    "resnet50": _torchvision("resnet50"),
    "wide_resnet50_2": _torchvision("wide_resnet50_2"),
    "resnext50_32x4d": _torchvision("resnext50_32x4d"),
    "vgg16_bn": _torchvision("vgg16_bn"),
    "densenet121": _torchvision("densenet121"),
    "googlenet": _torchvision("googlenet", init_weights=False),
    "googlenet, no auxiliary": _torchvision("googlenet", init_weights=False, aux_logits=False),
    "inception_v3": _torchvision("inception_v3", 96, init_weights=False, aux_logits=False),
    "mobilenet_v2": _torchvision("mobilenet_v2"),
    "mobilenet_v3_small": _torchvision("mobilenet_v3_small"),
    "mnasnet1_0": _torchvision("mnasnet1_0"),
    "efficientnet_b0": _torchvision("efficientnet_b0"),
    "regnet_y_400mf": _torchvision("regnet_y_400mf"),
    "regnet_x_400mf": _torchvision("regnet_x_400mf"),
    "shufflenet_v2_x1_0": _torchvision("shufflenet_v2_x1_0"),
    "squeezenet1_0": _torchvision("squeezenet1_0"),
    "convnext_tiny": _torchvision("convnext_tiny"),
    "vit_b_16": _torchvision("vit_b_16", image_size=64),
    "swin_t": _torchvision("swin_t"),
    "fcn_resnet50": _torchvision("segmentation.fcn_resnet50", classes=21),
    **{name: _timm(name) for name in TIMM},
    "shuffle": _own("Shuffle"),
    "called twice": _own("Twice"),
    "tied weights": _own("Tied"),
    "computed sizes": _own("Sizes"),
    "a size as a number": _own("Number"),
    "concat, flatten": _own("Concat"),
    "U-Net": _own("UNet"),
    "depthwise x2, groups": _own("Depthwise"),
}
