"""DenseNet for small images without bottlenecks (Huang et al. 2017), as trained in the paper."""

import torch
from torch import Tensor, nn

from models.common import as_in_the_paper, scaled


class DenseLayer(nn.Sequential):
    """(N, C, H, W) -> (N, C + growth, H, W): what came in, and `growth` new channels after it."""

    def __init__(self, num_in: int, growth: int):
        super().__init__(
            *(nn.BatchNorm2d(num_in), nn.ReLU(inplace=True)),
            nn.Conv2d(num_in, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, super().forward(x)], 1)


class Transition(nn.Sequential):
    """(N, C, H, W) -> (N, C, ceil(H / 2), ceil(W / 2)). All channels stay: no compression."""

    def __init__(self, channels: int):
        super().__init__(
            *(nn.BatchNorm2d(channels), nn.ReLU(inplace=True)),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.AvgPool2d(2, ceil_mode=True),
        )


class DenseNet(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes). Any H, W: 32x32 in the paper.

    A 3x3 convolution, three blocks of dense layers with a transition after the first two, then
    BatchNorm, ReLU, mean and one Linear layer; no dropout. DenseNet-40 is the one of Table 1:
    1,019,722 parameters for 10 classes, 1,060,132 for 100, and 264,812,928 MACs at 32x32 (the
    paper prints 1.02 M, 1.06 M and 5.33e8 FLOPs, which count 2 x MACs). The authors' PyTorch code
    has stem=24, which has 1,059,298 parameters for 10 classes and 282,917,328 MACs.

    Args:
        depth: 3n + 4, with n layers in each block; 40 in the paper.
        growth: channels that a layer adds.
        stem: channels of the first convolution; 16 fits the paper's counts.
        num_classes: outputs of the last layer.
        in_channels: channels of the image.
        width: multiplies growth and stem; the paper's network has width 1.

    Raises:
        ValueError: a depth that isn't 3n + 4, or a width that leaves a layer without channels.
    """

    def __init__(
        self,
        depth: int = 40,
        growth: int = 12,
        stem: int = 16,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
    ):
        super().__init__()
        if depth < 7 or (depth - 4) % 3:
            raise ValueError(f"DenseNet has depth 3n + 4, such as 22, 40, 100; got depth={depth}")
        channels, growth = scaled(stem, width), scaled(growth, width)
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        for block in range(3):
            if block > 0:
                layers.append(Transition(channels))
            for _ in range((depth - 4) // 3):
                layers.append(DenseLayer(channels, growth))
                channels += growth
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        as_in_the_paper(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.layers(self.stem(x)))
        return self.classifier(self.pool(x).flatten(1))
