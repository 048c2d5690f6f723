"""Hand-made networks with the turns that real ones take; {name: (builder, input shape)}."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks import BLOCKS


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def conv(num_in: int, num_out: int, size: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, size, padding=size // 2, **options)


def block(num_in: int, num_out: int, **options) -> list[nn.Module]:
    return [conv(num_in, num_out, **options), nn.BatchNorm2d(num_out), nn.ReLU()]


class Head(nn.Module):
    """A body of convolutions and a way to the classifier, given as a function of both."""

    def __init__(self, way, features: int = 9, body: nn.Module | None = None):
        super().__init__()
        self.body = body or chain(*block(3, 6), *block(6, 9))
        self.fc = nn.Linear(features, 5)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.way(self.body(x)))


class Functional(nn.Module):
    """Everything that has a module is called as a function or method, some of it in place."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 6), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = conv(6, 8), nn.BatchNorm2d(8)
        self.fc1, self.bn3, self.fc2 = nn.Linear(32, 7), nn.BatchNorm1d(7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 2)
        x = self.bn2(self.conv2(x))
        x *= 0.5
        x = torch.relu_(x)
        x = F.adaptive_avg_pool2d(x, (2, 2)).view(x.size(0), -1)
        x = self.bn3(self.fc1(x)).relu_()
        return self.fc2(F.dropout(x, 0.0, self.training))


class Twice(nn.Module):
    """One convolution and one BatchNorm that are called two times."""

    def __init__(self):
        super().__init__()
        self.stem = chain(*block(3, 6))
        self.conv, self.bn = conv(6, 6), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = F.relu(self.bn(self.conv(x)))
        return self.fc(x.mean((2, 3)))


class Alias(nn.Module):
    """A BatchNorm known under two names, in front of which a selection is needed."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 6)
        self.bn = nn.BatchNorm2d(6)
        self.same = self.bn
        self.conv, self.last, self.fc = conv(6, 6), nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv(F.relu(self.bn(x))) + self.conv(torch.tanh(self.same(x)))
        return self.fc(F.relu(self.last(x + y)).mean((2, 3)))


class Auxiliary(nn.Module):
    """A second head in training mode only, as in GoogLeNet."""

    def __init__(self):
        super().__init__()
        self.a, self.b = chain(*block(3, 6)), chain(*block(6, 8))
        self.extra, self.fc = nn.Linear(6, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor):
        x = self.a(x)
        extra = self.extra(x.mean((2, 3))) if self.training else None
        x = self.fc(self.b(x).mean((2, 3)))
        return (x, extra) if self.training else x


class PreActivation(nn.Module):
    """Two pre-activation residual units: the first BatchNorm of each reads the stream."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8, bias=False)
        for i in (1, 2):
            self.add_module(f"bn{i}a", nn.BatchNorm2d(8))
            self.add_module(f"conv{i}a", conv(8, 6, bias=False))
            self.add_module(f"bn{i}b", nn.BatchNorm2d(6))
            self.add_module(f"conv{i}b", conv(6, 8, bias=False))
        self.bn, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv1b(F.relu(self.bn1b(self.conv1a(F.relu(self.bn1a(x))))))
        x = x + self.conv2b(F.relu(self.bn2b(self.conv2a(F.relu(self.bn2a(x))))))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


class Residual(nn.Module):
    """A post-activation unit with a projection: its two last norms write to one stream."""

    def __init__(self):
        super().__init__()
        self.stem = chain(*block(3, 6))
        self.conv1, self.bn1 = conv(6, 7), nn.BatchNorm2d(7)
        self.conv2, self.bn2 = conv(7, 8), nn.BatchNorm2d(8)
        self.short, self.bn3 = conv(6, 8, 1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += self.bn3(self.short(x))
        return self.fc(F.relu(y).flatten(2).mean(-1))


class Dense(nn.Module):
    """Two layers whose outputs are concatenated to what they read."""

    def __init__(self):
        super().__init__()
        self.stem = chain(*block(3, 6))
        self.bn1, self.conv1 = nn.BatchNorm2d(6), conv(6, 4)
        self.bn2, self.conv2 = nn.BatchNorm2d(10), conv(10, 4)
        self.bn3, self.fc = nn.BatchNorm2d(14), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.bn1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.bn2(x)))], dim=1)
        return self.fc(F.relu(self.bn3(x)).mean((2, 3)))


