"""Which channels stay: one global ranking (paper, section 3), under constraints.

`ranking.py` orders the channels, `choice.py` and `rounding.py` respect floors, branches and widths,
`budget.py` finds how many have to go for a target; here they are put together.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, get_args

from torch import Tensor

from slimming.graph import ChannelGraph
from slimming.planning.budget import Budget, check_target
from slimming.planning.choice import Choice, Removed
from slimming.planning.counting import Counter, predict
from slimming.planning.ranking import Combine, Ranking, Scope, rank
from slimming.planning.rounding import Rounding

Dead = Literal["floor", "error", "bypass"]
Unread = Literal["keep", "remove"]
CHOICES = {
    "rounding": get_args(Rounding),
    "scope": get_args(Scope),
    "combine": get_args(Combine),
    "dead": get_args(Dead),
    "unread": get_args(Unread),
}


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
    unread: Unread = "keep"  # what happens to channels that nobody reads any more
    safe_ratio: float = 1.0  # the highest at which the ranking empties no layer; 1: all of them
    latency: float | None = None  # measured, if it was a target: share of the dense network's time

    def __getitem__(self, gate: str) -> Tensor:
        return self.keep[gate]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keep)

    def __len__(self) -> int:
        return len(self.keep)


def plan(
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    ratio: float | None = None,
    *,
    target: Mapping[str, float] | None = None,
    measure: Callable[[Plan], float] | None = None,
    floor: float = 1,
    refill: bool = True,
    round_to: int = 1,
    rounding: Rounding = "nearest",
    scope: Scope = "global",
    combine: Combine = "max",
    dead: Dead = "floor",
    unread: Unread = "keep",
) -> Plan:
    """Choose the channels to keep, for a ratio or for a target.

    Given a ratio, exactly floor(total x ratio) channels go, in decimal arithmetic, unless a
    constraint binds. Ties are broken by the rank's share within the layer, then by position.

    Given a target, as few channels go as it takes (bisection along the ranking). Where the last of
    them was an expensive one, channels come back, the strongest first, until the cost is within
    1 % of the target. Time is measured, at each step of the bisection: tables of times per layer
    and width don't add up, neither on CPUs nor on GPUs.

    Args:
        scores: {gate: (channels,)}, higher = keep.
        ratio: share of the channels to remove, 0 <= ratio < 1.
        target: the most that may stay: {"macs": 0.5} is half of what the network costs before this
            cut, a number above 1 the MACs themselves; also "params", and "latency", which is always
            a share. All of them hold.
        measure: plan -> time of the thin network as a share of the dense one's; for "latency".
        floor: the least a layer keeps: a number of channels, or a share below 1 (0.5 is the paper's
            "at most 50 % of a layer", Table 4). At least one channel stays in any case.
        refill: make up in other layers for what the floor saved; a target always does.
        round_to: layers keep a multiple of this (at least one; smaller layers stay whole).
        rounding: keep the nearest multiple, the next higher (then no more channels go than asked;
            a layer may stay whole) or the next lower (no fewer).
        scope: rank all channels together; or take the share from each layer (paper, Table 3); or
            divide scores by their layer's mean magnitude before ranking them together, which is
            Torch-Pruning's default and not the paper's.
        combine: how a channel that several gates score gets one score.
        dead: a layer of which the ranking takes every channel keeps its floor, or is an error; or
            its branch goes as a whole if the graph knows one, and the floor holds in the others.
        unread: keep or remove channels that nobody reads any more.

    Raises:
        ValueError: an option out of range, scores that are missing, not finite or of another shape,
            a target out of reach, a layer that would be emptied under dead="error".
    """
    _check_goal(ratio, target, measure)
    words = {"rounding": rounding, "scope": scope, "combine": combine, "dead": dead}
    check_options(floor, round_to, unread=unread, **words)
    if (ratio or target) and not graph.gates:
        raise ValueError(_nothing_to_cut(graph))
    ranking = rank(graph, scores, scope, combine)
    refill = refill and scope != "layer"
    choice = Choice(graph, ranking, floor, refill, round_to, rounding, dead == "bypass")
    drafts = _Drafts(graph, ranking, unread)
    if target is None:
        sizes = ranking.sizes if scope == "layer" else [len(ranking.sequence)]
        goal = sum(_share(ratio, size) for size in sizes)
        removed, saved = choice.along(goal) if scope == "layer" else choice.exactly(goal)
        gone, why, latency = sum(removed), f"floor={floor} and round_to={round_to} bind", None
        notes = [] if gone == goal else [f"{gone} channels go instead of {goal}: {why}"]
    else:
        dense = dict(zip(("params", "macs"), predict(graph, {})))
        budget = Budget(target, dense, drafts.costs, lambda gone: measure(drafts.plan(gone)))
        goal, removed, saved = budget.meet(choice)
        notes, latency = budget.gaps(removed), budget.costs(removed).get("latency")
    if dead == "error":
        _refuse_dead(ranking, goal)
    if saved:
        names = ", ".join(ranking.name(layer) for layer in saved)
        notes.append(f"{names}: every channel was to go, but no branch could go as a whole")
    safe = 1.0 if scope == "layer" else _safe_ratio(ranking)
    return drafts.plan(removed, shortfalls=tuple(notes), safe_ratio=safe, latency=latency)


def _nothing_to_cut(graph: ChannelGraph) -> str:
    if not graph.fixed:
        return "this network has no BatchNorm, whose gammas are what ranks channels"
    norm, reason = next(iter(graph.fixed.items()))
    return f"no BatchNorm of this network can be cut; the first, '{norm}', stays: {reason}"


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
    return _safe_ratio(rank(graph, scores, "global", "max"))


class _Drafts:
    """Plans, and what they cost, from how many channels each layer loses."""

    def __init__(self, graph: ChannelGraph, ranking: Ranking, unread: Unread):
        self._graph, self._ranking, self._unread = graph, ranking, unread
        self._count, self._fingerprint = Counter(graph, unread == "remove"), graph.fingerprint

    def plan(self, removed: Removed, **more: Any) -> Plan:
        stays = self._ranking.stays(removed)
        keep = {gate: stays[ids].nonzero().flatten() for gate, ids in self._graph.gates.items()}
        kept, (params, macs) = int(stays.sum()), self._count(stays)
        known = {"fingerprint": self._fingerprint, "unread": self._unread}
        return Plan(keep, kept, len(stays), params, macs, **known, **more)

    def costs(self, removed: Removed) -> dict[str, float]:
        params, macs = self._count(self._ranking.stays(removed))
        return {"params": params, "macs": macs}


def _safe_ratio(ranking: Ranking) -> float:
    # Rounded up a little, so that `_share` gives this very count again.
    return math.ceil(ranking.safe() / max(1, len(ranking.sequence)) * 1e12) / 1e12


def _share(ratio: float, count: int) -> int:
    """floor(ratio x count) as a person would compute it: 0.29 of 100 is 29."""
    return int(Decimal(str(ratio)) * count)


def _refuse_dead(ranking: Ranking, goal: int) -> None:
    if emptied := ranking.emptied(goal):
        names = ", ".join(ranking.name(layer) for layer in emptied)
        raise ValueError(
            f"{names} would lose every channel: the highest ratio at which no layer does is "
            f"{_safe_ratio(ranking):.4g}; or say dead=floor to keep some"
        )


def _check_goal(
    ratio: float | None,
    target: Mapping[str, float] | None,
    measure: Callable[[Plan], float] | None,
) -> None:
    if target is None:
        check_ratio(ratio)
        return
    if ratio is not None:
        raise ValueError(f"give ratio or target, not both; got ratio={ratio!r}, target={target!r}")
    check_target(target)
    if "latency" in target and measure is None:
        raise ValueError(
            "target.latency needs measure, a function from a plan to its share of time"
        )


def check_options(floor: float, round_to: int, **words: str) -> None:
    """What of a plan's options can be judged without a network.

    Raises:
        ValueError: one is out of range, or none of its choices.
    """
    if isinstance(floor, bool) or not isinstance(floor, (int, float)) or not 0 <= floor < math.inf:
        raise ValueError(f"floor is a number of channels, or a share below 1; got {floor!r}")
    if floor > 1 and floor != int(floor):
        raise ValueError(f"floor above 1 is a whole number of channels; got {floor!r}")
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to is a whole number from 1 on; got {round_to!r}")
    for name, value in words.items():
        if value not in CHOICES[name]:
            raise ValueError(f"{name} is one of {', '.join(CHOICES[name])}; got {value!r}")
