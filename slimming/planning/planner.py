"""Which channels stay: one global ranking (paper, section 3), under constraints.

`layers.py` and `names.py` say what is planned as one and may go, `ranking.py` orders the channels,
`costs.py` lets costs count in that order, `choice.py` and `rounding.py` respect floors, branches
and widths, `budget.py` finds how many have to go for a target; here they are put together.
"""

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Literal, get_args

from torch import Tensor

from slimming.graph import ChannelGraph
from slimming.planning.budget import Budget, check_target
from slimming.planning.choice import Choice, Floor
from slimming.planning.costs import Cost, by_cost, check_cost
from slimming.planning.counting import predict
from slimming.planning.layers import find_layers
from slimming.planning.names import Globs, check_named, patterns, staying
from slimming.planning.plans import Drafts, Plan, Unread
from slimming.planning.ranking import Combine, Ranking, Scope, rank
from slimming.planning.rounding import Rounding

Dead = Literal["floor", "error", "bypass"]
CHOICES = {
    "rounding": get_args(Rounding),
    "scope": get_args(Scope),
    "combine": get_args(Combine),
    "dead": get_args(Dead),
    "unread": get_args(Unread),
}


def plan(
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    ratio: float | None = None,
    *,
    target: Mapping[str, float] | None = None,
    measure: Callable[[Plan], float] | None = None,
    exclude: Globs = (),
    only: Globs = (),
    floor: Floor = 1,
    refill: bool = True,
    round_to: int = 1,
    rounding: Rounding = "nearest",
    scope: Scope = "global",
    combine: Combine = "max",
    cost: Cost = "none",
    cost_power: float = 0.5,
    dead: Dead = "floor",
    unread: Unread = "keep",
) -> Plan:
    """Choose the channels to keep, for a ratio or for a target.

    Given a ratio, exactly floor(number x ratio) of the channels that may go do, in decimal
    arithmetic, unless a constraint binds. Ties are broken by the rank's share within the layer,
    then by position. Channels that are cut together count as one, as often as they are scored:
    those of a residual stream, or of all groups of a grouped convolution.

    A layer is a set of channels that the same gates score and the same weights make: where a
    BatchNorm reads a concatenation, one of each convolution in front.

    Given a target, as few channels go as it takes (bisection along the ranking). Where the last of
    them was an expensive one, channels come back, the strongest first, until the cost is within
    1 % of the target. Time is measured, at each step of the bisection: tables of times per layer
    and width don't add up, neither on CPUs nor on GPUs.

    Args:
        scores: {gate: (channels,)}, higher = keep.
        ratio: share of the channels to remove, 0 <= ratio < 1; of those that may go, which are all
            but what `exclude` and `only` hold back.
        target: the most that may stay: {"macs": 0.5} is half of what the network costs before this
            cut, a number above 1 the MACs themselves; also "params", and "latency", which is always
            a share. All of them hold.
        measure: plan -> time of the thin network as a share of the dense one's; for "latency".
        exclude: globs such as "layer4.*"; layers that they name stay whole, and so does all that
            would have to go with them. They fit the name of a gate, that of a layer whose weight
            makes its channels, or that of a module around one of these.
        only: globs; what they don't name stays whole. Channels that several norms score, and
            several weights make, go where all of these norms are named, or all of these weights.
        floor: the least a layer keeps: a number of channels, or a share below 1 (0.5 is the paper's
            "at most 50 % of a layer", Table 4). At least one channel stays in any case. Or
            {glob: floor}: each holds for the layers that it names; {"layer4.*": 0.7} lets them lose
            30 % at most.
        refill: make up in other layers for what the floor saved; a target always does.
        round_to: layers keep a multiple of this (at least one; smaller layers stay whole).
        rounding: keep the nearest multiple, the next higher (then no more channels go than asked;
            a layer may stay whole) or the next lower (no fewer).
        scope: rank all channels together; or take the share from each layer (paper, Table 3); or
            divide scores by their layer's mean magnitude before ranking them together, which is
            Torch-Pruning's default and not the paper's.
        combine: how a channel that several gates score gets one score.
        cost: let a channel go the sooner the more "macs", or "params", it frees beside what is left
            of its neighbours: channels are ranked by score / cost^cost_power (scope "global" only).
        cost_power: how much the cost counts; with 0 it doesn't.
        dead: a layer of which the ranking takes every channel keeps its floor, or is an error; or
            its branch goes as a whole if the graph knows one, and the floor holds in the others.
        unread: keep or remove channels that nobody reads any more.

    Raises:
        ValueError: an option out of range, a glob that names nothing, scores that are missing, not
            finite, of another shape or negative under combine="l2", a target out of reach, a layer
            that would be emptied under dead="error".
    """
    _check_goal(ratio, target, measure)
    words = {"rounding": rounding, "scope": scope, "combine": combine, "dead": dead}
    check_options(floor, round_to, exclude, only, cost, cost_power, unread=unread, **words)
    if (ratio or target) and not graph.gates:
        raise ValueError(_nothing_to_cut(graph))
    layers, _ = find_layers(graph)
    for glob in floor if isinstance(floor, Mapping) else ():
        check_named("floor", glob, graph, layers)
    ranking = rank(graph, scores, scope, combine, staying(graph, layers, exclude, only))
    if cost != "none":
        ranking = by_cost(graph, ranking, cost, cost_power)
    refill = refill and scope != "layer"
    choice = Choice(graph, ranking, floor, refill, round_to, rounding, dead == "bypass")
    drafts = Drafts(graph, ranking, unread)
    if target is None:
        free = [size for i, size in enumerate(ranking.sizes) if i not in ranking.stay]
        goal = sum(_share(ratio, size) for size in (free if scope == "layer" else [sum(free)]))
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


def check_options(
    floor: Floor,
    round_to: int,
    exclude: Globs = (),
    only: Globs = (),
    cost: str = "none",
    cost_power: float = 0.5,
    **words: str,
) -> None:
    """What of a plan's options can be judged without a network.

    Raises:
        ValueError: one is out of range, or none of its choices.
    """
    for low in floor.values() if isinstance(floor, Mapping) else [floor]:
        _check_floor(low)
    if isinstance(floor, Mapping):
        patterns("floor", [*floor])
    patterns("exclude", exclude)
    patterns("only", only)
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to is a whole number from 1 on; got {round_to!r}")
    check_cost(cost, cost_power)
    scope = words.get("scope", "global")
    if cost != "none" and scope != "global":
        raise ValueError(f"cost={cost} ranks all layers together; scope={scope} doesn't")
    for name, value in words.items():
        if value not in CHOICES[name]:
            raise ValueError(f"{name} is one of {', '.join(CHOICES[name])}; got {value!r}")


def _check_floor(floor: float) -> None:
    if isinstance(floor, bool) or not isinstance(floor, (int, float)) or not 0 <= floor < math.inf:
        raise ValueError(
            f"floor is a number of channels, or a share below 1, or {{layers: one of these}}; got "
            f"{floor!r}"
        )
    if floor > 1 and floor != int(floor):
        raise ValueError(f"floor above 1 is a whole number of channels; got {floor!r}")
