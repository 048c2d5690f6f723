"""Which channels stay: one global ranking (paper, section 3), under constraints."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

import torch
from torch import Tensor

from slimming.graph import ChannelGraph
from slimming.surgery import alive, slices


@dataclass(frozen=True)
class Plan(Mapping[str, Tensor]):
    """{gate: indices of the channels that stay, sorted}, and what it will cost."""

    keep: dict[str, Tensor]
    kept: int  # channels of all gates together
    total: int
    params: int  # predicted, exact
    macs: int  # predicted, of the convolutions and linear layers, for one image
    shortfalls: tuple[str, ...] = field(default=())  # what was asked for and isn't met, and why
    fingerprint: str = ""  # of the graph it was made for

    def __getitem__(self, gate: str) -> Tensor:
        return self.keep[gate]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keep)

    def __len__(self) -> int:
        return len(self.keep)


def plan(
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    ratio: float,
    *,
    floor: float = 1,
    refill: bool = True,
    round_to: int = 1,
    scope: Literal["global", "layer"] = "global",
) -> Plan:
    """Choose the channels to keep.

    Exactly floor(total x ratio) channels go, in decimal arithmetic, unless a constraint binds. Ties
    are broken by the rank's share within the layer, then by position.

    Args:
        scores: {gate: (channels,)}, higher = keep.
        ratio: share of the channels to remove, 0 <= ratio < 1.
        floor: the least a layer keeps: a number of channels, or a share below 1 (0.5 is the paper's
            "at most 50 % of a layer", Table 4). At least one channel stays in any case.
        refill: make up in other layers for what the floor saved.
        round_to: layers keep a multiple of this (at least one; smaller layers stay whole).
        scope: rank all channels together, or remove the share from each layer (paper, Table 3).

    Raises:
        ValueError: an option out of range, scores that are missing, not finite or of another shape.
    """
    ratio = check_ratio(ratio)
    _check_options(floor, round_to, scope)
    if ratio and not graph.gates:
        raise ValueError("no BatchNorm of this network can be cut; graph.explain() says why")
    order, layer_of = _rank(graph, scores)
    sizes = torch.bincount(layer_of).tolist()
    floors = [_least(size, floor) for size in sizes]
    if scope == "layer":
        goals = [_share(ratio, size) for size in sizes]
        removed = [min(goal, size - low) for goal, size, low in zip(goals, sizes, floors)]
        goal = sum(goals)
    else:
        goal = _share(ratio, len(order))
        removed = _remove_globally(layer_of[order].tolist(), sizes, floors, goal, refill)
    if round_to > 1 and goal:
        total = None if scope == "layer" else goal if refill else sum(removed)
        removed = _round(removed, sizes, floors, round_to, total)
    stays = torch.ones(graph.num_channels, dtype=torch.bool)
    for layer, count in enumerate(removed):
        stays[order[layer_of[order] == layer][:count]] = False
    return _finish(graph, stays, goal, sum(removed), floor, round_to)


def check_ratio(ratio: float) -> float:
    """The ratio, if it is one.

    Raises:
        ValueError: it is not a number with 0 <= ratio < 1.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise ValueError(f"ratio is the share of channels to remove, 0 <= ratio < 1; got {ratio!r}")
    return ratio


def safe_ratio(graph: ChannelGraph, scores: Mapping[str, Tensor]) -> float:
    """The largest ratio at which a global ranking empties no layer."""
    order, layer_of = _rank(graph, scores)
    left = torch.bincount(layer_of).tolist()
    for removed, layer in enumerate(layer_of[order].tolist()):
        left[layer] -= 1
        if left[layer] == 0:  # rounded up a little, so that `_share` gives this very count again
            return math.ceil(removed / len(order) * 1e12) / 1e12
    return 0.0


def predict(graph: ChannelGraph, keep: Mapping[str, Tensor]) -> tuple[int, int]:
    """(parameters, MACs) of the thin network, without building it.

    MACs are the multiply-accumulates of convolutions and linear layers for one image.
    """
    shapes = {name: list(shape) for name, shape in graph.shapes.items()}
    for name, dims in slices(graph, keep).items():
        for dim, index in dims:
            shapes[name][dim] = len(index)
    params = sum(math.prod(shapes[name]) for name in graph.parameters)
    macs = sum(math.prod(shapes[weight]) * uses for weight, uses in graph.uses.items())
    return params, macs + graph.other_macs


def _share(ratio: float, count: int) -> int:
    """floor(ratio x count) as a person would compute it: 0.29 of 100 is 29."""
    return int(Decimal(str(ratio)) * count)


