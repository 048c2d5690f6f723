"""Which layers can be cut without loss: each by itself, more and more of it (Li et al. 2017)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

from torch import Tensor

from slimming.graph import ChannelGraph
from slimming.planning.layers import find_layers
from slimming.planning.names import Globs, staying
from slimming.planning.plans import Drafts, Plan
from slimming.planning.ranking import Combine, rank

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Point:
    """One layer cut, all others whole."""

    layer: str  # its gates, as "bn1 + bn2"; "" where nothing is cut
    size: int  # channels
    removed: int  # the weakest of them
    accuracy: float  # what `evaluate` says


def sensitivity(
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    evaluate: Callable[[Plan], float],
    shares: Iterable[float] = SHARES,
    *,
    exclude: Globs = (),
    only: Globs = (),
    combine: Combine = "max",
    known: Mapping[tuple[str, int], float] | None = None,
) -> Iterator[Point]:
    """Cut each layer alone, the weakest channels first, and evaluate what is left.

        def evaluate(keep):
            thin = slim(model, graph, keep)
            recalibrate(thin, images)
            return accuracy(thin)

        points = list(sensitivity(graph, scores, evaluate))
        spare(points)  # {"layer1.bn": 0.7, ...}

    Args:
        scores: {gate: (channels,)}, higher = keep.
        evaluate: plan -> accuracy of the network cut so, 0 to 1, on images held out.
        shares: of a layer's channels to remove, each above 0 and below 1; rounded down, as a ratio
            is, and left out where no channel goes.
        exclude, only, combine: as in `plan`.
        known: {(layer, removed): accuracy} of an earlier try, which is not evaluated again.

    Yields:
        First what is reached when nothing is cut; then layer after layer, point after point as it
        is measured, so that what is there can be kept when the rest is interrupted.

    Raises:
        ValueError: a share is none, or what `plan` raises for scores and names.
    """
    shares = check_shares(shares)
    layers, _ = find_layers(graph)
    ranking = rank(graph, scores, "global", combine, staying(graph, layers, exclude, only))
    drafts, known = Drafts(graph, ranking, "keep"), known or {}
    nothing = [0] * len(layers)

    def measured(name: str, size: int, count: int, removed: list[int]) -> Point:
        before = known.get((name, count))
        reached = evaluate(drafts.plan(removed)) if before is None else before
        return Point(name, size, count, reached)

    yield measured("", len(ranking.sequence), 0, nothing)
    for layer, size in enumerate(ranking.sizes):
        counts = dict.fromkeys(channels(share, size) for share in shares)
        if layer not in ranking.stay:
            for count in filter(None, counts):
                removed = [*nothing[:layer], count, *nothing[layer + 1 :]]
                yield measured(ranking.name(layer).replace("'", ""), size, count, removed)


def channels(share: float, size: int) -> int:
    """How many of a layer's channels this share is: 0.29 of 100 are 29."""
    return int(Decimal(str(share)) * size)


def spare(points: Iterable[Point], loss: float = 0.01) -> dict[str, float]:
    """{layer: the largest share that it can lose alone}, of those tried.

    Args:
        points: of `sensitivity`, the first of which is the uncut network.
        loss: of accuracy; up to the share given, every share that was tried costs less.
    """
    first, *rest = points
    found: dict[str, float] = {}
    lost: set[str] = set()
    for point in sorted(rest, key=lambda point: point.removed):
        found.setdefault(point.layer, 0.0)
        if round(first.accuracy - point.accuracy, 12) >= loss:
            lost.add(point.layer)
        elif point.layer not in lost:
            found[point.layer] = point.removed / point.size
    return {point.layer: found[point.layer] for point in rest}


def check_shares(shares: Iterable[float]) -> list[float]:
    """The shares, sorted.

    Raises:
        ValueError: one is no share, or there is none.
    """
    shares = [shares] if isinstance(shares, (str, float, int)) else [*shares]
    fit = all(type(share) in (int, float) and 0 < share < 1 for share in shares)
    if not shares or not fit:
        raise ValueError(
            f"shares are those of a layer to remove, each above 0 and below 1; got {shares}"
        )
    return sorted(set(shares))
