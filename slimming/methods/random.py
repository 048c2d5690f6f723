"""Channels at random: what every way of choosing has to beat."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from slimming.graph import ChannelGraph
from slimming.methods.base import Batch, Method


class Random(Method):
    """Ordinary training, and scores that know nothing; `torch.manual_seed` repeats them."""

    def scores(
        self, model: nn.Module, graph: ChannelGraph, batches: Iterable[Batch] = ()
    ) -> dict[str, Tensor]:
        """{gate: uniform random numbers, the same for channels that are cut together}."""
        values = torch.rand(graph.num_channels, dtype=torch.float64)
        return {gate: values[channels] for gate, channels in graph.gates.items()}
