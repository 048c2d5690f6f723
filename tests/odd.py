"""Small networks with one odd thing in them, and proofs that their graphs are right."""

import torch
from torch import nn

from helpers import random_plan, randomise
from slimming import slim, trace, verify
from zoo import ZOO, block, chain, conv

X = torch.randn(2, 3, 8, 8)


def zoo(name: str):
    make, shape = ZOO[name]
    return trace(make(), torch.zeros(1, *shape))


def cuttable(model: nn.Module, x: torch.Tensor = X, **options: str):
    """The graph of a network, after a proof that what it says is right."""
    randomise(model)
    graph = trace(model, x, **options)
    if graph.gates:
        keep = random_plan(graph, 0.5)
        proof = verify(model, graph, keep, slim(model, graph, keep), x)
        assert proof.holds, proof
    return graph


class Odd(nn.Module):
    """conv, BatchNorm and then something, given as a function."""

    def __init__(self, way, features: int = 8, **layers: nn.Module):
        super().__init__()
        self.conv, self.bn = conv(3, 8), nn.BatchNorm2d(8)
        self.way, self.fc = way, nn.Linear(features, 5)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.way(self, self.bn(self.conv(x)))


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).flip(1)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * torch.ones(x.shape, device=x.device)


def mean(self, x):
    return self.fc(x.mean((2, 3)))


class Variant(nn.Module):
    """conv, BatchNorm and a classifier; what is done in between is given as a function."""

    def __init__(self, way=None):
        super().__init__()
        self.body, self.fc = chain(*block(3, 6)), nn.Linear(6, 5)
        if way is not None:
            self.way = way

    def forward(self, x):
        return self.fc(self.way(self.body(x)).mean((2, 3)))
