"""Parameters and multiply-accumulates of a thin network that isn't built."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slimming.graph import ChannelGraph
from slimming.graph.slices import UNREAD, alive


def predict(graph: ChannelGraph, keep: Mapping[str, Tensor]) -> tuple[int, int]:
    """(parameters, MACs) of the thin network, without building it.

    MACs are the multiply-accumulates of convolutions and matrix products, those of attention and
    recurrent layers included, for one image.
    """
    return Counter(graph, UNREAD in keep)(alive(graph, keep))


class Counter:
    """What `predict` says, at once: a search asks hundreds of times."""

    def __init__(self, graph: ChannelGraph, unread: bool):
        """unread: channels that nobody reads any more go too."""
        self._graph, self._unread = graph, unread
        streams = graph.streams.dims if unread else {}
        axes = []
        for name in graph.parameters:
            for dim, size in enumerate(graph.shapes[name]):
                none = torch.full((size,), -1)
                key = name, dim
                axes.append((graph.dims.get(key, none), streams.get(key, none)))
        self._params = _Sizes([len(graph.shapes[name]) for name in graph.parameters], axes)
        factors = [factor for product in graph.products for factor in product.factors]
        self._macs = _Sizes([len(product.factors) for product in graph.products], factors)
        self._times = torch.tensor([p.times for p in graph.products], dtype=torch.float64)

    def __call__(self, stays: Tensor) -> tuple[int, int]:
        """(parameters, MACs) where these channels stay."""
        read = torch.ones(self._graph.streams.size, dtype=torch.bool)
        if self._unread:
            gates = self._graph.gates.items()
            read = self._graph.streams.read({gate: stays[ids] for gate, ids in gates})
        params = self._params(stays, read).sum()
        macs = (self._macs(stays, read) * self._times).sum() if len(self._times) else 0
        return int(params), round(float(macs))


class _Sizes:
    """Products of sizes, some of which are numbers of channels."""

    def __init__(self, counts: Sequence[int], axes: Sequence[tuple[Tensor, Tensor]]):
        """counts: how many axes each product has, in order; axes: (channels, stream channels)."""
        lengths = torch.tensor([len(ids) for ids, _ in axes], dtype=torch.long)
        self._full, self._most = lengths, max([1, *counts])
        nothing = torch.zeros(0, dtype=torch.long)
        self._axis = torch.arange(len(axes)).repeat_interleave(lengths)
        self._channels = torch.cat([nothing, *(ids for ids, _ in axes)])
        self._streams = torch.cat([nothing, *(ids for _, ids in axes)])
        cells = [i * self._most + k for i, count in enumerate(counts) for k in range(count)]
        self._cells, self._rows = torch.tensor(cells, dtype=torch.long), len(counts)

    def __call__(self, stays: Tensor, read: Tensor) -> Tensor:
        """(products,) where these channels stay and those of the streams are read."""
        one = torch.ones(1, dtype=torch.bool)
        here = torch.cat([stays, one])[self._channels] & torch.cat([read, one])[self._streams]
        sizes = self._full.index_add(0, self._axis, (~here).long(), alpha=-1)
        table = torch.ones(self._rows * self._most, dtype=torch.float64)
        table[self._cells] = sizes.double()
        return table.view(self._rows, self._most).prod(1)
