"""What is planned as one: sets of channels that the same norms score and the same weights make."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from slimming.graph import ChannelGraph


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
    gates: list[list[str]] = [[] for _ in range(graph.num_channels)]
    weights: list[list[str]] = [[] for _ in range(graph.num_channels)]
    for gate, ids in graph.gates.items():
        for channel in set(ids.tolist()):
            gates[channel].append(gate)
    for name, dim in graph.writes:
        for channel in set(graph.dims[name, dim].tolist()) - {-1}:
            weights[channel].append(name)
    kinds = [(tuple(own), tuple(made)) for own, made in zip(gates, weights)]
    number = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    of = torch.tensor([number[kind] for kind in kinds], dtype=torch.long)
    sizes = torch.bincount(of, minlength=len(number)).tolist()
    return [Layer(own, _modules(made), size) for (own, made), size in zip(number, sizes)], of


def _modules(weights: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(weight.rpartition(".")[0] or weight for weight in weights))
