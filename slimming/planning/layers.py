"""What is planned as one: sets of channels that the same norms score and the same weights make."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from slimming.graph import ChannelGraph
from slimming.rules.channel_ids import NONE, parted


@dataclass(frozen=True)
class Layer:
    """Channels with the same gates and the same weights that make them.

    A BatchNorm behind a concatenation scores several layers: one of each convolution that writes a
    part of it, and none of which may lose every filter.
    """

    gates: tuple[str, ...]  # BatchNorms
    writers: tuple[str, ...]  # modules, or parameters, that make these channels
    size: int

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.gates, *self.writers)


def find_layers(graph: ChannelGraph) -> tuple[list[Layer], Tensor]:
    """The layers of a network, in order of their first channel; (channels,) the layer of each."""
    written = [(name, graph.dims[name, dim]) for name, dim in graph.writes]
    sets = [*graph.gates.values(), *(channels[channels != NONE] for _, channels in written)]
    of, kinds = parted(sets, graph.num_channels)
    sizes = torch.bincount(of, minlength=len(kinds)).tolist()
    names, num = [*graph.gates, *(name for name, _ in written)], len(graph.gates)
    layers = []
    for kind, size in zip(kinds, sizes):
        own = tuple(names[i] for i in kind if i < num)
        layers.append(Layer(own, _modules(names[i] for i in kind if i >= num), size))
    return layers, of


def _modules(weights: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(weight.rpartition(".")[0] or weight for weight in weights))
