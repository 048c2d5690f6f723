"""Filter Pruning via Geometric Median (He et al. 2019): the most replaceable filters go."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from slimming.graph import ChannelGraph
from slimming.methods.base import Batch, Method
from slimming.methods.l1_norm import readers
from slimming.planning.layers import find_layers


class FPGM(Method):
    """Ordinary training; a channel is worth the sum of its filter's distances to all others of its
    layer (section 3.3, equation 5): near the geometric median the others can stand in for it.

    What several layers make together (a residual stream) is one long filter per channel. Sums of
    different layers can't be compared, so take the share from each layer (`scope="layer"`). The
    official code's options for other distances all compute this one.
    """

    def scores(
        self, model: nn.Module, graph: ChannelGraph, batches: Iterable[Batch] = ()
    ) -> dict[str, Tensor]:
        """{gate: sum of Euclidean distances}; needs no images."""
        weights, (layers, layer_of) = model.state_dict(), find_layers(graph)
        sums = torch.zeros(graph.num_channels, dtype=torch.float64)
        for layer in range(len(layers)):
            channels = (layer_of == layer).nonzero().flatten()
            found = _filters(weights, graph, graph.writes, channels)
            found = found or _filters(weights, graph, readers(graph), channels)
            if found:
                filters = torch.cat(found, 1)
                sums[channels] = torch.cdist(filters, filters).sum(1)
        return {gate: sums[channels] for gate, channels in graph.gates.items()}


def _filters(
    weights: dict[str, Tensor],
    graph: ChannelGraph,
    keys: Iterable[tuple[str, int]],
    channels: Tensor,
) -> list[Tensor]:
    """float64 (channels, numbers), one for each dimension that has these channels on it."""
    found = []
    for name, dim in keys:
        ids = graph.dims[name, dim]
        places = torch.isin(ids, channels).nonzero().flatten()
        if not len(places):
            continue
        rows = weights[name].detach().cpu().double().transpose(0, dim).flatten(1)
        own = torch.searchsorted(channels, ids[places])  # which channel each row belongs to
        order = own.argsort(stable=True)
        many = torch.bincount(own, minlength=len(channels))
        first = many.cumsum(0) - many
        turn = torch.arange(len(own)) - first[own[order]]  # which of its channel's rows it is
        filters = rows.new_zeros(len(channels), int(many.max()), rows.shape[1])
        filters[own[order], turn] = rows[places[order]]
        found.append(filters.flatten(1))
    return found
