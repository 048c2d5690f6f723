"""Channels from the weakest to the strongest (paper, section 3)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slimming.graph import ChannelGraph

Combine = Literal["mean", "sum", "max", "min", "l2"]
Scope = Literal["global", "layer", "normalized"]


@dataclass(frozen=True)
class Ranking:
    """The order in which channels go. A layer is a set of channels with the same gates."""

    sequence: list[int]  # the layer of each channel, weakest channel first
    sizes: list[int]  # channels of each layer
    gates: list[tuple[str, ...]]  # of each layer
    layer_of: Tensor  # (channels,) the layer of each channel
    place: Tensor  # (channels,) its place within the layer; 0 is the weakest

    def stays(self, removed: Sequence[int]) -> Tensor:
        """(channels,) bool: those that are left when each layer loses so many of its weakest."""
        return self.place >= torch.tensor(removed, dtype=torch.long)[self.layer_of]

    def name(self, layer: int) -> str:
        return f"'{' + '.join(self.gates[layer])}'"

    def safe(self) -> int:
        """How many channels can go along the ranking before a layer loses its last one."""
        left = list(self.sizes)
        for count, layer in enumerate(self.sequence):
            left[layer] -= 1
            if left[layer] == 0:
                return count
        return 0

    def emptied(self, count: int) -> list[int]:
        """The layers of which the `count` weakest channels are every one."""
        seen = [0] * len(self.sizes)
        for layer in self.sequence[:count]:
            seen[layer] += 1
        return [layer for layer, size in enumerate(self.sizes) if seen[layer] == size]


def rank(
    graph: ChannelGraph, scores: Mapping[str, Tensor], scope: Scope, combine: Combine
) -> Ranking:
    """Rank the channels of all layers together, or (scope "layer") the layers in step.

    Scores that are equal in float32 tie. Ties are broken by the rank's share within the layer, then
    by position.

    Raises:
        ValueError: scores that are missing, not finite or of another shape.
    """
    values, ids = _collect(graph, scores)
    score = _combine(values, ids, graph.num_channels, combine)
    layer_of, gates = _layers(graph)
    place = torch.zeros(graph.num_channels, dtype=torch.long)
    share = torch.zeros(graph.num_channels, dtype=torch.float64)
    sizes = torch.bincount(layer_of, minlength=len(gates)).tolist()
    for layer, size in enumerate(sizes):
        members = (layer_of == layer).nonzero().flatten()
        place[members] = score[members].argsort(stable=True).argsort(stable=True)
        share[members] = place[members].double() / size
        if scope == "normalized":  # summed exactly, so that no machine rounds it in another way
            mean = math.fsum(score[members].abs().tolist()) / size
            score[members] /= mean or 1.0
    if scope == "layer":  # a channel goes as soon as the ratio covers it in its layer
        order = ((place + 1).double() / torch.tensor(sizes)[layer_of]).argsort(stable=True)
    else:
        by_share = share.argsort(stable=True)
        order = by_share[score[by_share].argsort(stable=True)]
    return Ranking(layer_of[order].tolist(), sizes, gates, layer_of, place)


def _collect(graph: ChannelGraph, scores: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    values, ids = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.long)]
    for gate, channels in graph.gates.items():
        if gate not in scores:
            raise ValueError(f"there are no scores for '{gate}'")
        score = torch.as_tensor(scores[gate]).detach().cpu().double()
        if score.shape != channels.shape:
            raise ValueError(
                f"'{gate}' has {len(channels)} channels but {tuple(score.shape)} scores"
            )
        # Veltkamp's splitting: the upper 24 of 53 binary digits, which are those of float32.
        scaled = score * (2**29 + 1)
        values.append(scaled - (scaled - score))
        if not values[-1].isfinite().all():
            raise ValueError(f"the scores of '{gate}' are not all finite: did training diverge?")
        ids.append(channels)
    return torch.cat(values), torch.cat(ids)


def _combine(values: Tensor, ids: Tensor, count: int, combine: Combine) -> Tensor:
    """(count,) one score per channel from those that its gates give it."""
    zeros = torch.zeros(count, dtype=torch.float64)
    if combine in ("max", "min"):
        return zeros.scatter_reduce(0, ids, values, f"a{combine}", include_self=False)
    total = zeros.index_add(0, ids, values.square() if combine == "l2" else values)
    if combine == "l2":
        return total.sqrt()
    return total / torch.bincount(ids, minlength=count) if combine == "mean" else total


def _layers(graph: ChannelGraph) -> tuple[Tensor, list[tuple[str, ...]]]:
    """(layer of each channel, gates of each layer)."""
    gates_of: list[list[str]] = [[] for _ in range(graph.num_channels)]
    for gate, ids in graph.gates.items():
        for channel in set(ids.tolist()):
            gates_of[channel].append(gate)
    layers = {gates: i for i, gates in enumerate(dict.fromkeys(map(tuple, gates_of)))}
    layer_of = torch.tensor([layers[tuple(gates)] for gates in gates_of], dtype=torch.long)
    return layer_of, list(layers)
