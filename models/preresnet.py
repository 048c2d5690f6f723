"""Pre-activation ResNet for small images (He et al. 2016, "Identity mappings"), as in the paper."""

from torch import Tensor, nn

from models.common import as_in_the_paper, scaled

EXPANSION = 4  # a block's output has four times the channels of its 3x3 convolution


class Block(nn.Module):
    """(N, num_in, H, W) -> (N, 4 * planes, H / stride, W / stride).

    BatchNorm and ReLU come before each of the three convolutions; the sum is not touched again.
    """

    def __init__(self, num_in: int, planes: int, stride: int):
        super().__init__()
        num_out = EXPANSION * planes
        self.body = nn.Sequential(
            *(nn.BatchNorm2d(num_in), nn.ReLU(inplace=True)),
            nn.Conv2d(num_in, planes, 1, bias=False),
            *(nn.BatchNorm2d(planes), nn.ReLU(inplace=True)),
            nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False),
            *(nn.BatchNorm2d(planes), nn.ReLU(inplace=True)),
            nn.Conv2d(planes, num_out, 1, bias=False),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or num_in != num_out:
            self.shortcut = nn.Conv2d(num_in, num_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += self.shortcut(x)  # in place: the sum is what takes longest in a thin block
        return y


class PreResNet(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes). Any H, W: 32x32 in the paper.

    A 3x3 convolution, three stages of bottleneck blocks, BatchNorm, ReLU, mean, one Linear layer.
    PreResNet-164 is the ResNet of Table 1: 1,703,258 parameters for 10 classes, 1,726,388 for 100,
    and 247,646,720 MACs at 32x32 (the paper prints 1.70 M and 4.99e8 FLOPs, which count 2 x MACs).
    As in the authors' PyTorch code, the shortcut's convolution reads what the block reads, before
    any BatchNorm; in He et al.'s code it reads the activation.

    Args:
        depth: 9n + 2, with n blocks in each stage; 164 in the paper.
        num_classes: outputs of the last layer.
        in_channels: channels of the image.
        width: multiplies every layer's channels; the paper's network has width 1.

    Raises:
        ValueError: a depth that isn't 9n + 2, or a width that leaves a layer without channels.
    """

    def __init__(
        self, depth: int = 164, num_classes: int = 10, in_channels: int = 3, width: float = 1.0
    ):
        super().__init__()
        if depth < 11 or (depth - 2) % 9:
            raise ValueError(f"PreResNet has depth 9n + 2, such as 29, 56, 164; got depth={depth}")
        channels = scaled(16, width)
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for planes, first_stride in ((16, 1), (32, 2), (64, 2)):
            planes = scaled(planes, width)
            for stride in [first_stride] + [1] * ((depth - 2) // 9 - 1):
                blocks.append(Block(channels, planes, stride))
                channels = EXPANSION * planes
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        as_in_the_paper(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(self.pool(x).flatten(1))
