"""Pruning Filters for Efficient ConvNets (Li et al. 2017): a filter's L1 norm as its score."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from slimming.graph import ChannelGraph
from slimming.methods.base import Batch, Method


class L1Norm(Method):
    """Ordinary training; what a channel is worth is what its filters weigh (section 3.1).

    Where no filter makes a channel of its own (a selection from a shared stream, as in
    pre-activation networks), the weights that read it are summed: the paper has no such layers.
    Norms of layers of different fan-in can't be compared, so take the share from each layer
    (`scope="layer"`), as the paper does.
    """

    power: int = 1

    def scores(
        self, model: nn.Module, graph: ChannelGraph, batches: Iterable[Batch] = ()
    ) -> dict[str, Tensor]:
        """{gate: sum of |weights| of each channel's filters}; needs no images."""
        weights = model.state_dict()
        norms, counted = _norms(weights, graph, graph.writes, self.power)
        of_readers, _ = _norms(weights, graph, readers(graph), self.power)
        norms = torch.where(counted, norms, of_readers)
        return {gate: norms[channels] for gate, channels in graph.gates.items()}


def readers(graph: ChannelGraph) -> list[tuple[str, int]]:
    """The dimensions along which weights read channels, as `graph.writes` are those that make."""
    return [key for key in graph.dims if key[0] in graph.uses and key in graph.reads]


def _norms(
    weights: dict[str, Tensor], graph: ChannelGraph, keys: Iterable[tuple[str, int]], power: int
) -> tuple[Tensor, Tensor]:
    """(the norm of each channel's weights along these dimensions, whether there are any)."""
    norms = torch.zeros(graph.num_channels, dtype=torch.float64)
    counted = torch.zeros(graph.num_channels, dtype=torch.bool)
    for name, dim in keys:
        channels = graph.dims[name, dim]
        rows = weights[name].detach().cpu().double().abs().transpose(0, dim)
        rows = (rows if power == 1 else rows**power).flatten(1).sum(1)
        cut = channels >= 0  # the others stay in any case
        norms.index_add_(0, channels[cut], rows[cut])
        counted[channels[cut]] = True
    return norms if power == 1 else norms ** (1 / power), counted
