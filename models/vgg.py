"""VGG for small images, as trained in the paper (Liu et al. 2017, section 4.2 and supplement)."""

from torch import Tensor, nn

from models.common import as_in_the_paper, scaled

# Channels of each 3x3 convolution; "M" halves the resolution (Simonyan & Zisserman 2015, Table 1).
LAYERS = {
    11: [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512],
    13: [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512],
    16: [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3],
    19: [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4],
}


class VGG(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes). Any H, W: 32x32 in the paper, 8x8 digits too.

    Convolutions without bias, each followed by BatchNorm and ReLU; one Linear layer at the end.
    Gamma starts at 0.5 (paper, section 4.3), BatchNorm eps is 1e-3 as in the authors' Torch code.
    VGG-19 for 10 classes has 20,035,018 parameters and 398,136,320 MACs at 32x32.

    Args:
        depth: 11, 13, 16 or 19.
        num_classes: outputs of the last layer.
        in_channels: channels of the image.
        width: multiplies every layer's channels; the paper's networks have width 1.

    Raises:
        ValueError: unknown depth, or a width that leaves a layer without channels.
    """

    def __init__(
        self, depth: int = 19, num_classes: int = 10, in_channels: int = 3, width: float = 1.0
    ):
        super().__init__()
        if depth not in LAYERS:
            raise ValueError(f"VGG has depth {', '.join(map(str, LAYERS))}; got depth={depth}")
        layers: list[nn.Module] = []
        for entry in LAYERS[depth]:
            if entry == "M":
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                continue
            channels = scaled(entry, width)
            conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(channels, eps=1e-3), nn.ReLU(inplace=True)]
            in_channels = channels
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(in_channels, num_classes)
        as_in_the_paper(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))
        return self.classifier(x.flatten(1))
