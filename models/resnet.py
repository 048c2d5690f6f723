"""ResNet for small images (He et al. 2016, "Deep residual learning", section 4.2)."""

from torch import Tensor, nn

from models.common import as_in_the_paper, scaled


def conv_norm(num_in: int, num_out: int, size: int, stride: int) -> list[nn.Module]:
    """(N, num_in, H, W) -> (N, num_out, H / stride, W / stride)."""
    conv = nn.Conv2d(num_in, num_out, size, stride, padding=size // 2, bias=False)
    return [conv, nn.BatchNorm2d(num_out)]


class Block(nn.Module):
    """(N, num_in, H, W) -> (N, num_out, H / stride, W / stride). The ReLU comes after the sum."""

    def __init__(self, num_in: int, num_out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(num_in, num_out, 3, stride),
            nn.ReLU(inplace=True),
            *conv_norm(num_out, num_out, 3, 1),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or num_in != num_out:
            self.shortcut = nn.Sequential(*conv_norm(num_in, num_out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += self.shortcut(x)
        return y.relu_()


class ResNet(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes). Any H, W: 32x32 in the paper.

    Where the shape changes, the shortcut is a 1x1 convolution with BatchNorm (option B). He et al.
    pad with zero channels on CIFAR (option A), which ties channels at a shift and leaves nothing to
    cut; projections are what other pruning tools cut, and cost two small layers. For 10 classes
    (option A: 853,018 parameters and 125,485,696 MACs for ResNet-56; its Table 6 prints 0.85 M):

        depth    parameters    MACs at 32x32
           20       272,474       40,813,184
           32       466,906       69,124,736
           56       855,770      125,747,840
          110     1,730,714      253,149,824

    Not in the Network Slimming paper; gammas start at 0.5 as there.

    Args:
        depth: 6n + 2, with n blocks in each stage.
        num_classes: outputs of the last layer.
        in_channels: channels of the image.
        width: multiplies every layer's channels.

    Raises:
        ValueError: a depth that isn't 6n + 2, or a width that leaves a layer without channels.
    """

    def __init__(
        self, depth: int = 56, num_classes: int = 10, in_channels: int = 3, width: float = 1.0
    ):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"ResNet has depth 6n + 2, such as 20, 56, 110; got depth={depth}")
        channels = scaled(16, width)
        self.stem = nn.Sequential(*conv_norm(in_channels, channels, 3, 1), nn.ReLU(inplace=True))
        blocks: list[nn.Module] = []
        for num_out, first_stride in ((16, 1), (32, 2), (64, 2)):
            num_out = scaled(num_out, width)
            for stride in [first_stride] + [1] * ((depth - 2) // 6 - 1):
                blocks.append(Block(channels, num_out, stride))
                channels = num_out
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        as_in_the_paper(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.classifier(self.pool(x).flatten(1))
