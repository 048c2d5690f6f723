"""VGG-A with BatchNorm for ImageNet, as in the paper (Liu et al. 2017, section 4.2 and Table 2)."""

from torch import Tensor, nn

from models.common import as_in_the_paper, scaled

# Channels of each 3x3 convolution; "M" halves the resolution (Simonyan & Zisserman 2015, Table 1).
LAYERS = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
NEURONS = [4096, 4096]


class VGGA(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes). 224x224 in the paper; any other H, W works.

    Every convolution and hidden Linear layer is without bias and followed by BatchNorm and ReLU, so
    that its 2752 channels and its 8192 neurons can be cut; the paper removed dropout.
    For 1000 classes it has 132,874,280 parameters and 7,609,090,048 MACs at 224x224 (the paper
    prints 132.9 M and 4.57e10 FLOPs, which is 6 x MACs).

    Args:
        num_classes: outputs of the last layer.
        in_channels: channels of the image.
        pool_size: the classifier reads (512, pool_size, pool_size), averaged where it doesn't fit.
        width: multiplies every layer's channels and neurons.

    Raises:
        ValueError: a width that leaves a layer without channels.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        pool_size: int = 7,
        width: float = 1.0,
    ):
        super().__init__()
        features: list[nn.Module] = []
        num_in = in_channels
        for entry in LAYERS:
            if entry == "M":
                features.append(nn.MaxPool2d(2, ceil_mode=True))
                continue
            num_out = scaled(entry, width)
            conv = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
            features += [conv, nn.BatchNorm2d(num_out), nn.ReLU(inplace=True)]
            num_in = num_out
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(pool_size)
        hidden: list[nn.Module] = []
        num_in *= pool_size**2
        for neurons in NEURONS:
            num_out = scaled(neurons, width)
            linear = nn.Linear(num_in, num_out, bias=False)
            hidden += [linear, nn.BatchNorm1d(num_out), nn.ReLU(inplace=True)]
            num_in = num_out
        self.hidden = nn.Sequential(*hidden)
        self.classifier = nn.Linear(num_in, num_classes)
        as_in_the_paper(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))
        return self.classifier(self.hidden(x.flatten(1)))
