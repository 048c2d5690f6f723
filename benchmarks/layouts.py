"""Precision x memory layout of several networks: what `utils.training.hardware` decides by rule.

    python benchmarks/layouts.py

Training images/s of a bare loop on one resident batch of 64, the four variants in turn; the median
of 3 rounds of 2 steps after a warm-up.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.densenet import DenseNet
from models.mobilenet import MobileNetV2
from models.preresnet import PreResNet
from models.resnet import ResNet
from models.vgg import VGG

BATCH, ROUNDS, STEPS = 64, 3, 2
CIFAR, DIGITS = (3, 32, 32), (1, 8, 8)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "VGG-11, width 1/4, digits": (lambda: VGG(11, in_channels=1, width=0.25), DIGITS),
    "VGG-19, width 1/8": (lambda: VGG(19, width=0.125), CIFAR),
    "PreResNet-164": (lambda: PreResNet(164), CIFAR),
    "DenseNet-40": (DenseNet, CIFAR),
    "ResNet-56": (lambda: ResNet(56), CIFAR),
    "MobileNetV2": (MobileNetV2, CIFAR),
}


def measure(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, float]:
    """{"bf16, channels_last": images/s, ...}."""
    variants = {}
    for bf16 in (False, True):
        for layout in (torch.contiguous_format, torch.channels_last):
            model = make().to(memory_format=layout)
            optimizer = optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
            name = "bf16" if bf16 else "fp32"
            name += "" if layout == torch.contiguous_format else ", channels_last"
            variants[name] = (model, optimizer, bf16)
    images, labels = torch.randn(BATCH, *shape), torch.randint(0, 10, (BATCH,))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(1 + ROUNDS):
        for name, variant in variants.items():
            seconds[name].append(_time(*variant, images, labels))
    return {name: BATCH * STEPS / statistics.median(s[1:]) for name, s in seconds.items()}


def _time(
    model: nn.Module, optimizer: optim.Optimizer, bf16: bool, images: Tensor, labels: Tensor
) -> float:
    start = time.perf_counter()
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


if __name__ == "__main__":
    for network, (make, shape) in NETWORKS.items():
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in measure(make, shape).items())
        print(f"{network:>26}: {rates} img/s", flush=True)
