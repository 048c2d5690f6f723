"""Shared streams: channels that stay because others may read them, until nobody does.

Where every BatchNorm that reads a stream (pre-activation ResNet, DenseNet) has dropped one of its
channels, the channel itself can go: exact and free. The paper doesn't do it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from slimming.graph.labels import NONE, Labels
from slimming.graph.selection import selects


@dataclass(frozen=True)
class Streams:
    """The stream channels that only channel selections read, numbered from 0."""

    size: int = 0
    dims: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # as in ChannelGraph
    inputs: dict[str, Tensor] = field(default_factory=dict)  # gate -> channel at each input place
    index: dict[str, Tensor] = field(default_factory=dict)  # gate -> place that each gamma reads

    def read(self, alive: Mapping[str, Tensor]) -> Tensor:
        """(size,) bool: the channels that somebody still reads, and one of each layer at least.

        Args:
            alive: {gate: (gammas,) bool}.
        """
        read = torch.zeros(self.size, dtype=torch.bool)
        for gate, inputs in self.inputs.items():
            channels = inputs[self.index[gate]][alive[gate]]
            read[channels[channels != NONE]] = True
        for ids in self.dims.values():
            if (ids != NONE).all() and not read[ids].any():
                read[ids[0]] = True
        return read


def find_streams(
    model: nn.Module,
    labels: Labels,
    classes: Tensor,
    fixed: set[int],
    selecting: Mapping[str, list[Tensor]],
    readers: list[tuple[Tensor, str]],
) -> Streams:
    """The streams of a network.

    Args:
        fixed: classes that stay for other reasons.
        selecting: gate with a channel selection -> the channels it selects among, call by call.
        readers: channels and who reads them.
    """
    inputs = {
        gate: calls[0]
        for gate, calls in selecting.items()
        if all(torch.equal(calls[0], other) for other in calls)
    }
    taboo = set(fixed)
    for channels, reader in readers:
        if reader not in inputs:
            taboo |= set(classes[channels[channels != NONE]].tolist())
    roots = dict.fromkeys(
        root
        for channels in inputs.values()
        for root in classes[channels[channels != NONE]].tolist()
        if root not in taboo
    )
    lookup = torch.full((len(classes) + 1,), NONE)
    for i, root in enumerate(roots):
        lookup[root] = i

    def number(channels: Tensor) -> Tensor:
        return torch.where(channels == NONE, NONE, lookup[classes[channels]])

    stored = model.state_dict()
    places = {gate: number(channels) for gate, channels in inputs.items()}
    places = {gate: ids for gate, ids in places.items() if (ids != NONE).any()}
    dims = {key: number(ids) for key, ids in labels.dims.items() if key[0] in stored}
    return Streams(
        len(roots),
        {key: ids for key, ids in dims.items() if (ids != NONE).any()},
        places,
        {gate: _selected(model.get_submodule(gate)) for gate in places},
    )


def _selected(norm: nn.Module) -> Tensor:
    return norm.index.cpu() if selects(norm) else torch.arange(norm.num_features)