def _least(size: int, floor: float) -> int:
    low = math.ceil(Decimal(str(floor)) * size) if floor < 1 else int(floor)
    return min(size, max(1, low))


def _check_options(floor: float, round_to: int, scope: str) -> None:
    if isinstance(floor, bool) or not isinstance(floor, (int, float)) or not 0 <= floor < math.inf:
        raise ValueError(f"floor is a number of channels, or a share below 1; got {floor!r}")
    if floor > 1 and floor != int(floor):
        raise ValueError(f"floor above 1 is a whole number of channels; got {floor!r}")
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to is a whole number from 1 on; got {round_to!r}")
    if scope not in ("global", "layer"):
        raise ValueError(f"scope is global or layer; got {scope!r}")


def _rank(graph: ChannelGraph, scores: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(channels from weakest to strongest, layer of each channel).

    A channel scored by several gates gets their mean; a layer is a set of channels with one and the
    same set of gates.
    """
    total = torch.zeros(graph.num_channels, dtype=torch.float64)
    count = torch.zeros(graph.num_channels, dtype=torch.long)
    gates_of: list[list[str]] = [[] for _ in range(graph.num_channels)]
    for gate, ids in graph.gates.items():
        if gate not in scores:
            raise ValueError(f"there are no scores for '{gate}'")
        score = torch.as_tensor(scores[gate]).detach().cpu().double()
        if score.shape != ids.shape:
            raise ValueError(f"'{gate}' has {len(ids)} channels but {tuple(score.shape)} scores")
        if not score.isfinite().all():
            raise ValueError(f"the scores of '{gate}' are not all finite: did training diverge?")
        total.index_add_(0, ids, score)
        count.index_add_(0, ids, torch.ones_like(ids))
        for channel in set(ids.tolist()):
            gates_of[channel].append(gate)
    score = total / count.clamp(min=1)
    layers = {gates: i for i, gates in enumerate(dict.fromkeys(map(tuple, gates_of)))}
    layer_of = torch.tensor([layers[tuple(gates)] for gates in gates_of], dtype=torch.long)
    share = torch.zeros(graph.num_channels, dtype=torch.float64)
    for layer in range(len(layers)):
        members = (layer_of == layer).nonzero().flatten()
        ranks = score[members].argsort(stable=True).argsort(stable=True)
        share[members] = ranks.double() / len(members)
    by_share = share.argsort(stable=True)
    return by_share[score[by_share].argsort(stable=True)], layer_of


def _remove_globally(
    layers: list[int], sizes: list[int], floors: list[int], goal: int, refill: bool
) -> list[int]:
    """How many channels each layer loses; `layers` is the layer of each channel, weakest first."""
    removed = [0] * len(sizes)
    for rank, layer in enumerate(layers):
        if sum(removed) == goal or (not refill and rank == goal):
            break
        if sizes[layer] - removed[layer] > floors[layer]:
            removed[layer] += 1
    return removed


def _round(
    removed: list[int], sizes: list[int], floors: list[int], multiple: int, goal: int | None
) -> list[int]:
    """Kept counts become the nearest multiples; then, given a goal for the sum of what is removed,
    the layers closest to a tie take the next multiple instead until the sum is as near as it gets.
    """

    def options(layer: int) -> list[int]:
        size = sizes[layer]
        counts = [k for k in range(multiple, size + 1, multiple) if k >= floors[layer]]
        return counts or [size]

    wanted = [size - gone for size, gone in zip(sizes, removed)]
    kept = [min(options(i), key=lambda k: (abs(k - wanted[i]), -k)) for i in range(len(sizes))]
    while goal is not None:
        gap = sum(sizes) - goal - sum(kept)  # > 0: more channels may stay
        moves = [
            (abs(gap - (k - kept[i])), abs(k - wanted[i]), i, k)
            for i in range(len(sizes))
            for k in options(i)
            if abs(k - kept[i]) <= multiple and abs(gap - (k - kept[i])) < abs(gap)
        ]
        if not moves:
            break
        _, _, layer, count = min(moves)
        kept[layer] = count
    return [size - k for size, k in zip(sizes, kept)]


def _finish(
    graph: ChannelGraph, stays: Tensor, goal: int, gone: int, floor: float, round_to: int
) -> Plan:
    keep = {gate: stays[ids].nonzero().flatten() for gate, ids in graph.gates.items()}
    assert torch.equal(alive(graph, keep), stays)
    params, macs = predict(graph, keep)
    shortfalls = ()
    if gone != goal:
        shortfalls = (
            f"{gone} channels go instead of {goal}: floor={floor} and round_to={round_to} bind",
        )
    total = graph.num_channels
    return Plan(keep, total - gone, total, params, macs, shortfalls, graph.fingerprint)
