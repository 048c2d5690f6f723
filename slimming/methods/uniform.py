"""A narrower network: the first channels of every layer, as a width multiplier leaves them."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from slimming.graph import ChannelGraph
from slimming.methods.base import Batch, Method


class Uniform(Method):
    """Ordinary training; of every layer the first channels stay, whatever they hold."""

    def scores(
        self, model: nn.Module, graph: ChannelGraph, batches: Iterable[Batch] = ()
    ) -> dict[str, Tensor]:
        """{gate: the higher the further in front a channel stands}; needs no images."""
        order = torch.arange(graph.num_channels, 0, -1, dtype=torch.float64)
        return {gate: order[channels] for gate, channels in graph.gates.items()}