class Concat(nn.Module):
    """Two branches side by side, as in Inception: their channels keep their places."""

    def __init__(self):
        super().__init__()
        self.a, self.b = chain(*block(3, 5)), chain(*block(3, 7))
        self.c, self.fc = chain(*block(12, 6)), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3)))


class SqueezeExcitation(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = chain(*block(3, 8)), nn.Linear(8, 5)
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        x = x * gate.unsqueeze(-1).unsqueeze(-1)
        return self.fc(x.mean((2, 3)))


class Shuffle(nn.Module):
    """Half of the channels passes a branch, then the halves are interleaved (ShuffleNet v2)."""

    def __init__(self):
        super().__init__()
        self.body, self.branch = chain(*block(3, 8)), chain(*block(4, 4))
        self.last, self.fc = chain(*block(8, 6)), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.body(x).chunk(2, dim=1)
        x = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)
        return self.fc(self.last(x).mean((2, 3)))


def three_dimensions() -> nn.Sequential:
    return chain(
        *(nn.Conv3d(2, 5, 3), nn.BatchNorm3d(5), nn.ReLU(), nn.Conv3d(5, 4, 3)),
        *(nn.BatchNorm3d(4), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


def sequences() -> nn.Sequential:
    return chain(
        *(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(6, 5, 3), nn.BatchNorm1d(5), nn.Flatten(), nn.Linear(5 * 5, 3)),
    )


def slopes(channels: int) -> nn.PReLU:
    """PReLU with another slope for each channel."""
    layer = nn.PReLU(channels)
    layer.weight.data = torch.linspace(-0.5, 0.9, channels)
    return layer


def eight(way, features: int = 8) -> Head:
    return Head(way, features, chain(*block(3, 6), *block(6, 8)))


def pooled(*layers: nn.Module, features: int) -> nn.Sequential:
    """The layers behind 8 channels, and a classifier."""
    last = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 5))
    return chain(*block(3, 6), *block(6, 8), *layers, *last)


