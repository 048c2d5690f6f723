"""What a channel costs, and the order in which channels go when that counts too.

One channel of VGG-19 frees between 18 thousand and 885 thousand MACs, and |gamma| knows nothing of
it. A knapsack does: keep a channel where score > mu * cost^power, with mu as high as the budget
wants, costs counted anew as the neighbours shrink (facts and sources: docs/methods.md).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from slimming.graph import ChannelGraph
from slimming.planning.layers import find_layers
from slimming.planning.ranking import Ranking

Cost = Literal["none", "macs", "params"]
COSTS: tuple[str, ...] = get_args(Cost)
PARTS = 128  # channels go in this many parts of what is left; costs are counted after each


class MarginalCosts:
    """What the next channel of each layer would free.

    Sizes are affine in the number of channels that are left, so that parameters and MACs are sums
    of products of them, and a channel frees what the derivative says.
    """

    def __init__(self, graph: ChannelGraph, cost: Cost):
        layers, layer_of = find_layers(graph)
        self.layer_of = layer_of  # (channels,)
        self.sizes = torch.tensor([layer.size for layer in layers], dtype=torch.float64)
        products = _products(graph) if cost == "macs" else _tensors(graph)
        axes = max([1, *(len(factors) for _, factors in products)])
        self._times = torch.tensor([times for times, _ in products], dtype=torch.float64)
        self._full = torch.ones(len(products), axes, dtype=torch.float64)
        cells, owners, shares = [], [], []  # an axis, a layer on it, its entries per channel
        for row, (_, factors) in enumerate(products):
            for column, ids in enumerate(factors):
                self._full[row, column] = len(ids)
                found = torch.bincount(layer_of[ids[ids >= 0]], minlength=len(layers))
                own = found.nonzero().flatten()
                cells.append(torch.full_like(own, row * axes + column))
                owners.append(own)
                shares.append(found[own] / self.sizes[own])
        self._cells, self._owners, self._shares = map(torch.cat, (cells, owners, shares))

    def __call__(self, left: Tensor) -> Tensor:
        """(layers,) float64: MACs, or parameters, of one channel, where so many are left."""
        left, gone = left.double(), torch.zeros_like(self._full).flatten()
        gone.index_add_(0, self._cells, self._shares * (self.sizes - left)[self._owners])
        sizes = self._full - gone.view_as(self._full)
        columns = range(sizes.shape[1])
        others = [sizes[:, [k for k in columns if k != column]].prod(1) for column in columns]
        beside = self._times.unsqueeze(1) * torch.stack(others, 1)
        frees = self._shares * beside.flatten()[self._cells]
        return torch.zeros_like(left).index_add(0, self._owners, frees)


def _products(graph: ChannelGraph) -> list[tuple[float, Sequence[Tensor]]]:
    return [(p.times, [channels for channels, _ in p.factors]) for p in graph.products]


def _tensors(graph: ChannelGraph) -> list[tuple[float, Sequence[Tensor]]]:
    return [
        (1.0, [graph.dims.get((name, d), torch.full((n,), -1)) for d, n in enumerate(shape)])
        for name in graph.parameters
        for shape in [graph.shapes[name]]
    ]


def check_cost(cost: str, power: float) -> None:
    """
    Raises:
        ValueError: it is none of COSTS, or the power isn't a number from 0 on.
    """
    if cost not in COSTS:
        raise ValueError(f"cost is one of {', '.join(COSTS)}; got {cost!r}")
    number = isinstance(power, (int, float)) and not isinstance(power, bool)
    if not number or not 0 <= power < math.inf:
        raise ValueError(f"cost_power is a number from 0 on; got {power!r}")


def by_cost(graph: ChannelGraph, ranking: Ranking, cost: Cost, power: float) -> Ranking:
    """The same channels, those first whose score per cost^power is the lowest.

    Within a layer all cost the same, so that its own order stays.

    Raises:
        ValueError: a score is negative: a quotient would rank it wrongly.
    """
    if (ranking.score < 0).any():
        raise ValueError("scores below 0 can't be weighed against a cost: leave out cost=")
    marginal = MarginalCosts(graph, cost)
    sizes = torch.tensor(ranking.sizes, dtype=torch.float64)
    left, sequence = sizes.clone(), []
    share = (ranking.place + 1).double() / sizes[ranking.layer_of]
    rest = share.argsort(stable=True)  # of equals, those go first that are weaker in their layer
    may_go = torch.tensor([layer not in ranking.stay for layer in range(len(sizes))])
    rest = rest[may_go[ranking.layer_of[rest]]]
    while len(rest):
        price = marginal(left).clamp(min=1e-9) ** power
        worth = ranking.score[rest] / price[ranking.layer_of[rest]]
        order, many = worth.argsort(stable=True), math.ceil(len(rest) / PARTS)
        goes = ranking.layer_of[rest[order[:many]]]
        sequence += goes.tolist()
        left -= torch.bincount(goes, minlength=len(left))
        rest = rest[order[many:].sort().values]
    return replace(ranking, sequence=sequence)
