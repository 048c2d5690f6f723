"""Channels from the weakest to the strongest (paper, section 3)."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slimming.graph import ChannelGraph
from slimming.planning.layers import Layer, find_layers

Combine = Literal["mean", "sum", "max", "min", "l2"]
Scope = Literal["global", "layer", "normalized"]
# How large scores may be, so that a layer's can be summed up, or squared, in float64.
LARGEST = {"l2": 1e150}


@dataclass(frozen=True)
class Ranking:
    """The order in which channels go."""

    sequence: list[int]  # the layer of each channel that may go, weakest channel first
    layers: list[Layer]
    stay: frozenset[int]  # layers of which nothing may go
    layer_of: Tensor  # (channels,) the layer of each channel
    place: Tensor  # (channels,) its place within the layer; 0 is the weakest
    score: Tensor  # (channels,) float64, of all gates of a channel together

    @property
    def sizes(self) -> list[int]:
        """Channels of each layer."""
        return [layer.size for layer in self.layers]

    def stays(self, removed: Sequence[int]) -> Tensor:
        """(channels,) bool: those that are left when each layer loses so many of its weakest."""
        return self.place >= torch.tensor(removed, dtype=torch.long)[self.layer_of]

    def members(self, layer: int) -> Tensor:
        """The channels of a layer, the weakest first."""
        own = (self.layer_of == layer).nonzero().flatten()
        return own[self.place[own].argsort()]

    def name(self, layer: int) -> str:
        """ "'bn'", or where it has other layers too "'bn' (of one)"."""
        own = self.layers[layer]
        alone = sum(other.gates == own.gates for other in self.layers) == 1
        return f"'{' + '.join(own.gates)}'" + ("" if alone else f" (of {' + '.join(own.writers)})")

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
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    scope: Scope,
    combine: Combine,
    stay: Collection[int] = (),
) -> Ranking:
    """Rank the channels of all layers together, or (scope "layer") the layers in step.

    Scores that are equal in float32 tie. Ties are broken by the rank's share within the layer, then
    by position.

    Args:
        stay: layers of `find_layers` of which nothing may go.

    Raises:
        ValueError: scores that are missing, not finite or of another shape; too large for float64,
            or negative where they are squared.
    """
    values, ids = _collect(graph, scores, combine)
    score = _combine(values, ids, graph.num_channels, combine)
    layers, layer_of = find_layers(graph)
    place = torch.zeros(graph.num_channels, dtype=torch.long)
    share = torch.zeros(graph.num_channels, dtype=torch.float64)
    sizes = [layer.size for layer in layers]
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
    sequence = [layer for layer in layer_of[order].tolist() if layer not in stay]
    return Ranking(sequence, layers, frozenset(stay), layer_of, place, score)


def _collect(
    graph: ChannelGraph, scores: Mapping[str, Tensor], combine: Combine
) -> tuple[Tensor, Tensor]:
    values, ids = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.long)]
    for gate, channels in graph.gates.items():
        if gate not in scores:
            raise ValueError(f"there are no scores for '{gate}'")
        score = torch.as_tensor(scores[gate]).detach().cpu().double()
        if score.shape != channels.shape:
            raise ValueError(
                f"'{gate}' has {len(channels)} channels but {tuple(score.shape)} scores"
            )
        _check(gate, score, combine)
        values.append(_rounded(score))
        ids.append(channels)
    return torch.cat(values), torch.cat(ids)


def _rounded(score: Tensor) -> Tensor:
    """To 24 binary digits, which are float32's, at any magnitude that float64 has."""
    bits = score.view(torch.long)  # 29 digits too many; a tie goes to the even neighbour
    even = (bits >> 29) & 1
    return ((bits + 2**28 - 1 + even) & -(2**29)).view(torch.float64)


def _check(gate: str, score: Tensor, combine: Combine) -> None:
    if not score.isfinite().all():
        lost, unbounded = int(score.isnan().sum()), int(score.isinf().sum())
        why = f"{lost} are NaN: did training diverge?" if lost else f"{unbounded} are infinite: to "
        way = "" if lost else "keep a layer whatever its scores are, exclude it"
        raise ValueError(f"the scores of '{gate}' are not all finite: {why}{way}")
    if combine == "l2" and (score < 0).any():
        raise ValueError(
            f"'{gate}' has negative scores, and combine=l2 squares them: the lowest would count as "
            f"high ones; choose another combine"
        )
    most = LARGEST.get(combine, 1e300)
    if (score.abs() > most).any():
        raise ValueError(
            f"'{gate}' has scores beyond {most:g}, too large to compute with under "
            f"combine={combine}: divide all scores by one number, which changes no ranking"
        )


def _combine(values: Tensor, ids: Tensor, count: int, combine: Combine) -> Tensor:
    """(count,) one score per channel from those that its gates give it."""
    zeros = torch.zeros(count, dtype=torch.float64)
    if combine in ("max", "min"):
        return zeros.scatter_reduce(0, ids, values, f"a{combine}", include_self=False)
    total = zeros.index_add(0, ids, values.square() if combine == "l2" else values)
    if combine == "l2":
        return total.sqrt()
    return total / torch.bincount(ids, minlength=count) if combine == "mean" else total