PICTURE = (3, 8, 8)
ZOO = {
    "conv without bias": (
        lambda: Head(
            lambda x: x.mean((2, 3)), 9, chain(*block(3, 6, bias=False), *block(6, 9, bias=False))
        ),
        PICTURE,
    ),
    "conv with bias": (lambda: Head(lambda x: x.mean((2, 3))), PICTURE),
    "flatten of a map": (lambda: Head(lambda x: x.flatten(1), 9 * 64), PICTURE),
    "view": (lambda: Head(lambda x: x.view(x.size(0), -1), 9 * 64), PICTURE),
    "view of computed sizes": (
        lambda: Head(lambda x: x.view(-1, x.size(1) * x.shape[2] * x.size(3)), 9 * 64),
        PICTURE,
    ),
    "reshape and permute": (
        lambda: Head(lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1), 9 * 64),
        PICTURE,
    ),
    "mean and squeeze": (lambda: Head(lambda x: x.mean(-1, True).mean(2).squeeze(-1)), PICTURE),
    "linear on channels last": (
        lambda: Head(lambda x: x.permute(0, 2, 3, 1), 9),
        PICTURE,
    ),
    "mlp": (
        lambda: chain(
            *(nn.Flatten(), nn.Linear(12, 9), nn.BatchNorm1d(9), nn.ReLU()),
            *(nn.Linear(9, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4)),
        ),
        (3, 4),
    ),
    "pooling and dropout": (
        lambda: chain(
            *(*block(3, 6), nn.MaxPool2d(2), nn.Dropout2d(0.0), *block(6, 8), nn.Dropout(0.0)),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)),
        ),
        PICTURE,
    ),
    "conv without BatchNorm between": (
        lambda: chain(
            *(*block(3, 6), conv(6, 5), nn.ReLU(), conv(5, 8), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
        ),
        PICTURE,
    ),
    "BatchNorm behind pooling": (
        lambda: chain(
            *(conv(3, 6), nn.MaxPool2d(2), nn.BatchNorm2d(6), nn.LeakyReLU(), conv(6, 4)),
            *(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten()),
            nn.Linear(4, 5),
        ),
        PICTURE,
    ),
    "transposed convolution": (
        lambda: chain(
            *(*block(3, 6), nn.ConvTranspose2d(6, 5, 2, 2), nn.BatchNorm2d(5), nn.ReLU()),
            *(nn.Upsample(scale_factor=2), conv(5, 2)),
        ),
        PICTURE,
    ),
    "depthwise": (
        lambda: chain(
            *(*block(3, 6), *block(6, 6, groups=6), *block(6, 8), *block(8, 16, groups=8)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
        ),
        PICTURE,
    ),
    "groups": (
        lambda: chain(
            *(*block(3, 8), *block(8, 12, groups=4), *block(12, 6)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
        ),
        PICTURE,
    ),
    "BatchNorm without gamma": (
        lambda: chain(
            *(*block(3, 6), conv(6, 7), nn.BatchNorm2d(7, affine=False), nn.ReLU(), *block(7, 8)),
            *(nn.BatchNorm2d(8, affine=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(8, 5),
        ),
        PICTURE,
    ),
    "one channel left to cut": (
        lambda: Head(lambda x: x.mean((2, 3)), 2, chain(*block(3, 2), *block(2, 2))),
        PICTURE,
    ),
    "three dimensions": (three_dimensions, (2, 6, 6, 6)),
    "sequences": (sequences, (4, 16)),
    "functional": (Functional, PICTURE),
    "called twice": (Twice, PICTURE),
    "two names": (Alias, PICTURE),
    "auxiliary head": (Auxiliary, PICTURE),
    "pre-activation": (PreActivation, PICTURE),
    "residual": (Residual, PICTURE),
    "dense": (Dense, PICTURE),
    "concat": (Concat, PICTURE),
    "squeeze-excitation": (SqueezeExcitation, PICTURE),
    "shuffle": (Shuffle, PICTURE),
    "slices of positions": (
        lambda: eight(lambda x: x[..., ::2][:, :, 1:, None].amax((2, 3, 4))),
        PICTURE,
    ),
    "halves by slicing": (
        lambda: eight(
            lambda x: (x[:, : x.size(1) // 2] + x[:, x.shape[1] // 2 :].tanh()).mean((2, 3)), 4
        ),
        PICTURE,
    ),
    "three quarters": (
        lambda: eight(lambda x: x[:, x.size(1) // 4 :].mean((2, 3)), 6),
        PICTURE,
    ),
    "a channel-wise slope": (
        lambda: chain(
            *(conv(3, 6), nn.BatchNorm2d(6), slopes(6), conv(6, 8), nn.BatchNorm2d(8), slopes(1)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
        ),
        PICTURE,
    ),
    "pixel shuffle": (lambda: pooled(nn.PixelShuffle(2), conv(2, 5), features=5), PICTURE),
    "pixel shuffle by function": (
        lambda: eight(lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 4).mean((2, 3)), 32),
        PICTURE,
    ),
    "pixel unshuffle": (lambda: pooled(nn.PixelUnshuffle(2), features=32), PICTURE),
    "channel shuffle": (
        lambda: pooled(nn.ChannelShuffle(2), *block(8, 8, groups=2), features=8),
        PICTURE,
    ),
    "gated halves": (
        lambda: pooled(nn.GLU(1), conv(4, 6), nn.BatchNorm2d(6), nn.GLU(dim=1), features=3),
        PICTURE,
    ),
    "softmax over positions": (
        lambda: eight(lambda x: (x.flatten(2) * F.softmax(x.flatten(2), -1)).sum(2)),
        PICTURE,
    ),
    "padding": (
        lambda: pooled(
            *(nn.ConstantPad2d(1, 0.0), nn.ReplicationPad2d(1), nn.CircularPad2d((1, 0, 0, 2))),
            features=8,
        ),
        PICTURE,
    ),
    "padding by function": (
        lambda: eight(
            lambda x: F.pad(F.pad(x, (1, 1, 2, 1), mode="reflect"), (0, 0, 1, 1, 2, 1)).mean(
                (2, 3)
            ),
            11,
        ),
        PICTURE,
    ),
    "stretching": (
        lambda: eight(
            lambda x: (x * x.amax((2, 3), True).expand(-1, x.size(1), 8, x.size(3))).mean((2, 3))
        ),
        PICTURE,
    ),
    "repetition": (lambda: eight(lambda x: x.repeat(1, 2, 1, 1).mean((2, 3)), 16), PICTURE),
    "choice": (
        lambda: eight(
            lambda x: torch.where(x > 0.5, x, x.masked_fill(x <= 0.1, 0.0) * 0.3).mean((2, 3))
        ),
        PICTURE,
    ),
    "largest and smallest": (
        lambda: eight(lambda x: torch.max(x.flatten(2).max(-1)[0], x.std((2, 3)))),
        PICTURE,
    ),
    "axes moved": (
        lambda: eight(lambda x: x.movedim(1, -1).swapaxes(1, 2).flip(1).unbind(1)[0].mean(1)),
        PICTURE,
    ),
    **BLOCKS,
}
