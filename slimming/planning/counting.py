"""Parameters and multiply-accumulates of a thin network that isn't built."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from slimming.graph import ChannelGraph
from slimming.planning.slices import slices


def predict(graph: ChannelGraph, keep: Mapping[str, Tensor]) -> tuple[int, int]:
    """(parameters, MACs) of the thin network, without building it.

    MACs are the multiply-accumulates of convolutions and linear layers for one image.
    """
    shapes = {name: list(shape) for name, shape in graph.shapes.items()}
    for name, dims in slices(graph, keep).items():
        for dim, index in dims:
            shapes[name][dim] = len(index)
    params = sum(math.prod(shapes[name]) for name in graph.parameters)
    macs = sum(math.prod(shapes[weight]) * uses for weight, uses in graph.uses.items())
    return params, macs + graph.other_macs


class Counter:
    """What `predict` says, at once: a search asks hundreds of times."""

    def __init__(self, graph: ChannelGraph, unread: bool):
        """unread: channels that nobody reads any more go too."""
        self._graph, self._unread = graph, unread
        names = list(dict.fromkeys([*graph.parameters, *graph.uses]))
        self._dims = max([1, *(len(graph.shapes[name]) for name in names)])
        padded = [[*graph.shapes[name], *[1] * self._dims][: self._dims] for name in names]
        self._sizes = torch.tensor(padded, dtype=torch.long).flatten()
        self._row = {name: i for i, name in enumerate(names)}
        streams = graph.streams.dims if unread else {}
        keys = [key for key in {**graph.dims, **streams} if key[0] in self._row]
        lengths = [graph.shapes[name][dim] for name, dim in keys]
        cells = torch.tensor([self._row[name] * self._dims + dim for name, dim in keys])
        self._cells = cells.long().repeat_interleave(torch.tensor(lengths, dtype=torch.long))
        self._channels = self._numbers(graph.dims, keys, lengths)
        self._streams = self._numbers(streams, keys, lengths)

    def __call__(self, stays: Tensor) -> tuple[int, int]:
        """(parameters, MACs) where these channels stay."""
        here = torch.cat([stays, torch.ones(1, dtype=torch.bool)])[self._channels]
        if self._unread:
            alive = {gate: stays[ids] for gate, ids in self._graph.gates.items()}
            read = self._graph.streams.read(alive)
            here &= torch.cat([read, torch.ones(1, dtype=torch.bool)])[self._streams]
        sizes = self._sizes.index_add(0, self._cells, (~here).long(), alpha=-1)
        entries = sizes.view(-1, self._dims).prod(1).tolist()
        params = sum(entries[self._row[name]] for name in self._graph.parameters)
        macs = sum(entries[self._row[name]] * uses for name, uses in self._graph.uses.items())
        return params, macs + self._graph.other_macs

    @staticmethod
    def _numbers(dims: Mapping, keys: list[tuple[str, int]], lengths: list[int]) -> Tensor:
        """What stands at each index of these dimensions, one after the other; -1 is nothing."""
        parts = [dims.get(key, torch.full((size,), -1)) for key, size in zip(keys, lengths)]
        return torch.cat([torch.zeros(0, dtype=torch.long), *parts])
