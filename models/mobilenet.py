"""MobileNets for small images: v1 (Howard et al. 2017) and v2 (Sandler et al. 2018).

Not in the Network Slimming paper; gammas start at 0.5 as there. `width` rounds channels down, where
the originals round to multiples of 8.
"""

from torch import Tensor, nn

from models.common import as_in_the_paper, scaled

# Howard et al. 2017, Table 1: output channels and stride of each depthwise separable layer.
V1 = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5]
V1 += [(1024, 2), (1024, 1)]
# Sandler et al. 2018, Table 2: expansion, output channels, blocks, stride of the first one. The
# second row has stride 2 there: with the stem, images of 32x32 are halved two times less.
V2 = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)]
V2 += [(6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


def conv_norm(
    num_in: int, num_out: int, size: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """(N, num_in, H, W) -> (N, num_out, H / stride, W / stride)."""
    conv = nn.Conv2d(num_in, num_out, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(num_out)]


class MobileNetV1(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes), of depthwise separable convolutions. Any H, W.

    The stem has stride 1 instead of 2. For 10 classes it has 3,217,226 parameters and
    46,354,432 MACs at 32x32.

    Args:
        num_classes: outputs of the last layer.
        in_channels: channels of the image.
        width: multiplies every layer's channels.

    Raises:
        ValueError: a width that leaves a layer without channels.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 1.0):
        super().__init__()
        channels = scaled(32, width)
        layers = [*conv_norm(in_channels, channels, 3), nn.ReLU(inplace=True)]
        for num_out, stride in V1:
            num_out = scaled(num_out, width)
            depthwise = conv_norm(channels, channels, 3, stride, groups=channels)
            layers += [*depthwise, nn.ReLU(inplace=True)]
            layers += [*conv_norm(channels, num_out), nn.ReLU(inplace=True)]
            channels = num_out
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        as_in_the_paper(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


class InvertedResidual(nn.Sequential):
    """(N, num_in, H, W) -> (N, num_out, H / stride, W / stride): widen, filter, narrow.

    No activation at the end; the input is added where the shape allows it.
    """

    def __init__(self, num_in: int, num_out: int, stride: int, expansion: int):
        wide = expansion * num_in
        widen = [*conv_norm(num_in, wide), nn.ReLU6(inplace=True)] if expansion > 1 else []
        filters = [*conv_norm(wide, wide, 3, stride, groups=wide), nn.ReLU6(inplace=True)]
        super().__init__(*widen, *filters, *conv_norm(wide, num_out))
        self.adds = stride == 1 and num_in == num_out

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.adds:
            y += x
        return y


class MobileNetV2(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes), of inverted residuals. Any H, W.

    The stem and the first widened block have stride 1 instead of 2. For 10 classes it has
    2,236,682 parameters and 87,976,448 MACs at 32x32; for 1000 the original's 3,504,872 parameters.

    Args:
        num_classes: outputs of the last layer.
        in_channels: channels of the image.
        width: multiplies every layer's channels.

    Raises:
        ValueError: a width that leaves a layer without channels.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 1.0):
        super().__init__()
        channels = scaled(32, width)
        layers = [*conv_norm(in_channels, channels, 3), nn.ReLU6(inplace=True)]
        for expansion, num_out, blocks, first_stride in V2:
            num_out = scaled(num_out, width)
            for stride in [first_stride] + [1] * (blocks - 1):
                layers.append(InvertedResidual(channels, num_out, stride, expansion))
                channels = num_out
        last = scaled(1280, width)
        layers += [*conv_norm(channels, last), nn.ReLU6(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, num_classes)
        as_in_the_paper(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))
