"""Blocks that well-known networks are made of, at a toy size; {name: (builder, input shape)}."""

from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def unit(num_in: int, num_out: int, size: int = 3, **options) -> nn.Sequential:
    options = {"padding": size // 2, "bias": False} | options
    layer = nn.Conv2d(num_in, num_out, size, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(num_out), nn.ReLU())


class Block(nn.Module):
    """A stem, a block with layers of its own, and a classifier."""

    width, features = 8, 8

    def __init__(self):
        super().__init__()
        self.stem = unit(3, self.width)
        self.make()
        self.fc = nn.Linear(self.features, 5)

    def make(self) -> None: ...

    def way(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor):
        return self.fc(self.way(self.stem(x)).mean((2, 3)))


class RepVGG(Block):
    """The identity, too, has a BatchNorm: it reads a stream that two convolutions read as well."""

    def make(self) -> None:
        self.large, self.small = unit(8, 8)[:2], unit(8, 8, 1)[:2]
        self.same = nn.BatchNorm2d(8)

    def way(self, x: Tensor) -> Tensor:
        return F.relu(self.large(x) + self.small(x) + self.same(x))


class CrossStage(Block):
    """YOLO's C2f: halves of a chunk, the second goes on, and all of it is concatenated."""

    features = 6

    def make(self) -> None:
        self.inner = nn.ModuleList([unit(4, 4), unit(4, 4)])
        self.last = unit(16, 6, 1)

    def way(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        parts = [first, second]
        for layer in self.inner:
            parts.append(layer(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Ghost(Block):
    """Half of the channels are made from the other half by a cheap depthwise convolution."""

    features = 10

    def make(self) -> None:
        self.first, self.cheap = unit(8, 5, 1), unit(5, 5, groups=5)

    def way(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return torch.cat([x, self.cheap(x)], dim=1)


class MixedKernels(Block):
    """Each half of the channels has its own depthwise kernel (MixNet)."""

    def make(self) -> None:
        self.kernels = nn.ModuleList([unit(4, 4, 3, groups=4), unit(4, 4, 5, groups=4)])
        self.last = unit(8, 8, 1)

    def way(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return self.last(torch.cat([self.kernels[0](first), self.kernels[1](second)], 1))


class Res2(Block):
    """Quarters of the channels, each added to the next one's input (Res2Net)."""

    def make(self) -> None:
        self.inner = nn.ModuleList([unit(2, 2) for _ in range(3)])

    def way(self, x: Tensor) -> Tensor:
        first, second, third, fourth = x.chunk(4, dim=1)
        done = [first]
        for layer, part in zip(self.inner, (second, third, fourth)):
            done.append(layer(part + done[-1]))
        return x + torch.cat(done, 1)


class UNet(Block):
    """Down, up by a transposed convolution, and a skip; a map of logits comes out."""

    def make(self) -> None:
        self.down, self.up = unit(8, 10, stride=2), nn.ConvTranspose2d(10, 6, 2, 2)
        self.last = unit(14, 7)
        self.head = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.last(torch.cat([x, self.up(self.down(x))], 1)))


class CoordinateAttention(Block):
    """Rows and columns are pooled, laid end to end, and taken apart again."""

    def make(self) -> None:
        self.down = unit(8, 4, 1)
        self.rows, self.columns = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1)

    def way(self, x: Tensor) -> Tensor:
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)
        y = self.down(torch.cat([rows, columns], dim=2))
        rows, columns = torch.split(y, [x.size(2), x.size(3)], dim=2)
        rows, columns = self.rows(rows).sigmoid(), self.columns(columns.transpose(2, 3)).sigmoid()
        return x * rows * columns


class ExcitationByConvolution(Block):
    """Squeeze-excitation with 1x1 convolutions, stretched back by `expand_as`."""

    def make(self) -> None:
        self.down, self.up = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)

    def way(self, x: Tensor) -> Tensor:
        gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1))))
        return x * F.hardsigmoid(gate).expand_as(x)


class ChannelConvolution(Block):
    """ECA: a convolution along the channels. What it mixes has to stay."""

    def make(self) -> None:
        self.mix, self.last = nn.Conv1d(1, 1, 3, padding=1, bias=False), unit(8, 8)

    def way(self, x: Tensor) -> Tensor:
        y = self.mix(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
        return self.last(x * torch.sigmoid(y))


class Attention(Block):
    """Attention over positions beside the stream: its own convolutions stay, the stream doesn't."""

    def make(self) -> None:
        self.query, self.key = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.value, self.back = nn.Conv2d(8, 4, 1), unit(4, 8, 1)[:2]

    def way(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (self.query, self.key, self.value))
        y = torch.bmm(v, torch.bmm(q.transpose(1, 2), k).softmax(-1).transpose(1, 2))
        return x + self.back(y.unflatten(2, (8, 8)))


class PaddedShortcut(Block):
    """Option A of the CIFAR ResNet: every second position, and zeros for the new channels."""

    features = 12

    def make(self) -> None:
        self.inner, self.last = unit(8, 6, stride=2), unit(6, 12)[:2]

    def way(self, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return F.relu(short + self.last(self.inner(x)))


class PositionsFirst(nn.Module):
    """PointNet: 1d convolutions over points, and the largest of each channel."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6), nn.ReLU())
        self.b = nn.Sequential(nn.Conv1d(12, 9, 1), nn.BatchNorm1d(9))
        self.fc = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        best = torch.max(x, 2, keepdim=True)[0].repeat(1, 1, x.size(2))
        return self.fc(torch.max(self.b(torch.cat([x, best], 1)), 2).values)


class Maps(NamedTuple):
    fine: Tensor
    coarse: list[Tensor]


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = unit(3, 6), unit(6, 8, stride=2)

    def forward(self, x: Tensor) -> Maps:
        x = self.a(x)
        return Maps(fine=x, coarse=[self.b(x)])


class Structured(nn.Module):
    """Named tuples and lists between modules, keywords, a ModuleDict, a dictionary as output."""

    def __init__(self):
        super().__init__()
        self.body = Pyramid()
        self.sides = nn.ModuleDict({"fine": unit(6, 7, 1), "coarse": unit(8, 7, 1)})
        self.fc = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> dict[str, object]:
        maps = self.body(x=x)
        fine = self.sides["fine"](input=maps.fine)
        coarse = self.sides["coarse"](maps.coarse[0])
        fine = fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        sums = [m.mean(dim=(2, 3)) for m in (fine, coarse)]
        return OrderedDict(out=self.fc(sums[0]), more=[self.fc(sums[1])])


PICTURE = (3, 8, 8)
BLOCKS = {
    **{kind.__name__: (kind, PICTURE) for kind in (*Block.__subclasses__(), Structured)},
    "PositionsFirst": (PositionsFirst, (3, 10)),
}
